from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelops.api.chat import ChatRequest
from modelops.api.errors import InvalidRequest
from modelops.api.messages import Request, from_json
from modelops.api.operations import OPERATIONS
from modelops.api.types import (
    ActivateVersionRequest,
    EmbedRequest,
    InferenceRequest,
    ListModelsRequest,
    ModelLoadRequest,
    ModelUnloadRequest,
    RegisterVersionRequest,
    RerankRequest,
)

ASKED: Mapping[str, Any] = {"model_name": "m", "input_text": "Hello"}


def refusal(kind: type[Request], fields: object) -> str:
    with pytest.raises(InvalidRequest) as refused:
        kind.parse(fields)
    return refused.value.message


def test_the_documented_defaults_of_inference() -> None:
    found = InferenceRequest.parse(ASKED)
    assert (found.max_tokens, found.temperature, found.top_p, found.stop_sequences) == (50, 0.7, 0.9, [])
    assert (found.raw, found.system, found.seed, found.stream) == (False, "", None, False)


def test_the_documented_defaults_of_loading() -> None:
    found = ModelLoadRequest.parse({"model_name": "m"})
    assert (found.model_path, found.model_type, found.quantization, found.gpu_layers) == ("", "llm", False, 0)
    assert (found.wait, found.dry_run) == (True, False)
    assert (found.context_length, found.slots, found.cache_type) == (0, 0, "")
    assert (found.keep_alive, found.pin) == (None, None)


@pytest.mark.parametrize(
    "fields",
    [
        {"input_text": "x"},
        {"input_text": "x" * 10_000},
        {"input_text": "\U0001f600" * 10_000},
        {"max_tokens": 1},
        {"max_tokens": 2048},
        {"temperature": 0},
        {"temperature": 2.0},
        {"top_p": 0},
        {"top_p": 1},
        {"stop_sequences": ["x"] * 10},
        {"seed": 2**32 - 2},
        {"model_name": "x" * 128},
    ],
)
def test_what_lies_on_a_bound_is_accepted(fields: dict[str, Any]) -> None:
    InferenceRequest.parse({**ASKED, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_text": ""}, "input_text: string should have at least 1 character"),
        ({"input_text": "x" * 10_001}, "input_text: string should have at most 10000 characters"),
        ({"input_text": "a\0b"}, "input_text: must not contain NUL characters"),
        ({"input_text": "\ud800"}, "input_text: input should be a valid string"),
        ({"input_text": 5}, "input_text: input should be a valid string"),
        ({"input_text": None}, "input_text: input should be a valid string"),
        ({"model_name": ""}, "model_name: string should have at least 1 character"),
        ({"model_name": "x" * 129}, "model_name: string should have at most 128 characters"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1"),
        ({"max_tokens": 2049}, "max_tokens: input should be less than or equal to 2048"),
        ({"max_tokens": "50"}, "max_tokens: input should be a valid integer"),
        ({"max_tokens": 1.5}, "max_tokens: input should be a valid integer"),
        ({"max_tokens": True}, "max_tokens: input should be a valid integer"),
        ({"temperature": -0.1}, "temperature: input should be greater than or equal to 0"),
        ({"temperature": 2.1}, "temperature: input should be less than or equal to 2"),
        ({"temperature": float("nan")}, "temperature: input should be "),
        ({"temperature": float("inf")}, "temperature: input should be "),
        ({"top_p": 1.01}, "top_p: input should be less than or equal to 1"),
        ({"stop_sequences": ["x"] * 11}, "stop_sequences: list should have at most 10 items"),
        ({"stop_sequences": [""]}, "stop_sequences.0: string should have at least 1 character"),
        ({"stop_sequences": "x"}, "stop_sequences: input should be a valid list"),
        ({"seed": -1}, "seed: input should be greater than or equal to 0"),
        ({"raw": 1}, "raw: input should be a valid boolean"),
        ({"max_token": 5}, "unknown field 'max_token': did you mean 'max_tokens'?"),
        ({"frobnicate": 5}, "unknown field 'frobnicate': known fields: model_name, input_text, "),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], message: str) -> None:
    assert refusal(InferenceRequest, {**ASKED, **fields}).startswith(message)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ModelLoadRequest, {"model_name": "../m"}, "model_name: must begin with a letter or a digit, and have only"),
        (ModelLoadRequest, {"model_name": "m\n"}, "model_name: must begin with a letter or a digit, and have only"),
        (ModelLoadRequest, {"model_name": "m", "model_type": "gan"}, "model_type: input should be 'llm', 'embedding'"),
        (ModelLoadRequest, {"model_name": "m", "gpu_layers": -2}, "gpu_layers: input should be greater than or equal"),
        (ModelLoadRequest, {"model_name": "m", "gpu_layers": 2**31}, "gpu_layers: input should be less than or equal"),
        (ModelLoadRequest, {"model_name": "m", "model_path": "a\0"}, "model_path: must not contain NUL"),
        (
            ModelLoadRequest,
            {"model_name": "m", "model_path": "x" * 4097},
            "model_path: string should have at most",
        ),
        (ModelLoadRequest, {"model_name": "m", "context_length": -1}, "context_length: input should be greater than"),
        (ModelLoadRequest, {"model_name": "m", "context_length": 2**31}, "context_length: input should be less than"),
        (ModelLoadRequest, {"model_name": "m", "slots": -1}, "slots: input should be greater than or equal to 0"),
        (ModelLoadRequest, {"model_name": "m", "slots": 257}, "slots: input should be less than or equal to 256"),
        (ModelLoadRequest, {"model_name": "m", "cache_type": "q5_0"}, "cache_type: input should be '', 'f16', 'q8_0'"),
        (ModelLoadRequest, {"model_name": "m", "pin": 1}, "pin: input should be a valid boolean"),
        (ModelLoadRequest, {"model_name": "m", "dry_run": "yes"}, "dry_run: input should be a valid boolean"),
        (EmbedRequest, {"model_name": "m", "inputs": []}, "inputs: list should have at least 1 item"),
        (EmbedRequest, {"model_name": "m", "inputs": ["x"] * 257}, "inputs: list should have at most 256 items"),
        (EmbedRequest, {"model_name": "m", "inputs": ["x", ""]}, "inputs.1: string should have at least 1 character"),
        (EmbedRequest, {"model_name": "m", "inputs": ["x" * 32_769]}, "inputs.0: string should have at most 32768"),
        (EmbedRequest, {"model_name": "m", "inputs": ["a\0b"]}, "inputs.0: must not contain NUL"),
        (EmbedRequest, {"model_name": "m", "inputs": "x"}, "inputs: input should be a valid list"),
        (RerankRequest, {"model_name": "m", "query": "", "documents": ["x"]}, "query: string should have at least 1"),
        (RerankRequest, {"model_name": "m", "query": "x", "documents": []}, "documents: list should have at least 1"),
        (
            RerankRequest,
            {"model_name": "m", "query": "x", "documents": ["x"], "top_n": -1},
            "top_n: input should be greater than or equal to 0",
        ),
        (
            RegisterVersionRequest,
            {"model_name": "../m", "model_path": "x"},
            "model_name: must begin with a letter or a digit, and have only",
        ),
        (RegisterVersionRequest, {"model_name": "m"}, "model_path: field required"),
        (RegisterVersionRequest, {"model_name": "m", "model_path": ""}, "model_path: string should have at least 1"),
        (ActivateVersionRequest, {"model_name": "m"}, "model_version: field required"),
        (ModelUnloadRequest, {}, "model_name: field required"),
        (ListModelsRequest, {"al": True}, "unknown field 'al': did you mean 'all'?"),
        (InferenceRequest, [], "the request must be a JSON object"),
        (InferenceRequest, "text", "the request must be a JSON object"),
        (InferenceRequest, None, "the request must be a JSON object"),
    ],
)
def test_other_requests_are_as_strict(kind: type[Request], fields: object, message: str) -> None:
    assert refusal(kind, fields).startswith(message)


# --- keep_alive ---
KEPT = [operation.request for operation in OPERATIONS if "keep_alive" in operation.request.model_fields]
LEAST: Mapping[str, Any] = {
    "input_text": "x",
    "messages": [{"role": "user"}],
    "inputs": ["x"],
    "query": "x",
    "documents": ["x"],
}


def keep_alive(kind: type[Request], value: object) -> Any:
    needed = {name: text for name, text in LEAST.items() if name in kind.model_fields}
    return kind.parse({"model_name": "m", "keep_alive": value, **needed}).model_dump()["keep_alive"]


def test_whoever_asks_or_loads_may_say_how_long_the_model_stays() -> None:
    assert set(KEPT) == {InferenceRequest, ChatRequest, EmbedRequest, RerankRequest, ModelLoadRequest}


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        *[(0, 0), ("0", 0), ("0s", 0), (300, 300), (1.5, 1.5), ("300", 300), ("1.5", 1.5)],
        *[("200ms", 0.2), ("90s", 90), ("5m", 300), ("2h", 7200), ("1h30m", 5400), ("1.5m", 90), ("1m500ms", 60.5)],
        *[(-1, -1), ("-1", -1), (-0.5, -1), ("-5m", -1)],
        *[(10**400, 365 * 86_400), (-(10**400), -1), ("1e999", 365 * 86_400), ("9" * 5000 + "h", 365 * 86_400)],
        (None, None),
    ],
    ids=lambda value: str(value)[:12],
)
def test_keep_alive_is_seconds_or_a_duration(kind: type[Request], written: object, seconds: float | None) -> None:
    assert keep_alive(kind, written) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("kind", KEPT)
@pytest.mark.parametrize(
    "written",
    [
        *["", "soon", "5 m", "5M", "m", "5d", "1.5.5s", "--1", "5m-1s", float("nan"), True, False, [], {}, [5]],
        *["nan", "inf", "-Infinity", " 5", "5\n", "1_0", "٣", "٣s", "+5", ".5", "1e3s"],  # Python reads most of them
    ],
    ids=repr,
)
def test_what_is_no_time_is_refused_by_name(kind: type[Request], written: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^keep_alive: ") as refused:
        keep_alive(kind, written)
    assert "soon" not in refused.value.message


def test_every_fault_is_named_at_once() -> None:
    said = refusal(InferenceRequest, {"input_text": "", "max_tokens": 0, "nonsense": 1})
    assert [fault.split(":")[0] for fault in said.split("; ")] == [
        "model_name",
        "input_text",
        "max_tokens",
        "unknown field 'nonsense'",
    ]


def test_a_refusal_does_not_repeat_what_was_sent() -> None:
    assert "secret" not in refusal(InferenceRequest, {**ASKED, "input_text": "my secret\0", "system": ["my secret"]})


def test_the_name_of_an_unknown_field_is_cut() -> None:
    assert len(refusal(InferenceRequest, {**ASKED, "x" * 100_000: 1})) < 500


def test_requests_are_frozen() -> None:
    request = InferenceRequest.parse(ASKED)
    with pytest.raises(ValidationError, match="frozen"):
        request.max_tokens = 1  # type: ignore[misc] # that is the point


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ASKED, "seed", "x"]), inner),
    )
)
def test_anything_is_a_request_or_refused(fields: object) -> None:
    try:
        request = InferenceRequest.parse(fields)
    except InvalidRequest:
        return
    assert isinstance(fields, dict)
    assert request.model_dump(include=set(fields)) == fields


@pytest.mark.parametrize("body", [b"", b"{", b"{'a': 1}", b"\xff", b'{"a": NaN}', b'{"a": 1} x', b"[" * 100_000])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON") as refused:
        from_json(body)
    assert len(refused.value.message) < 200


def test_json_is_read() -> None:
    assert from_json('{"a": ["ü", 1, null]}'.encode()) == {"a": ["ü", 1, None]}
