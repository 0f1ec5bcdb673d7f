"""Operation × transport × what a caller shows, made from the operations table: the documented answer in every cell."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract import wires
from contract.openapi import conforms
from contract.refusals import ERRORS
from contract.wires import TRANSPORTS, Answer, Refused, Rest, Wire, refusal
from modelops.access import SCOPES
from modelops.api.operations import METRICS, OPERATIONS, Operation
from support import Served, make_key, serving, tiny_gguf, wait_until

ASK = {"model_name": "m", "input_text": "Hello", "max_tokens": 1}
STATES = ("none", "wrong", "another's", "revoked", "expired", "lacking", "right", "admin")


@dataclass(frozen=True)
class Ring:
    """The keys of one coordinator: by what is the matter with them, and by the scopes that they have or lack."""

    served: Served
    plain: dict[str, str]
    having: dict[str, str]
    lacking: dict[str, str]

    def key(self, state: str, scope: str | None) -> str:
        if state in ("right", "lacking"):
            return (self.having if state == "right" else self.lacking)[scope or "metrics"]
        return self.plain[state]


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring]:
    folder = tmp_path_factory.mktemp("keys")
    links = [("m", tiny_gguf(folder / "tiny.gguf"))]
    with serving(folder / "data", links=links, load=["m"], fake={"tokens": 1}) as served:
        data = served.data_dir
        others = {
            scope: [word for other in SCOPES if other not in (scope, "admin") for word in ("--scope", other)]
            for scope in SCOPES
        }
        soon = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        expired = make_key(data, "expired", "--scope", "admin", "--expires", soon)
        made = Ring(
            served,
            {
                "none": "",
                "wrong": "mok_0123abcd_" + "0" * 48,
                "expired": expired,
                "revoked": make_key(data, "revoked", "--scope", "admin"),
                "admin": make_key(data, "admin", "--scope", "admin"),
            },
            {scope: make_key(data, f"only-{scope}", "--scope", scope) for scope in SCOPES if scope != "admin"},
            {scope: make_key(data, f"all-but-{scope}", *others[scope]) for scope in SCOPES if scope != "admin"},
        )
        # The id of one key with the secret of another.
        made.plain["another's"] = made.plain["admin"][:13] + made.plain["revoked"][13:]
        revoke(served, "revoked")
        with wires.connected(served, made.plain["revoked"]) as clients:
            wait_until(lambda: clients["rest"].call("status").code == "unauthenticated")
        with wires.connected(served, expired) as clients:
            wait_until(lambda: clients["rest"].call("status").code == "unauthenticated", seconds=20)
        yield made
        log = served.log.read_text()
        assert "Traceback" not in log
        for text in [*made.plain.values(), *made.having.values()]:
            assert not text or text[13:] not in log


@pytest.fixture(scope="module")
def clients(ring: Ring) -> Iterator[dict[str, Wire]]:
    with wires.connected(ring.served) as found:
        yield found


def revoke(served: Served, name: str) -> None:
    from cli.command import modelops

    done = modelops("keys", "revoke", name, "--data-dir", str(served.data_dir))
    assert done.returncode == 0, done.stderr


def ask(wire: Wire, operation: Operation, key: str) -> Answer:
    """The operation with fields that are right, on the one model that there is or on one that there is not."""
    wire.key = key
    required = operation.request.model_json_schema().get("required", [])
    example: dict[str, Any] = {
        "model_name": "m" if operation.name in ("infer", "chat") else "nobody",
        "input_text": "Hello",
        "messages": [{"role": "user", "content": "Hello"}],
        "inputs": ["Hello"],
        "query": "Hello",
        "documents": ["Hello"],
        "model_path": "nobody.gguf",
        "model_version": "v1",
        "job_type": "evaluate",
        "job_id": "nobody",
        "goal_id": "nobody",
        "title": "it answers",
        "objective": {"type": "availability", "models": ["nobody"]},
    }
    fields = {name: example[name] for name in required}
    if operation.stream and operation.stream.always:
        try:
            *_, _ = wire.chunks(operation.name, fields)
        except Refused as refused:
            return refused.answer
        return Answer(seen="")
    return wire.call(operation.name, fields)


def expected(state: str, scope: str | None) -> str:
    """The code with which the door is shut; empty: it opens."""
    if scope is None:
        return "unauthenticated" if state in ("wrong", "another's", "revoked", "expired") else ""
    return {"lacking": "permission_denied", "right": "", "admin": ""}.get(state, "unauthenticated")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_operation(
    operation: Operation, transport: str, state: str, ring: Ring, clients: dict[str, Wire]
) -> None:
    key = ring.key(state, operation.scope)
    answer = ask(clients[transport], operation, key)
    code = expected(state, operation.scope)
    assert not key or key[13:] not in answer.seen
    if not code:
        assert answer.code in ("", "not_found"), answer.seen
        return
    assert answer.code == code, answer.seen
    http, rpc = ERRORS[code]
    if transport == "rest":
        assert answer.status == http
        assert ("www-authenticate" in answer.headers) is (code == "unauthenticated")
        conforms(operation.route, answer)
    elif transport == "grpc":
        assert answer.status in rpc


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_streams(transport: str, state: str, ring: Ring, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    wire.key = ring.key(state, "infer")
    code = expected(state, "infer")
    if code:
        with pytest.raises(Refused) as refused:
            next(wire.stream(ASK))
        assert refused.value.answer.code == code
    else:
        assert [chunk.done for chunk in wire.stream(ASK)] == [False, True]


@pytest.mark.parametrize("state", STATES)
def test_the_page_for_prometheus(state: str, ring: Ring) -> None:
    answer = httpx.get(ring.served.rest + METRICS.path, headers={"X-API-Key": ring.key(state, METRICS.scope)})
    if code := expected(state, METRICS.scope):
        assert (answer.json()["code"], str(answer.status_code)) == (code, ERRORS[code][0])
    else:
        assert answer.headers["content-type"] == METRICS.content_type
        assert "\nmoc_rest_requests_total" in answer.text


# --- how a key is shown ---
@pytest.mark.parametrize("name", ["X-API-Key", "x-api-key", "Authorization"])
def test_both_headers(name: str, ring: Ring) -> None:
    key = ring.having["models"]
    for shown in (f"Bearer {key}", f"bearer  {key}") if name == "Authorization" else (key,):
        assert httpx.get(ring.served.rest + "/models", headers={name: shown}).status_code == 200
    for wrong in ("", "Bearer", f"Basic {key}", f"Bearer {key}x", key.upper()):
        assert httpx.get(ring.served.rest + "/models", headers={name: wrong}).status_code == 401


@pytest.mark.parametrize("name", ["x-api-key", "authorization"])
def test_both_kinds_of_metadata(name: str, ring: Ring) -> None:
    key = ring.having["models"]
    with grpc.insecure_channel(ring.served.grpc) as channel:
        rpc: Any = channel.unary_unary("/ModelOps/ListModels", None, None)
        rpc(b"", metadata=[(name, f"Bearer {key}" if name == "authorization" else key)], timeout=10)
        for wrong in ("", "Bearer", f"Basic {key}"):
            with pytest.raises(grpc.RpcError) as error:
                rpc(b"", metadata=[(name, wrong)], timeout=10)
            assert refusal(error.value).code == "unauthenticated"


def test_a_key_in_the_wrong_place_is_no_key(ring: Ring, clients: dict[str, Wire]) -> None:
    key = ring.having["models"]
    answer = httpx.get(f"{ring.served.rest}/models?api_key={key}")
    assert answer.status_code == 401
    clients["zmq"].key = ""
    assert clients["zmq"].call("list_models", {"api_key": key}).code == "unauthenticated"


# --- before anything is read ---
def test_a_stranger_is_not_told_what_is_wrong_with_its_request(ring: Ring, clients: dict[str, Wire]) -> None:
    for wire in clients.values():
        wire.key = ""
        assert wire.call("infer", {"model_name": "", "input_text": ""}).code == "unauthenticated"
    rest = clients["rest"]
    assert rest.send("infer", b"{this is no JSON").code == "unauthenticated"
    assert rest.send("infer", b"x" * (2 << 20)).code == "unauthenticated"


# --- health ---
def test_health_tells_a_stranger_the_status_and_nothing_else(ring: Ring, clients: dict[str, Wire]) -> None:
    for wire in clients.values():
        wire.key = ""
        found = wire.ok("health")
        assert (found.status, dict(found.components), found.version) == ("healthy", {}, "")
        wire.key = ring.having["metrics"]
        found = wire.ok("health")
        assert {"rest", "grpc", "zmq"} <= set(found.components)
        assert found.version


def test_probes_and_the_health_service_need_no_key(ring: Ring) -> None:
    for probe in ("live", "ready"):
        assert httpx.get(f"{ring.served.rest}/health/{probe}").status_code == 204
    with grpc.insecure_channel(ring.served.grpc) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING


# --- at once ---
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_revoked_key_stops_working_within_a_second(transport: str, ring: Ring, clients: dict[str, Wire]) -> None:
    name = f"brief-{transport}"
    key = make_key(ring.served.data_dir, name, "--scope", "models")
    wire = clients[transport]
    wire.key = key
    wait_until(lambda: wire.call("list_models").code == "", what="the new key")
    revoke(ring.served, name)
    revoked = time.monotonic()
    wait_until(lambda: wire.call("list_models").code == "unauthenticated", what="the refusal")
    assert time.monotonic() - revoked < 1
    assert f"'{name}' has been revoked" in wire.call("list_models").message


def test_without_any_key_everybody_may_and_after_the_last_was_revoked_nobody(tmp_path: Path) -> None:
    with (
        serving(tmp_path, links=[("m", tiny_gguf(tmp_path / "tiny"))], load=["m"], fake={"tokens": 1}) as served,
        wires.connected(served) as clients,
    ):
        for wire in clients.values():
            wire.key = "your-api-key-here"  # as the specification's examples have it: there is nothing to compare with
            assert wire.ok("infer", **ASK).success
        make_key(served.data_dir, "first")
        wait_until(lambda: clients["rest"].call("list_models").code == "unauthenticated", what="the first key noticed")
        revoke(served, "first")
        for wire in clients.values():
            wire.key = ""
            assert wire.call("infer", ASK).code == "unauthenticated"
        served.stop()
        assert "Traceback" not in served.log.read_text()


def test_the_keys_are_there_after_a_restart(tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "tiny"))]
    key = make_key(tmp_path / "data", "before", "--scope", "infer")
    with serving(tmp_path / "data", links=links, fake={"tokens": 1}) as served, wires.connected(served) as clients:
        for wire in clients.values():
            assert wire.call("infer", ASK).code == "unauthenticated"
            wire.key = key
            assert wire.ok("infer", **ASK).success


# --- rates ---
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_requests_over_the_rate_are_told_when_to_come_back_and_then_served(transport: str, ring: Ring) -> None:
    key = make_key(ring.served.data_dir, f"brisk-{transport}", "--scope", "infer", "--rate", "3/second")
    with wires.connected(ring.served, key) as clients:
        wire = clients[transport]
        wait_until(lambda: wire.call("infer", ASK).code == "", what="the key")
        answers = [wire.call("infer", ASK) for _ in range(20)]
        refused = [answer for answer in answers if answer.code]
        assert refused
        assert {answer.code for answer in refused} == {"rate_limited"}
        last = refused[-1]
        assert last.retry_after_s is not None and 0 < last.retry_after_s <= 1
        assert "3/second" in last.message
        if transport == "rest":
            assert last.status == "429"
            conforms(wires.BY_NAME["infer"].route, last)
        if transport == "grpc":
            assert last.status == "RESOURCE_EXHAUSTED"
        # What it was told is true: not before, and then at once.
        waiting = wire.call("infer", ASK)
        while not waiting.code:
            waiting = wire.call("infer", ASK)
        assert waiting.retry_after_s is not None
        told = time.monotonic() + waiting.retry_after_s
        wait_until(lambda: time.monotonic() >= told)
        assert wire.call("infer", ASK).code == ""
        # Another key is not touched by it.
        wire.key = ring.having["infer"]
        assert wire.call("infer", ASK).code == ""


def test_tokens_over_the_rate_end_inference_and_nothing_else(ring: Ring) -> None:
    key = make_key(ring.served.data_dir, "thrifty", "--scope", "infer", "--scope", "models", "--tokens", "4/minute")
    with wires.connected(ring.served, key) as clients:
        rest = clients["rest"]
        wait_until(lambda: rest.call("list_models").code == "", what="the key")
        spent = 0
        while not (answer := rest.call("infer", ASK)).code:
            spent += 1
            assert spent < 10
        assert answer.code == "rate_limited"
        assert answer.retry_after_s is not None and 1 < answer.retry_after_s <= 60
        assert spent == 2  # a token of the prompt and one of the answer each
        for wire in clients.values():
            assert wire.call("infer", ASK).code == "rate_limited"
            assert wire.call("list_models").code == ""
            wire.key = ring.having["infer"]
            assert wire.call("infer", ASK).code == ""


def test_rest_is_not_read_for_who_is_over_its_rate(ring: Ring) -> None:
    rest = Rest(dataclasses.replace(ring.served))
    try:
        rest.key = make_key(ring.served.data_dir, "flooding", "--scope", "infer", "--rate", "1/minute")
        wait_until(lambda: rest.call("infer", ASK).code == "rate_limited", what="the key used up")
        assert rest.send("infer", b"{this is no JSON").code == "rate_limited"
    finally:
        rest.close()
