"""OpenAI's own client, as it is, against /v1: the same operations in its forms."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletion

from contract.wires import Wire
from metrics.pages import Samples, moved, scraped, value
from modelops.transports.openai import ROUTES
from support import Served, make_key, serving, tiny_gguf, wait_until

MODELS = ("m", "echo", "slow", "dying", "dies", "ends", "full", "vectors", "scores")
POOLING = {"vectors": 1, "scores": 4}
HELLO: list[dict[str, str]] = [{"role": "user", "content": "Hello"}]
CHAT: dict[str, Any] = {"model": "m", "messages": HELLO, "max_tokens": 3}
FUNCTION: dict[str, Any] = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}


@pytest.fixture(scope="module")
def dialect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with a model for each thing that is tried."""
    folder = tmp_path_factory.mktemp("openai")
    links = [
        (name, tiny_gguf(folder / f"{name}.gguf", general__name=name, llama__pooling_type=POOLING.get(name, 0)))
        for name in MODELS
    ]
    behaviours: dict[str, Any] = {"echo": {"echo": True}, "slow": {"token_s": 0.02}, "dying": {"die_after": 2}}
    behaviours["dies"] = {"die_after": 0}
    behaviours["full"] = {"status": 400, "says": "input (5000 tokens) is too large to process"}
    behaviours["ends"] = {"choices": [{"text": "w0"}, {"text": "w1", "finish_reason": "stop"}]}
    catalogue = folder / "catalogue.toml"
    catalogue.write_text('[m]\naliases = ["gpt-4o-mini"]\n')
    env = {"MODELOPS_ENGINE__SLOTS": "1", "MODELOPS_MODELS__CATALOGUE": str(catalogue)}
    with serving(
        folder / "data", links=links, load=["m", "vectors", "scores"], fake={"models": behaviours}, env=env
    ) as served:
        yield served
        assert "Traceback" not in served.log.read_text()


@pytest.fixture(scope="module")
def client(dialect: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{dialect.rest}/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture
def http(dialect: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=dialect.rest, timeout=60) as made:
        yield made


def refused(response: httpx.Response, status: int, kind: str, param: str | None = None) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    told: dict[str, Any] = response.json()["error"]
    assert told.keys() == {"message", "type", "param", "code"}
    assert (told["type"], told["param"]) == (kind, param)
    return told


def events(response: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


# --- their client ---
def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == sorted([*MODELS, "gpt-4o-mini"])
    for name in ("m", "gpt-4o-mini"):  # which is another name of it
        found = client.models.retrieve(name)
        assert (found.id, found.object, found.owned_by) == (name, "model", "modelops")
        assert found.created > 0
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nobody")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="no model 'org/nobody'; GET /v1/models lists") as error:
        client.models.retrieve("org/nobody")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")


def test_a_whole_answer(client: Any) -> None:
    found = client.chat.completions.create(**CHAT)
    (choice,) = found.choices
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", "w0 w1 w2 ")
    assert (choice.finish_reason, found.object, found.model) == ("length", "chat.completion", "m")
    assert found.id == f"chatcmpl-{found._request_id}"
    assert found.system_fingerprint == "v1"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (1, 3, 4)


def test_a_stream(client: Any) -> None:
    chunks = list(client.chat.completions.create(**CHAT, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in deltas) == "w0 w1 w2 "
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [*[None] * (len(chunks) - 1), "length"]
    assert len({(chunk.id, chunk.created, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_that_tells_what_it_took(client: Any) -> None:
    *chunks, last = client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (1, 3)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_the_async_client(dialect: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{dialect.rest}/v1", api_key="any", max_retries=0) as client:
        whole = await client.chat.completions.create(**CHAT)
        assert whole.choices[0].message.content == "w0 w1 w2 "
        parts = [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(**CHAT, stream=True)
        ]
        assert "".join(parts) == "w0 w1 w2 "


def test_a_completion(client: Any) -> None:
    asked: dict[str, Any] = {"model": "m", "prompt": "Hello", "max_tokens": 2}
    found = client.completions.create(**asked)
    assert (found.object, found.choices[0].text, found.choices[0].finish_reason) == (
        "text_completion",
        "w0 w1 ",
        "length",
    )
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (1, 2)
    assert client.completions.create(model="m", prompt=["Hello"]).usage.completion_tokens == 16
    chunks = list(client.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "w0 w1 "
    assert chunks[-1].choices[0].finish_reason == "length"


def test_several_answers(client: Any, dialect: Served) -> None:
    before = scraped(dialect.rest)
    found = client.chat.completions.create(**CHAT, n=3)
    assert [(one.index, one.message.content, one.finish_reason) for one in found.choices] == [
        (index, "w0 w1 w2 ", "length") for index in range(3)
    ]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (1, 9)  # the question counts once
    change = moved(before, scraped(dialect.rest), "moc_inference_requests_total", "moc_rest_requests_total")
    counted = {name: number for (name, _), number in change.items()}
    assert counted == {"moc_inference_requests_total": 1, "moc_rest_requests_total": 2}  # and this page


def test_several_answers_as_a_stream(client: Any) -> None:
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(**CHAT, n=2, stream=True, stream_options=options)
    said: dict[int, list[Any]] = {}
    for chunk in chunks:
        (choice,) = chunk.choices
        said.setdefault(choice.index, []).append(choice)
    for index in (0, 1):
        assert said[index][0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in said[index]) == "w0 w1 w2 "
        assert said[index][-1].finish_reason == "length"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (1, 6)


def test_several_prompts(client: Any) -> None:
    found = client.completions.create(model="echo", prompt=["one", "two"], n=2, seed=5, frequency_penalty=0.5)
    told = [json.loads(choice.text) for choice in found.choices]
    assert [(one["prompt"], one["seed"]) for one in told] == [("one", 5), ("one", 6), ("two", 5), ("two", 6)]
    assert {one["frequency_penalty"] for one in told} == {0.5}
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (2, 4)


def test_why_a_completion_ended_is_its_engines_to_say(client: Any) -> None:
    said = [client.completions.create(model="ends", prompt="Hello", max_tokens=count) for count in (2, 9)]
    assert [one.choices[0].finish_reason for one in said] == [
        "stop",
        "stop",
    ]  # also where it was as long as it might be
    (*_, last) = client.completions.create(model="ends", prompt="Hello", max_tokens=9, stream=True)
    assert last.choices[0].finish_reason == "stop"


def test_several_answers_are_made_on_one_slot(tmp_path: Path) -> None:
    """Though the model goes as soon as nobody asks it."""
    links = [("m", tiny_gguf(tmp_path / "tiny"))]
    env = {"MODELOPS_MODELS__KEEP_ALIVE": "0"}
    with serving(tmp_path / "data", links=links, fake={"tokens": 1}, env=env) as served:
        with openai.OpenAI(base_url=f"{served.rest}/v1", api_key="any", max_retries=0) as client:
            assert len(client.chat.completions.create(**CHAT, n=3).choices) == 3
        assert sum(moved({}, scraped(served.rest), "moc_model_load_duration_seconds_count").values()) == 1


def test_what_the_clients_ask_again(dialect: Served) -> None:
    """By its own rules, with all that it does by default: an engine that broke is not asked a third time."""
    before = scraped(dialect.rest)
    with openai.OpenAI(base_url=f"{dialect.rest}/v1", api_key="any") as client, pytest.raises(openai.APIStatusError):
        client.chat.completions.create(model="dies", messages=[{"role": "user", "content": "Hello"}])
    change = moved(before, scraped(dialect.rest), "moc_inference_requests_total", "moc_inference_retries_total")
    assert {name: number for (name, _), number in change.items()} == {
        "moc_inference_requests_total": 1,
        "moc_inference_retries_total": 1,
    }


def test_what_reaches_the_engine(client: Any) -> None:
    asked: dict[str, Any] = {
        "model": "echo",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ],
        "tools": [TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": True,
        "stop": "x",
        "seed": 7,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
    }
    extra = {"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1}
    got = json.loads(client.chat.completions.create(**asked, extra_body=extra).choices[0].message.content)
    assert got["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert (got["temperature"], got["top_p"], got["stop"], got["max_tokens"]) == (1.0, 1.0, ["x"], -1)
    for name in ("tools", "tool_choice", "parallel_tool_calls", "seed", "presence_penalty", "frequency_penalty"):
        assert got[name] == asked[name]
    for name, wanted in extra.items():
        assert got[name] == wanted


def test_forced_forms_reach_the_engine(client: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    found = client.chat.completions.create(model="echo", messages=HELLO, response_format=form)
    assert json.loads(found.choices[0].message.content)["response_format"]["json_schema"]["schema"] == schema


def test_vectors_are_the_same_in_both_forms(client: Any, http: httpx.Client) -> None:
    texts = ["a", "b"]
    packed = client.embeddings.create(model="vectors", input=texts)  # their client asks for base64
    plain = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
    assert [one.index for one in plain.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == 2
    raw = http.post("/v1/embeddings", json={"model": "vectors", "input": "a", "encoding_format": "base64"}).json()
    numbers = struct.unpack("<8f", base64.b64decode(raw["data"][0]["embedding"]))
    assert numbers == pytest.approx(plain.data[0].embedding, abs=1e-6)


def test_dimensions_are_the_models_own(client: Any) -> None:
    assert len(client.embeddings.create(model="vectors", input="a", dimensions=8).data[0].embedding) == 8
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model="vectors", input="a", dimensions=4)
    assert error.value.param == "dimensions"


def test_scores(http: httpx.Client) -> None:
    asked = {"model": "scores", "query": "a b", "documents": ["c", "a b", "a"], "top_n": 2}
    found = http.post("/v1/rerank", json=asked).json()
    assert found["results"] == [{"index": 1, "relevance_score": 2.0}, {"index": 2, "relevance_score": 1.0}]
    assert found["usage"]["total_tokens"] > 0


# --- errors ---
def test_errors_are_their_exceptions(client: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**CHAT, n=0)
    assert (error.value.param, error.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.BadRequestError, match="of type 'llm'"):
        client.embeddings.create(model="m", input="Hello")


def test_a_stream_that_is_cut_short_ends_with_an_error(client: Any, http: httpx.Client) -> None:
    stream = client.chat.completions.create(model="dying", messages=HELLO, max_tokens=9, stream=True)
    with pytest.raises(openai.APIError) as error:
        list(stream)
    assert error.value.type == "server_error"
    asked = {"model": "dying", "prompt": "Hello", "stream": True}
    *_, last = events(http.post("/v1/completions", json=asked))
    assert last["error"]["code"] == "engine_failed"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "param"),
    [
        ("GET", "/v1/nothing", 404, "not_found_error", None),
        ("GET", "/v1/models/nobody", 404, "not_found_error", "model"),
        ("GET", "/v1/chat/completions", 405, "invalid_request_error", None),
        ("POST", "/v1/models", 405, "invalid_request_error", None),
        ("POST", "/v1/chat/completions", 400, "invalid_request_error", None),  # no body
        ("POST", "/v1/embeddings?x=1", 400, "invalid_request_error", None),
    ],
)
def test_refusals_have_their_form(
    method: str, path: str, status: int, kind: str, param: str | None, http: httpx.Client
) -> None:
    response = http.request(method, path, headers={"X-Request-Id": "mine"})
    refused(response, status, kind, param)
    assert response.headers["x-request-id"] == "mine"
    assert ("allow" in response.headers) is (status == 405)


@pytest.mark.parametrize(
    ("path", "asked", "param"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 3}, "messages"),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 3, "stream": True}, "messages"),
        ("/v1/completions", {"prompt": "Hello"}, "prompt"),
    ],
)
def test_what_is_too_long_is_told_by_its_field(
    http: httpx.Client, path: str, asked: dict[str, Any], param: str
) -> None:
    response = http.post(path, json={"model": "full"} | asked)
    assert refused(response, 400, "invalid_request_error", param)["code"] == "context_length_exceeded"


@pytest.mark.parametrize("base", ["", "/v1/v1", "/v1/chat/completions", "/openai", "//v1"])
def test_a_base_url_that_is_not_quite_right_is_told(dialect: Served, base: str) -> None:
    with openai.OpenAI(base_url=f"{dialect.rest}{base}", api_key="any", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError, match="at '/v1/chat/completions': a client's base_url is") as told:
            client.chat.completions.create(**CHAT)
        with pytest.raises(openai.NotFoundError, match=r"at '/v1/completions': a client's base_url is"):
            client.completions.create(model="m", prompt="Hello")
        with pytest.raises(openai.NotFoundError, match="Responses API is not offered"):
            client.responses.create(model="m", input="Hello")
    assert (told.value.code, told.value.param) == ("not_found", None)


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "/chat/completions/"])
def test_so_is_a_slash_too_many(http: httpx.Client, path: str) -> None:
    told = refused(http.post(path, json=CHAT), 404, "not_found_error")
    assert told["message"].startswith(f"there is nothing at '{path}'; it is at '/v1/chat/completions'")


def test_a_body_that_is_too_large(http: httpx.Client) -> None:
    big = CHAT | {"messages": [{"role": "user", "content": "x" * (2 << 20)}]}
    told = refused(http.post("/v1/chat/completions", json=big), 413, "invalid_request_error")
    assert "over 1048576 bytes (server.max_body_bytes)" in told["message"]


def test_a_deadline(http: httpx.Client) -> None:
    asked = {"model": "slow", "messages": HELLO, "max_tokens": 2000}
    response = http.post("/v1/chat/completions", json=asked, headers={"X-Request-Timeout": "0.2"})
    refused(response, 504, "server_error")


def test_keys(tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "tiny"))]
    with serving(tmp_path / "data", links=links, load=["m"], fake={"tokens": 1}) as served:
        brisk = make_key(served.data_dir, "brisk", "--scope", "infer", "--rate", "1/hour")
        key = make_key(served.data_dir, "admin", "--scope", "admin")
        shown = {"Authorization": f"Bearer {key}"}

        def status(headers: dict[str, str]) -> int:
            return httpx.get(f"{served.rest}/v1/models", headers=headers).status_code

        wait_until(lambda: (status({}), status(shown)) == (401, 200), what="the keys being known")

        def asking(key: str) -> Any:
            return openai.OpenAI(base_url=f"{served.rest}/v1", api_key=key, max_retries=0)

        with asking(key) as client:
            assert client.chat.completions.create(**CHAT).choices[0].message.content == "w0 "
        with asking("wrong") as client, pytest.raises(openai.AuthenticationError) as wrong:
            client.chat.completions.create(**CHAT)
        assert (wrong.value.code, wrong.value.type) == ("invalid_api_key", "authentication_error")
        with asking(brisk) as client:
            client.chat.completions.create(**CHAT)
            with pytest.raises(openai.RateLimitError) as over:
                client.chat.completions.create(**CHAT)
            assert int(over.value.response.headers["retry-after"]) > 0
            assert over.value.type == "rate_limit_error"
            with pytest.raises(openai.PermissionDeniedError):
                client.models.list()
        for method, path in ROUTES:
            answer = httpx.request(method, served.rest + path.replace("{model_name}", "m"), content=b"no JSON")
            refused(answer, 401, "authentication_error")  # and nothing was read
            assert answer.headers["www-authenticate"] == "Bearer"


# --- one service ---
def changes(before: Samples, after: Samples) -> Samples:
    skipped = ("_sum", "_bucket", "_measured_bytes")
    machines = ("moc_system", "moc_event_loop", "moc_state_file")
    found = moved(before, after, "moc_")
    return {key: n for key, n in found.items() if not key[0].endswith(skipped) and not key[0].startswith(machines)}


def test_it_moves_the_same_counters_as_our_own_forms(http: httpx.Client, dialect: Served) -> None:
    pairs: tuple[tuple[str, dict[str, Any], str, dict[str, Any]], ...] = (
        ("/v1/chat/completions", CHAT, "/chat", {"model_name": "m", "messages": HELLO, "max_tokens": 3}),
        (
            "/v1/chat/completions",
            CHAT | {"stream": True},
            "/chat",
            {"model_name": "m", "messages": HELLO, "max_tokens": 3, "stream": True},
        ),
        (
            "/v1/completions",
            {"model": "m", "prompt": "Hello", "max_tokens": 2},
            "/inference",
            {"model_name": "m", "input_text": "Hello", "max_tokens": 2, "raw": True},
        ),
        (
            "/v1/embeddings",
            {"model": "vectors", "input": "a"},
            "/embeddings",
            {"model_name": "vectors", "inputs": ["a"]},
        ),
        ("/v1/chat/completions", CHAT | {"model": "nobody"}, "/chat", {"model_name": "nobody", "messages": HELLO}),
        ("/v1/chat/completions", CHAT | {"n": 0}, "/chat", {"model_name": "m", "messages": []}),
    )
    for path, asked, own, ours in pairs:
        seen = []
        for where, body in ((path, asked), (own, ours)):
            before = scraped(dialect.rest)
            http.post(where, json=body)
            seen.append(changes(before, scraped(dialect.rest)))
        assert seen[0] == seen[1], path


def test_a_client_that_hangs_up_frees_the_slot(http: httpx.Client, dialect: Served) -> None:
    def active() -> float:
        return value(scraped(dialect.rest), "moc_bulkhead_active_requests", {"model": "slow"})

    asked = {"model": "slow", "messages": HELLO, "max_tokens": 2000, "stream": True}
    before = scraped(dialect.rest)
    with http.stream("POST", "/v1/chat/completions", json=asked) as response:
        lines = response.iter_lines()  # once it is thrown away the connection is closed
        next(lines)
        assert active() == 1
    wait_until(lambda: active() == 0, what="the free slot")
    found = moved(before, scraped(dialect.rest), "moc_inference_requests_total")
    assert [(dict(labels)["code"], change) for (_, labels), change in found.items()] == [("cancelled", 1)]


# --- a real model ---
QUESTION = "What is 2+2?"
GREEDY: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0, "top_p": 1.0}
TURNS = [{"role": "user", "content": QUESTION}]
#: Who asks the real model, and over what.
WAYS: dict[str, tuple[str, Callable[[dict[str, Wire], openai.OpenAI], str | None]]] = {
    "POST /inference": ("rest", lambda real, _: inferred(real["rest"])),
    "gRPC Infer": ("grpc", lambda real, _: inferred(real["grpc"])),
    "gRPC InferStream": ("grpc", lambda real, _: inferred_piecewise(real["grpc"])),
    "ZMQ infer": ("zmq", lambda real, _: inferred(real["zmq"])),
    "POST /chat": ("rest", lambda real, _: chatted(real["rest"])),
    "gRPC Chat": ("grpc", lambda real, _: chatted(real["grpc"])),
    "ZMQ chat": ("zmq", lambda real, _: chatted(real["zmq"])),
    "POST /v1/chat/completions": ("rest", lambda _, client: completed(client)),
    "POST /v1/chat/completions, streamed": ("rest", lambda _, client: completed_piecewise(client)),
}


def inferred(wire: Wire) -> str:
    return str(wire.ok("infer", model_name="smollm2", input_text=QUESTION, **GREEDY).output_text)


def inferred_piecewise(wire: Wire) -> str:
    asked = {"model_name": "smollm2", "input_text": QUESTION, **GREEDY}
    return "".join(chunk.text for chunk in wire.stream(asked))


def chatted(wire: Wire) -> str:
    return str(wire.ok("chat", model_name="smollm2", messages=TURNS, **GREEDY).message.content)


def completed(client: openai.OpenAI) -> str | None:
    asked: Any = TURNS
    found: ChatCompletion = client.chat.completions.create(model="smollm2", messages=asked, **GREEDY)
    return found.choices[0].message.content


def completed_piecewise(client: openai.OpenAI) -> str:
    asked: Any = TURNS
    stream = client.chat.completions.create(model="smollm2", messages=asked, stream=True, **GREEDY)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def counted(before: Samples, after: Samples, protocol: str) -> dict[str, float]:
    """What a request over `protocol` has moved, as if over any."""
    found = moved(before, after, "moc_inference")
    asked = [dict(labels).get("protocol") for (name, labels) in found if name == "moc_inference_requests_total"]
    assert asked == [protocol]
    return {name: change for (name, _), change in found.items() if not name.endswith(("_sum", "_bucket"))}


@pytest.mark.engine
def test_the_same_prompt_gets_the_same_text_and_moves_the_same_counters(served: Served, real: dict[str, Wire]) -> None:
    told: dict[str, tuple[str | None, dict[str, float]]] = {}
    with openai.OpenAI(base_url=f"{served.rest}/v1", api_key="any", max_retries=0) as client:
        for way, (protocol, ask) in WAYS.items():
            before = scraped(served.rest)
            text = ask(real, client)
            told[way] = text, counted(before, scraped(served.rest), protocol)
    expected = told["POST /inference"]
    assert expected[0]
    assert expected[1]["moc_inference_requests_total"] == 1
    assert 1 < expected[1]["moc_inference_tokens_generated_total"] <= 16
    assert told == dict.fromkeys(WAYS, expected)


@pytest.mark.engine
def test_an_answer_has_the_form_that_was_wanted(served: Served) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    with openai.OpenAI(base_url=f"{served.rest}/v1", api_key="any", max_retries=0) as client:
        asked: Any = [{"role": "user", "content": "The capital of France?"}]
        found = client.chat.completions.create(model="smollm2", messages=asked, response_format=form, max_tokens=64)
    assert json.loads(found.choices[0].message.content or "").keys() == {"city"}


@pytest.mark.engine
def test_a_conversation_that_is_too_long_is_told_as_theirs(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.rest}/v1", api_key="any", max_retries=0) as client:
        asked: Any = [{"role": "user", "content": "again and " * 20_000}]
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="smollm2", messages=asked)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.engine
def test_a_form_whose_answers_are_no_json_is_its_callers_trouble_and_nobody_elses(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": '^a"c$'}}, "required": ["a"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    asked: Any = [{"role": "user", "content": "Hello"}]
    with openai.OpenAI(base_url=f"{served.rest}/v1", api_key="any", max_retries=0) as client:
        for _ in range(6):  # failures of the engine's own would have closed the model to everybody after five
            with pytest.raises(openai.APIStatusError) as refused:
                client.chat.completions.create(
                    model="smollm2", messages=asked, response_format=form, max_tokens=60, temperature=0
                )
            assert refused.value.code == "engine_failed"
        assert client.chat.completions.create(model="smollm2", messages=asked, max_tokens=1).usage
        form["json_schema"]["strict"] = True
        with pytest.raises(openai.BadRequestError) as told:
            client.chat.completions.create(model="smollm2", messages=asked, response_format=form)
    assert told.value.param == "response_format.json_schema.schema.properties.a.pattern"


#: Of nearly everything that an engine keeps to, some; the model would write none of it by itself.
FORM: dict[str, Any] = {
    "type": "object",
    "properties": {
        "zip": {"type": "string", "pattern": "^[0-9]{5}(?:-[0-9]{4})?$"},
        "day": {"type": "string", "format": "date"},
        "id": {"type": "string", "format": "uuid"},
        "code": {"type": "string", "minLength": 2, "maxLength": 4},
        "age": {"type": "integer", "minimum": 18, "exclusiveMaximum": 100},
        "low": {"type": ["integer", "null"], "minimum": -1000, "maximum": -5},
        "kind": {"$ref": "#/$defs/kind"},
        "marks": {"type": "array", "items": {"enum": ["a", "b", 3]}, "minItems": 2, "maxItems": 3},
        "pair": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "minItems": 2, "maxItems": 2},
        "either": {"anyOf": [{"type": "string", "maxLength": 3}, {"const": {"x": [1.5]}}]},
        "both": {"allOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"type": "boolean"}}}]},
    },
    "additionalProperties": False,
    "$defs": {
        "kind": {"oneOf": [{"type": "object", "properties": {"t": {"const": one}}, "required": ["t"]} for one in "pq"]}
    },
}
FORM["required"] = [*FORM["properties"]]


@pytest.mark.engine
@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_accepted_as_strict_is_kept_to(served: Served, seed: int) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": FORM, "strict": True}}
    asked: Any = [{"role": "user", "content": "Tell me a story."}]
    with openai.OpenAI(base_url=f"{served.rest}/v1", api_key="any", max_retries=0) as client:
        found = client.chat.completions.create(
            model="smollm2", messages=asked, response_format=form, max_tokens=400, temperature=1, seed=seed
        )
    assert found.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(found.choices[0].message.content or ""), FORM)
