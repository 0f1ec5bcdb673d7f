"""Models that are fetched from elsewhere, over all transports: watched, joined, given up, and what is left of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bad_http import Answer, BadServer, bad_server
from contract.stages import ASK, refused
from contract.wires import Wire
from support import Served, tiny_gguf, wait_until


# --- fetched ---
@pytest.fixture
def origin() -> Iterator[BadServer]:
    """Another server, which has models."""
    with bad_server() as server:
        yield server


def held(origin: BadServer, name: str, folder: Path) -> Answer:
    """A model of 4 MB there, of which half comes until it is released."""
    file = tiny_gguf(folder / name, general__name=name)
    with file.open("ab") as whole:
        whole.truncate(4 * 2**20)
    origin.answers[f"/{name}"] = found = Answer(content=file.read_bytes(), hold=2 * 2**20)
    return found


def test_a_model_is_fetched_and_loaded_while_it_is_watched(
    wire: Wire, origin: BadServer, staged: Served, tmp_path: Path
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
    assert not (staged.data_dir / "models" / f"{name}.gguf").exists()


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


def test_a_fetch_ends_with_the_time_of_the_last_who_waits_for_it(
    wire: Wire, origin: BadServer, tmp_path: Path, threads: ThreadPoolExecutor
) -> None:
    name = f"awaited-{wire.name}"
    held(origin, f"{name}.gguf", tmp_path)
    asked = {"model_name": name, "model_path": origin.url(f"/{name}.gguf")}
    longer = threads.submit(wire.call, "register_version", asked, timeout_s=3.0)
    wait_until(lambda: origin.requests, what="the beginning of the fetch")
    answers = [wire.call("load_model", asked, timeout_s=0.3)]
    assert not origin.gone.is_set()  # somebody else wants it still
    answers.append(longer.result())
    for answer, operation in zip(answers, ("load_model", "register_version"), strict=True):
        if wire.name == "grpc":  # the client's own library may see the deadline first
            assert answer.status == "DEADLINE_EXCEEDED"
        else:
            refused(answer, operation, "deadline_exceeded", name)
    wait_until(origin.gone.is_set, what="the end of the connection")
    wait_until(lambda: wire.call("get_model", {"model_name": name}).code == "not_found")
    assert len(origin.requests) == 1


def test_an_abandoned_fetch_is_pruned_and_one_that_is_under_way_is_not(
    wire: Wire, origin: BadServer, staged: Served, tmp_path: Path
) -> None:
    name = f"abandoned-{wire.name}"
    wire.ok("prune")
    held(origin, f"{name}.gguf", tmp_path)
    wire.ok("load_model", model_name=name, model_path=origin.url(f"/{name}.gguf"), wait=False)
    left = staged.data_dir / "models" / ".partial" / f"{name}.gguf"
    wait_until(lambda: sum(file.stat().st_size for file in left.glob("*.data")) == 2 * 2**20, what="half of the file")
    assert list(wire.ok("prune").removed) == []
    assert left.exists()
    wire.ok("unload_model", model_name=name, force=True)
    removal = wire.ok("prune")
    assert (list(removal.removed), removal.freed_mb) == ([f"the abandoned fetch of {name}.gguf"], 2)
    assert not left.exists()


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
