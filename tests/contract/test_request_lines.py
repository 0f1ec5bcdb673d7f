"""Each call leaves one line in the log, which says what became of it, and not what was said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract import wires
from contract.wires import TRANSPORTS, Wire
from support import Served, make_key, serving, tiny_gguf, wait_until

SECRET = "the password is swordfish"
ASK = {"model_name": "m", "input_text": SECRET, "max_tokens": 3}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, str]]:
    folder = tmp_path_factory.mktemp("told")
    links = [("m", tiny_gguf(folder / "m.gguf"))]
    with serving(folder / "data", links=links, load=["m"], fake={}) as served:
        key = make_key(served.data_dir, "alice")
        with wires.connected(served) as clients:
            wait_until(lambda: clients["rest"].call("status").code == "unauthenticated", what="the key being known")
        yield served, key


@pytest.fixture
def clients(told: tuple[Served, str]) -> Iterator[dict[str, Wire]]:
    with wires.connected(*told) as found:
        yield found


def having(served: Served, **fields: Any) -> list[dict[str, Any]]:
    """The lines of `infer` that have these fields."""
    return [line for line in lines(served, "infer") if fields.items() <= line.items()]


def lines(served: Served, operation: str = "") -> list[dict[str, Any]]:
    """The lines of calls, of one operation."""
    found = [json.loads(line) for line in served.log.read_text().splitlines()]
    wanted = f"{operation} " if operation else ""
    return [line for line in found if line["logger"] == "requests" and line["event"].startswith(wanted)]


@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_what_was_answered(protocol: str, told: tuple[Served, str], clients: dict[str, Wire]) -> None:
    tokens = 5 + TRANSPORTS.index(protocol)  # as no other call
    clients[protocol].ok("infer", **ASK | {"max_tokens": tokens})
    (line,) = wait_until(lambda: having(told[0], tokens=tokens))
    assert line["event"] == "infer ok"
    assert line["level"] == "info"
    assert (line["protocol"], line["code"], line["key"]) == (protocol, "ok", "alice")
    assert (line["model"], line["version"], line["tokens"], line["prompt_tokens"]) == ("m", "v1", tokens, 1)
    assert line["ms"] >= line["first_token_ms"] >= line["queued_ms"] >= 0
    assert line["request_id"]
    assert {"prompt", "answer", "reason", "trace_id"}.isdisjoint(line)


@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_what_was_refused(protocol: str, told: tuple[Served, str], clients: dict[str, Wire]) -> None:
    def refused() -> list[dict[str, Any]]:
        return [line for line in lines(told[0], "infer") if line["protocol"] == protocol and line["code"] != "ok"]

    before = len(refused())  # before the key was known
    answer = clients[protocol].call("infer", ASK | {"model_name": "no\nbody"})
    assert answer.code
    clients[protocol].key = "mok_0123abcd_" + "0" * 48
    assert clients[protocol].call("infer", ASK).code == "unauthenticated"
    first, second = wait_until(lambda: len(found := refused()[before:]) == 2 and found)
    assert (first["code"], first["key"], first["request_id"]) == (answer.code, "alice", answer.request_id)
    assert second["code"] == "unauthenticated"
    assert "key" not in second


def test_looks_are_told_at_debug_only(told: tuple[Served, str], clients: dict[str, Wire]) -> None:
    for wire in clients.values():
        wire.call("health")
    assert not lines(told[0], "health")


def test_no_prompt_and_no_key_is_told(told: tuple[Served, str], clients: dict[str, Wire]) -> None:
    for wire in clients.values():
        wire.call("infer", ASK)
        list(wire.stream(ASK))
        wire.call("infer", ASK | {"max_tokens": 100_000})
    text = told[0].log.read_text()
    assert "swordfish" not in text
    assert told[1][13:] not in text
    assert "w0 w1" not in text


def test_prompts_and_answers_are_told_where_that_is_asked_for(tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "m.gguf"))]
    env = {"MODELOPS_LOG__PROMPTS": "true"}
    with serving(tmp_path / "data", links=links, load=["m"], fake={}, env=env) as served:
        with wires.connected(served) as clients:
            clients["grpc"].ok("infer", **ASK | {"input_text": SECRET + "!" * 5000})
        (line,) = wait_until(lambda: lines(served, "infer"))
    assert line["prompt"] == (SECRET + "!" * 5000)[:2000]
    assert line["answer"] == "w0 w1 w2 "


def test_it_bears_the_id_that_its_caller_was_told(told: tuple[Served, str], clients: dict[str, Wire]) -> None:
    wire = clients["zmq"]
    for request_id, payload in (("caf\u00e9", ASK), ("true-1", ASK | {"request_id": "FORGED"})):
        message = {"action": "infer", "payload": payload, "request_id": request_id, "api_key": told[1]}
        assert wire.send("infer", json.dumps(message).encode()).request_id == request_id
        wait_until(partial(having, told[0], request_id=request_id))
    assert not [line for line in lines(told[0]) if line["request_id"] == "FORGED"]


def test_where_it_came_from(told: tuple[Served, str], clients: dict[str, Wire]) -> None:
    for protocol, wire in clients.items():
        wire.key = "mok_0123abcd_" + "0" * 48
        assert wire.call("infer", ASK).code == "unauthenticated"
        found = wait_until(partial(having, told[0], protocol=protocol, code="unauthenticated"))
        assert {line["peer"] for line in found} == {"127.0.0.1"}


def test_a_stream_is_told_to_be_one(told: tuple[Served, str], clients: dict[str, Wire]) -> None:
    list(clients["rest"].stream(ASK | {"max_tokens": 9}))
    (line,) = wait_until(lambda: having(told[0], tokens=9))
    assert line["stream"] is True


def test_nobody_fills_the_log_without_asking_for_anything(told: tuple[Served, str]) -> None:
    for _ in range(20):
        httpx.get(f"{told[0].rest}/nowhere")
    assert "nowhere" not in told[0].log.read_text()
