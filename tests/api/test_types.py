from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelops.api.errors import InvalidRequest
from modelops.api.types import (
    InferenceRequest,
    ListModelsRequest,
    ModelLoadRequest,
    ModelUnloadRequest,
    Request,
    from_json,
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
    assert found.wait is True


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
        ({"input_text": "a\0b"}, "input_text: value error, must not contain NUL characters"),
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
        (ModelLoadRequest, {"model_name": "../m"}, "model_name: string should match pattern"),
        (ModelLoadRequest, {"model_name": "m\n"}, "model_name: string should match pattern"),
        (ModelLoadRequest, {"model_name": "m", "model_type": "gan"}, "model_type: input should be 'llm', 'embedding'"),
        (ModelLoadRequest, {"model_name": "m", "gpu_layers": -2}, "gpu_layers: input should be greater than or equal"),
        (ModelLoadRequest, {"model_name": "m", "gpu_layers": 2**31}, "gpu_layers: input should be less than or equal"),
        (ModelLoadRequest, {"model_name": "m", "model_path": "a\0"}, "model_path: value error, must not contain NUL"),
        (
            ModelLoadRequest,
            {"model_name": "m", "model_path": "x" * 4097},
            "model_path: string should have at most",
        ),
        (ModelUnloadRequest, {}, "model_name: field required"),
        (ListModelsRequest, {"al": True}, "unknown field 'al': did you mean 'all'?"),
        (InferenceRequest, [], "the request must be a JSON object"),
        (InferenceRequest, "text", "the request must be a JSON object"),
        (InferenceRequest, None, "the request must be a JSON object"),
    ],
)
def test_other_requests_are_as_strict(kind: type[Request], fields: object, message: str) -> None:
    assert refusal(kind, fields).startswith(message)


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
