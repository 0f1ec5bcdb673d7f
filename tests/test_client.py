"""Both clients, against real coordinators: every method, every way to fail, and what a closed stream leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clients import Kind, call, chunks
from modelops import AsyncClient, Client
from modelops.api import types
from modelops.api.errors import (
    Conflict,
    DeadlineExceeded,
    InsufficientMemory,
    InvalidRequest,
    ModelOpsError,
    NotFound,
    Overloaded,
)
from modelops.client import Unreachable
from support import Served, serving, tiny_gguf, wait_until

NOWHERE = "http://127.0.0.1:1"  # a port that nothing listens on: binding it takes root
LONG = 2000  # tokens of an answer that no test waits for

pytestmark = pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["blocking", "async"])


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator whose one model `slow` answers one request at a time, 50 tokens a second, and queues nobody."""
    folder = tmp_path_factory.mktemp("slow")
    models = [
        ("slow", tiny_gguf(folder / "slow.gguf")),
        ("huge", tiny_gguf(folder / "huge.gguf", llama__block_count=1000, llama__attention__key_length=8192)),
    ]
    env = {"MODELOPS_ENGINE__SLOTS": "1", "MODELOPS_MODELS__MAX_QUEUE": "0"}
    with serving(folder / "data", links=models, load=["slow"], fake={"token_s": 0.02}, env=env) as running:
        yield running


# --- every method ---
def test_infer_and_stream_give_the_same_answer(served: Served, kind: Kind) -> None:
    question = ("smollm2", "What is 2+2?")
    whole = call(kind, served.rest, "infer", *question, max_tokens=16, temperature=0.0)
    streamed = chunks(kind, served.rest, *question, max_tokens=16, temperature=0.0)
    assert "4" in whole.output_text
    assert whole.success
    assert "".join(chunk.text for chunk in streamed) == whole.output_text
    assert [chunk.done for chunk in streamed] == [False] * (len(streamed) - 1) + [True]
    assert streamed[-1].final is not None
    assert streamed[-1].final.tokens_generated == whole.tokens_generated > 1


def test_chat_and_its_stream_go_on_with_the_same_conversation(served: Served, kind: Kind) -> None:
    said = [
        {"role": "user", "content": "My name is Zebedee."},
        {"role": "assistant", "content": "Nice to meet you, Zebedee!"},
        {"role": "user", "content": "What is my name?"},
    ]
    whole = call(kind, served.rest, "chat", "smollm2", said, max_tokens=16, temperature=0.0)
    streamed = chunks(kind, served.rest, "smollm2", said, method="chat_stream", max_tokens=16, temperature=0.0)
    assert "Zebedee" in whole.message.content
    assert "".join(chunk.text for chunk in streamed) == whole.message.content
    assert [chunk.done for chunk in streamed] == [False] * (len(streamed) - 1) + [True]
    assert streamed[-1].final is not None
    assert streamed[-1].final.message == whole.message


def test_a_conversation_that_is_none_is_refused_before_anything_is_sent(kind: Kind) -> None:
    for wrong in ([], [{"role": "nobody"}], [{"rolle": "user"}]):
        with pytest.raises(InvalidRequest, match="messages"):
            call(kind, NOWHERE, "chat", "m", wrong)
        with pytest.raises(InvalidRequest, match="messages"):
            chunks(kind, NOWHERE, "m", wrong, method="chat_stream")


def test_a_conversation_that_is_left_frees_its_slot(slow: Served, kind: Kind) -> None:
    asked = [{"role": "user", "content": "hi"}]
    [chunk] = chunks(kind, slow.rest, "slow", asked, method="chat_stream", max_tokens=LONG, first=1)
    assert chunk.text == "w0 "
    _freed(slow)


def test_the_options_of_a_request_reach_the_engine(slow: Served, kind: Kind) -> None:
    assert call(kind, slow.rest, "infer", "slow", "hello", max_tokens=3).output_text == "w0 w1 w2 "


def test_models_and_status_describe_what_runs(served: Served, kind: Kind) -> None:
    [model] = call(kind, served.rest, "models")
    assert (model.model_name, model.status) == ("smollm2", "loaded")
    assert call(kind, served.rest, "model", "smollm2").model_version == model.model_version == "v1"
    status = call(kind, served.rest, "status")
    assert status.models_loaded == 1
    assert status.devices[0].reserved_mb >= model.memory_usage_mb > 0
    assert call(kind, served.rest, "health").status == "healthy"


def test_a_model_is_unloaded_listed_as_available_and_loaded_again(slow: Served, kind: Kind) -> None:
    assert call(kind, slow.rest, "unload", "slow").memory_freed_mb > 0
    assert call(kind, slow.rest, "models") == []
    listed = {model.model_name: model.status for model in call(kind, slow.rest, "models", all=True)}
    assert listed == {"slow": "available", "huge": "available"}
    assert call(kind, slow.rest, "load", "slow").model_version == "v1"
    assert call(kind, slow.rest, "model", "slow").status == "loaded"


# --- every way to fail ---
@pytest.mark.parametrize(
    ("method", "arguments", "error", "code", "says"),
    [
        ("infer", ("nobody", "hi"), NotFound, "not_found", "'nobody'"),
        ("model", ("nobody",), NotFound, "not_found", "'nobody'"),
        ("unload", ("nobody",), NotFound, "not_found", "'nobody'"),
        ("unload", ("huge",), Conflict, "conflict", "not loaded"),
        ("load", ("slow",), Conflict, "conflict", "already loaded"),
        ("load", ("other", "/etc/passwd"), InvalidRequest, "invalid_request", "root"),
        ("load", ("huge",), InsufficientMemory, "insufficient_memory", "'huge'"),
    ],
)
def test_a_refusal_is_raised_as_its_own_class(
    slow: Served, kind: Kind, method: str, arguments: tuple[str, ...], error: type[ModelOpsError], code: str, says: str
) -> None:
    with pytest.raises(error, match=says) as raised:
        call(kind, slow.rest, method, *arguments)
    assert type(raised.value) is error
    assert raised.value.code == code
    assert raised.value.retry_after_s is None


def test_a_refusal_carries_its_details(slow: Served, kind: Kind) -> None:
    with pytest.raises(InsufficientMemory) as raised:
        call(kind, slow.rest, "load", "huge")
    assert float(raised.value.details["needed_mb"]) > float(raised.value.details["free_mb"])


def test_an_overload_says_when_to_try_again_over_both_ways_of_asking(slow: Served, kind: Kind) -> None:
    with Client(slow.rest) as other, contextlib.closing(other.stream("slow", "hi", max_tokens=LONG)) as holding:
        next(holding)
        for ask in (
            lambda: call(kind, slow.rest, "infer", "slow", "hi"),
            lambda: chunks(kind, slow.rest, "slow", "hi"),
        ):
            with pytest.raises(Overloaded) as raised:
                ask()
            assert raised.value.retry_after_s is not None and 0 < raised.value.retry_after_s < 60
    _freed(slow)


@pytest.mark.parametrize(
    "wrong", [{"max_tokens": 0}, {"temprature": 1.0}, {"temperature": "hot"}, {"keep_alive": "soon"}]
)
def test_a_mistake_is_refused_before_anything_is_sent(kind: Kind, wrong: dict[str, Any]) -> None:
    for ask in (call, chunks):
        arguments = ("infer",) if ask is call else ()
        with pytest.raises(InvalidRequest, match=next(iter(wrong))):
            ask(kind, NOWHERE, *arguments, "slow", "hi", **wrong)


def test_where_nobody_listens_the_address_is_named(kind: Kind) -> None:
    for ask in (lambda: call(kind, NOWHERE, "health"), lambda: chunks(kind, NOWHERE, "slow", "hi")):
        with pytest.raises(Unreachable, match=re.escape(NOWHERE)) as raised:
            ask()
        assert raised.value.code == "unreachable"


@pytest.mark.parametrize("url", ["", "localhost:8008", "ftp://localhost", "http://", "http://[::"])
def test_what_is_no_address_is_refused(kind: Kind, url: str) -> None:
    with pytest.raises(InvalidRequest, match="no address"):
        kind(url)


def test_the_clients_own_timeout_is_a_deadline(slow: Served, kind: Kind) -> None:
    with pytest.raises(DeadlineExceeded):
        call(kind, slow.rest, "infer", "slow", "hi", max_tokens=LONG, timeout_s=0.1)
    _freed(slow)


# --- streams ---
def test_a_stream_that_is_closed_early_frees_its_slot(slow: Served, kind: Kind) -> None:
    [chunk] = chunks(kind, slow.rest, "slow", "hi", max_tokens=LONG, first=1)
    assert chunk.text == "w0 "
    _freed(slow)


def _freed(served: Served) -> None:
    with Client(served.rest) as client:
        wait_until(lambda: client.status().active_requests == 0, what="the slot")


def test_a_connection_that_breaks_is_told_as_such(tmp_path: Path, kind: Kind) -> None:
    file = tiny_gguf(tmp_path / "m.gguf")
    with serving(tmp_path / "data", links=[("m", file)], fake={"token_s": 0.02}) as running:

        def end(chunk: types.InferenceChunk) -> None:
            if chunk.text == "w1 ":
                running.process.kill()

        with pytest.raises(Unreachable, match="broke"):
            _each(kind, running.rest, end)


def _each(kind: Kind, url: str, see: Any) -> None:
    if kind is Client:
        with Client(url) as client:
            for chunk in client.stream("m", "hi", max_tokens=LONG):
                see(chunk)
        return

    async def asked() -> None:
        async with AsyncClient(url) as client:
            async for chunk in client.stream("m", "hi", max_tokens=LONG):
                see(chunk)

    asyncio.run(asked())


# --- addresses ---
class _Seen(BaseHTTPRequestHandler):
    """Answers health under /behind/a/proxy, and everything else as some other server would."""

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        body = b"<html>It works!</html>"
        if self.path == "/behind/a/proxy/health":
            key = self.headers.get("X-API-Key", "")
            body = json.dumps(
                {"status": "healthy", "timestamp": "2026-01-01T00:00:00Z", "components": {"key": key}}
            ).encode()
        self.send_response({"/missing/health": 404, "/moved/health": 302}.get(self.path, 200))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def other_server() -> Iterator[str]:
    """The address of an HTTP server that is no coordinator."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Seen) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("ending", ["", "/"])
def test_a_coordinator_may_stand_behind_a_path(other_server: str, kind: Kind, ending: str) -> None:
    assert call(kind, f"{other_server}/behind/a/proxy{ending}", "health").status == "healthy"


def test_a_trailing_slash_does_no_harm(served: Served, kind: Kind) -> None:
    assert call(kind, f"{served.rest}/", "health").status == "healthy"


@pytest.mark.parametrize(("path", "status"), [("", 200), ("/missing", 404), ("/moved", 302)])
def test_an_answer_of_something_else_is_an_error_and_not_a_riddle(
    other_server: str, kind: Kind, path: str, status: int
) -> None:
    with pytest.raises(ModelOpsError, match=f"HTTP {status}, and not from a coordinator"):
        call(kind, other_server + path, "health")


def test_the_address_for_openais_clients_is_told_as_that(served: Served, kind: Kind) -> None:
    with pytest.raises(ModelOpsError, match="HTTP 404, and not from a coordinator; /v1 is for OpenAI's clients: leave"):
        call(kind, f"{served.rest}/v1/", "health")


def test_the_key_is_sent(other_server: str, kind: Kind) -> None:
    client = kind(f"{other_server}/behind/a/proxy", api_key="s3cret")
    asked = client.health()
    answer = asked if isinstance(asked, types.HealthResponse) else asyncio.run(asked)
    assert answer.components == {"key": "s3cret"}
    closing = client.close()
    if closing is not None:
        asyncio.run(closing)


# --- the page ---
def test_the_snippets_of_the_page_run(served: Served, kind: Kind) -> None:
    page = (Path(__file__).parents[1] / "docs" / "client.md").read_text()
    [snippet] = [found for found in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if f" {kind.__name__}" in found]
    code = snippet.replace("http://127.0.0.1:8008", served.rest)
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is 4." in done.stdout
