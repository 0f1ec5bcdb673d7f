"""Every state of a model, seen and ended over all transports: loads that are not waited for, watching, unloading."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

from bad_http import Answer as Served_
from bad_http import BadServer, bad_server
from contract import wires
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Answer, Refused, Wire
from support import Served, serving, tiny_gguf, wait_until

ASK = {"input_text": "Hello", "max_tokens": 2, "temperature": 0.0}
LONG = ASK | {"max_tokens": 2000}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with a model of each kind for each transport: `gated` is loaded when a file of that name is there,
    `broken` never, `crashing` once; it fetches from this machine."""
    folder = tmp_path_factory.mktemp("states")
    kinds: dict[str, dict[str, Any]] = {
        "broken": {"load_fails": "error: out of luck"},
        "plain": {},
        "crashing": {"load_fails": ["", *["error: not yet"] * 9], "die_after": 1},
        "gated": {},
    }
    behaviours = {
        f"{kind}-{transport}": behaviour | {"count_file": str(folder / f"starts of {kind}-{transport}")}
        for kind, behaviour in kinds.items()
        for transport in TRANSPORTS
    }
    for name in behaviours:
        if name.startswith("gated"):
            behaviours[name]["ready_file"] = str(folder / "gates" / name)
    (folder / "gates").mkdir()
    links = [(name, tiny_gguf(folder / "tiny")) for name in behaviours]
    env = {"MODELOPS_MODELS__ALLOW_PRIVATE_SOURCES": "true"}
    fake = {"token_s": 0.02, "models": behaviours}
    with serving(folder, links=links, fake=fake, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def clients(served: Served) -> Iterator[dict[str, Wire]]:
    with wires.connected(served) as found:
        yield found


@pytest.fixture(params=TRANSPORTS)
def wire(request: pytest.FixtureRequest, clients: dict[str, Wire]) -> Wire:
    """A client of each transport."""
    return clients[request.param]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def gate(served: Served, model: str) -> Path:
    """The file that lets the model come."""
    return served.data_dir / "gates" / model


def status(wire: Wire, model: str) -> str:
    return wire.info(model).status


def until(wire: Wire, model: str, wanted: str) -> None:
    wait_until(lambda: status(wire, model) == wanted, what=f"'{model}' being {wanted}")


def at_rest(wire: Wire, served: Served, model: str) -> None:
    """Nothing of the model is left but its registration."""
    assert status(wire, model) == "available"
    info = wire.info(model)
    assert (info.memory_usage_mb, info.active_requests, info.queued_requests, info.message) == (0, 0, 0, "")
    told = wire.ok("status")
    listed = wire.ok("list_models").models
    # Of each model the whole MB are told, and of all together too.
    assert 0 <= told.devices[0].reserved_mb - sum(other.memory_usage_mb for other in listed) < max(1, len(listed))
    assert not any(model in process.cmdline() for process in served.engines() if process.is_running())


def refused(answer: Answer, operation: str, code: str, *named: str) -> None:
    assert answer.code == code, answer.seen
    for name in named:
        assert name in answer.message
    if answer.headers:
        conforms(BY_NAME[operation].route, answer)


# --- not waited for ---
def test_a_load_that_is_not_waited_for_is_told_by_the_state(wire: Wire, served: Served) -> None:
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
    gate(served, model).touch()
    until(wire, model, "loaded")
    refused(wire.call("load_model", {"model_name": model, "wait": False}), "load_model", "conflict", "already loaded")
    wire.ok("unload_model", model_name=model)
    gate(served, model).unlink()


def test_a_load_that_fails_later_is_told_by_the_state(wire: Wire, served: Served) -> None:
    model = f"broken-{wire.name}"
    assert wire.call("load_model", {"model_name": model, "wait": False}).code == ""
    until(wire, model, "failed")
    assert "out of luck" in wire.info(model).message
    refused(wire.call("infer", {"model_name": model, **ASK}), "infer", "engine_failed", "out of luck")
    wire.ok("unload_model", model_name=model)  # which is also how a failure is forgotten
    at_rest(wire, served, model)


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


def test_a_load_is_watched_to_its_end(wire: Wire, served: Served) -> None:
    model = f"gated-{wire.name}"
    wire.ok("load_model", model_name=model, wait=False)
    events = wire.events(model)
    first = next(events)
    assert (first.model.model_name, first.model.status, first.done) == (model, "loading", False)
    gate(served, model).touch()
    *_, last = events
    assert (last.model.status, last.done) == ("loaded", True)
    assert last.model.context_length > 0
    wire.ok("unload_model", model_name=model)
    gate(served, model).unlink()


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


def test_a_watcher_may_leave_and_its_own_time_may_end(wire: Wire, served: Served) -> None:
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
    at_rest(wire, served, model)


def test_a_req_socket_cannot_watch_and_is_told_so(served: Served) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(served.zmq)
        socket.send_json({"action": "watch_model", "payload": {"model_name": "plain-zmq"}, "request_id": "1"})
        told = json.loads(socket.recv())
        assert (told["success"], told["code"], told["request_id"]) == (False, "invalid_request", "1")
        assert "DEALER" in told["error"]
        socket.send_json({"action": "get_model", "payload": {"model_name": "plain-zmq"}})
        assert json.loads(socket.recv())["success"]


# --- fetched ---
@pytest.fixture
def origin() -> Iterator[BadServer]:
    """Another server, which has models."""
    with bad_server() as server:
        yield server


def held(origin: BadServer, name: str, folder: Path) -> Served_:
    """A model of 4 MB there, of which half comes until it is released."""
    file = tiny_gguf(folder / name, general__name=name)
    with file.open("ab") as whole:
        whole.truncate(4 * 2**20)
    origin.answers[f"/{name}"] = found = Served_(content=file.read_bytes(), hold=2 * 2**20)
    return found


def test_a_model_is_fetched_and_loaded_while_it_is_watched(
    wire: Wire, origin: BadServer, served: Served, tmp_path: Path
) -> None:
    name = f"fetched-{wire.name}"
    there = held(origin, f"{name}.gguf", tmp_path)
    source = origin.url(f"/{name}.gguf")
    reply = wire.ok("load_model", model_name=name, model_path=source, wait=False, slots=3)
    assert "events" in reply.message
    events = wire.events(name)
    coming = next(event.model for event in events if event.model.progress)
    assert coming.status == "loading"
    assert re.fullmatch("fetching: [012] MB of 4 MB", coming.message)
    assert 0.0 < coming.progress <= 0.5
    assert name in [model.model_name for model in wire.ok("list_models").models]
    refused(wire.call("unload_model", {"model_name": name}), "unload_model", "conflict", "on its way", "force")
    there.release.set()
    *_, last = events
    assert (last.model.status, last.model.slots, last.done) == ("loaded", 3, True)
    assert wire.ok("infer", model_name=name, **ASK).model_version == "v1"
    wire.ok("unload_model", model_name=name)
    removal = wire.ok("remove_version", model_name=name, model_version="all")
    assert removal.freed_mb == 4
    assert not (served.data_dir / "models" / f"{name}.gguf").exists()


def test_a_fetch_is_ended_by_force(wire: Wire, origin: BadServer, tmp_path: Path, threads: ThreadPoolExecutor) -> None:
    name = f"unwanted-{wire.name}"
    held(origin, f"{name}.gguf", tmp_path)
    asked = {"model_name": name, "model_path": origin.url(f"/{name}.gguf")}
    waiting = threads.submit(wire.call, "load_model", asked)
    wait_until(lambda: origin.requests, what="the beginning of the fetch")
    assert wire.ok("load_model", **asked, wait=False).success  # it joins
    wire.ok("unload_model", model_name=name, force=True)
    refused(waiting.result(), "load_model", "overloaded", f"'{name}' was unloaded")
    refused(wire.call("get_model", {"model_name": name}), "get_model", "not_found", name)
    wait_until(origin.gone.is_set, what="the end of the connection")


def test_a_version_is_fetched_in_the_background(wire: Wire, origin: BadServer, tmp_path: Path) -> None:
    model, name = f"plain-{wire.name}", f"second-{wire.name}.gguf"
    there = held(origin, name, tmp_path)
    wire.ok("load_model", model_name=model)
    asked = {"model_name": model, "model_path": origin.url(f"/{name}")}
    answer = wire.call("register_version", asked | {"wait": False})
    assert answer.status in ("202", "OK", "")
    assert (answer.result.model_name, answer.result.model_version) == (model, "")
    assert wire.ok("infer", model_name=model, **ASK).model_version == "v1"  # it serves on
    there.release.set()
    found = wait_until(lambda: list(wire.ok("list_versions", model_name=model).versions)[1:], what="the version")
    assert [(version.model_version, version.active, version.size_mb) for version in found] == [("v2", False, 4)]
    assert wire.ok("register_version", **asked) == found[0]  # the same source is the same version
    wire.ok("unload_model", model_name=model)
    wire.ok("remove_version", model_name=model, model_version="v2")


def test_a_fetch_that_fails_is_watched_to_its_reason(wire: Wire, origin: BadServer) -> None:
    name = f"missing-{wire.name}"
    asked = {"model_name": name, "model_path": origin.url("/missing.gguf")}
    wire.ok("load_model", **asked, wait=False)
    *_, last = wire.events(name)
    assert (last.model.model_name, last.model.status, last.done) == (name, "failed", True)
    assert "missing.gguf" in last.model.message
    assert wire.info(name).status == "failed"  # kept, for whoever comes later
    wire.ok("unload_model", model_name=name)  # forgotten
    refused(wire.call("get_model", {"model_name": name}), "get_model", "not_found", name)
    refused(wire.call("load_model", asked), "load_model", "not_found", "missing.gguf")  # its caller has been told
    refused(wire.call("get_model", {"model_name": name}), "get_model", "not_found", name)


# --- unloaded by force ---
def test_force_ends_a_load_and_who_waits_for_it_is_told(
    wire: Wire, served: Served, threads: ThreadPoolExecutor
) -> None:
    model = f"gated-{wire.name}"
    waiting = [
        threads.submit(wire.call, operation, {"model_name": model, **fields})
        for operation, fields in (("load_model", {}), ("infer", ASK), ("infer", ASK))
    ]
    wait_until(lambda: (info := wire.info(model)).status == "loading" and info.queued_requests == 2)
    refused(wire.call("unload_model", {"model_name": model}), "unload_model", "conflict", "being loaded")
    assert wire.ok("unload_model", model_name=model, force=True).memory_freed_mb > 30
    for answer in waiting:
        refused(answer.result(), "infer", "overloaded", f"'{model}' was unloaded")
        assert answer.result().retry_after_s
    at_rest(wire, served, model)


def test_force_ends_the_requests_in_flight_and_those_that_wait(
    wire: Wire, served: Served, threads: ThreadPoolExecutor
) -> None:
    model = f"plain-{wire.name}"
    wire.ok("load_model", model_name=model, slots=1)
    chunks = wire.stream({"model_name": model, **LONG})
    assert next(chunks).text == "w0 "
    waiting = threads.submit(wire.call, "infer", {"model_name": model, **ASK})
    wait_until(lambda: wire.info(model).queued_requests == 1)
    wire.ok("unload_model", model_name=model, force=True)
    *_, last = chunks
    assert (last.done, last.final.success) == (True, False)
    assert f"'{model}' was unloaded" in last.final.error_message
    refused(waiting.result(), "infer", "overloaded", "was unloaded")
    at_rest(wire, served, model)


def test_force_ends_an_unload_that_waits(wire: Wire, served: Served, threads: ThreadPoolExecutor) -> None:
    model = f"plain-{wire.name}"
    chunks = wire.stream({"model_name": model, **LONG})
    next(chunks)
    unloading = threads.submit(wire.call, "unload_model", {"model_name": model})
    until(wire, model, "unloading")
    asked = threads.submit(wire.call, "infer", {"model_name": model, **ASK})  # it waits for the next engine
    wait_until(lambda: wire.info(model).queued_requests == 1)
    wire.ok("unload_model", model_name=model, force=True)
    *_, last = chunks
    assert not last.final.success
    assert unloading.result().code == ""
    assert asked.result().code == "", asked.result().seen
    until(wire, model, "loaded")
    wire.ok("unload_model", model_name=model, force=True)
    at_rest(wire, served, model)


def test_force_ends_the_attempts_to_restart(wire: Wire, served: Served) -> None:
    model = f"crashing-{wire.name}"
    wire.ok("load_model", model_name=model)
    refused(wire.call("infer", {"model_name": model, **ASK}), "infer", "engine_failed", "SIGKILL")
    wait_until(lambda: "not yet" in wire.info(model).message, what="an attempt that failed")
    wire.ok("unload_model", model_name=model, force=True)
    wait_until(lambda: not any(model in process.cmdline() for process in served.engines() if process.is_running()))
    at_rest(wire, served, model)


def test_force_forgets_a_failure(wire: Wire, served: Served) -> None:
    model = f"broken-{wire.name}"
    refused(wire.call("load_model", {"model_name": model}), "load_model", "engine_failed", "out of luck")
    assert status(wire, model) == "failed"
    wire.ok("unload_model", model_name=model, force=True)
    at_rest(wire, served, model)
    refused(wire.call("unload_model", {"model_name": model, "force": True}), "unload_model", "conflict", "not loaded")


def test_force_ends_a_model_together_with_the_version_that_was_to_replace_it(
    wire: Wire, served: Served, threads: ThreadPoolExecutor
) -> None:
    model = f"gated-{wire.name}"
    gate(served, model).touch()
    tiny_gguf(served.data_dir / "models" / "sub" / f"{model}.gguf", general__name=model)
    label = wire.ok("register_version", model_name=model, model_path=f"sub/{model}.gguf").model_version
    wire.ok("load_model", model_name=model)
    gate(served, model).unlink()
    chunks = wire.stream({"model_name": model, **LONG})
    next(chunks)
    swapping = threads.submit(wire.call, "activate_version", {"model_name": model, "model_version": label})
    starts = served.data_dir / f"starts of {model}"
    before = len(starts.read_text().splitlines())
    wait_until(lambda: len(starts.read_text().splitlines()) > before or swapping.done(), what="the second engine")
    refused(wire.call("unload_model", {"model_name": model}), "unload_model", "conflict", "being loaded")
    again = wire.call("roll_back", {"model_name": model})
    assert again.code == "conflict", again.seen
    wire.ok("unload_model", model_name=model, force=True)
    refused(swapping.result(), "activate_version", "overloaded", "was unloaded")
    *_, last = chunks
    assert not last.final.success
    wait_until(lambda: wire.ok("status").devices[0].reserved_mb == 0 or wire.ok("list_models").models)
    at_rest(wire, served, model)
    assert wire.info(model).model_version == "v1"
