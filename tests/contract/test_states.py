"""A model's states, over all transports: loads that are not waited for, and what a watcher sees."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

from contract.openapi import conforms
from contract.stages import ASK, LONG, at_rest, gate, refused, status, until
from contract.wires import BY_NAME, Refused, Wire
from support import Served


# --- not waited for ---
def test_a_load_that_is_not_waited_for_is_told_by_the_state(wire: Wire, staged: Served) -> None:
    model = f"gated-{wire.name}"
    answer = wire.call("load_model", {"model_name": model, "wait": False})
    assert answer.code == ""
    assert answer.status in ("202", "OK", "")
    if wire.name == "rest":
        conforms(BY_NAME["load_model"].route, answer)
    assert answer.result.model_version == "v1"
    assert status(wire, model) == "loading"
    again = wire.call("load_model", {"model_name": model, "wait": False})  # it joins
    assert again.code == ""
    gate(staged, model).touch()
    until(wire, model, "loaded")
    refused(wire.call("load_model", {"model_name": model, "wait": False}), "load_model", "conflict", "already loaded")
    wire.ok("unload_model", model_name=model)
    gate(staged, model).unlink()


def test_a_load_that_fails_later_is_told_by_the_state(wire: Wire, staged: Served) -> None:
    model = f"broken-{wire.name}"
    assert wire.call("load_model", {"model_name": model, "wait": False}).code == ""
    until(wire, model, "failed")
    assert "out of luck" in wire.info(model).message
    again = wire.call("infer", {"model_name": model, **ASK})
    refused(again, "infer", "overloaded", f"'{model}' has failed", "out of luck")
    assert 0 < (again.retry_after_s or 0) <= 15
    wire.ok("unload_model", model_name=model)  # which is also how a failure is forgotten
    at_rest(wire, staged, model)


def test_what_is_wrong_with_a_load_is_told_at_once(wire: Wire) -> None:
    for fields, code in (({"model_path": "no.gguf"}, "not_found"), ({"model_path": "ftp://x/y"}, "invalid_request")):
        refused(wire.call("load_model", {"model_name": "new", "wait": False, **fields}), "load_model", code)
        refused(wire.call("register_version", {"model_name": "new", "wait": False, **fields}), "register_version", code)


# --- watched ---
def test_watching_what_rests_ends_at_once(wire: Wire) -> None:
    model = f"plain-{wire.name}"
    for operation, rests in (("load_model", "loaded"), ("unload_model", "available")):
        wire.ok(operation, model_name=model)
        (event,) = wire.events(model)
        assert (event.model.status, event.done) == (rests, True)
        told = wire.info(model)
        for seen in (event.model, told):
            seen.digest = ""  # it comes a moment after the load
        assert event.model == told


def test_a_load_is_watched_to_its_end(wire: Wire, staged: Served) -> None:
    model = f"gated-{wire.name}"
    wire.ok("load_model", model_name=model, wait=False)
    events = wire.events(model)
    first = next(events)
    assert (first.model.model_name, first.model.status, first.done) == (model, "loading", False)
    gate(staged, model).touch()
    *_, last = events
    assert (last.model.status, last.done) == ("loaded", True)
    assert last.model.context_length > 0
    wire.ok("unload_model", model_name=model)
    gate(staged, model).unlink()


def test_a_load_that_fails_is_watched_to_its_reason(wire: Wire) -> None:
    model = f"broken-{wire.name}"
    wire.ok("load_model", model_name=model, wait=False)
    *_, last = wire.events(model)
    assert (last.model.status, last.done) == ("failed", True)
    assert "out of luck" in last.model.message
    wire.ok("unload_model", model_name=model)


def test_an_unload_is_watched_until_its_last_request_has_ended(wire: Wire, threads: ThreadPoolExecutor) -> None:
    model = f"plain-{wire.name}"
    chunks = wire.stream({"model_name": model, **LONG})
    next(chunks)
    unloading = threads.submit(wire.ok, "unload_model", model_name=model)
    until(wire, model, "unloading")
    events = wire.events(model)
    assert next(events).model.status == "unloading"
    assert next(chunks).text  # who is being answered is answered on
    chunks.close()
    *_, last = events
    assert (last.model.status, last.done) == ("available", True)
    assert unloading.result().success


def test_a_watcher_may_leave_and_its_own_time_may_end(wire: Wire, staged: Served) -> None:
    model = f"gated-{wire.name}"
    wire.ok("load_model", model_name=model, wait=False)
    for _ in range(3):
        events = wire.events(model)
        assert next(events).model.status == "loading"
        events.close()
    if wire.name == "grpc":
        with pytest.raises(Refused) as refused:
            list(wire.events(model, timeout_s=0.5))
        assert refused.value.answer.status == "DEADLINE_EXCEEDED"
    else:
        *_, last = wire.events(model, timeout_s=0.5)
        assert (last.model.status, last.done) == ("loading", True)
    wire.ok("unload_model", model_name=model, force=True)
    at_rest(wire, staged, model)


def test_a_req_socket_cannot_watch_and_is_told_so(staged: Served) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(staged.zmq)
        socket.send_json({"action": "watch_model", "payload": {"model_name": "plain-zmq"}, "request_id": "1"})
        told = json.loads(socket.recv())
        assert (told["success"], told["code"], told["request_id"]) == (False, "invalid_request", "1")
        assert "DEALER" in told["error"]
        socket.send_json({"action": "get_model", "payload": {"model_name": "plain-zmq"}})
        assert json.loads(socket.recv())["success"]
