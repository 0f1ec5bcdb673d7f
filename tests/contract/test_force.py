"""Unloading by force, over all transports: in whatever state a model is, it goes, and who waits for it is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from contract.stages import ASK, LONG, at_rest, gate, refused, status, until
from contract.wires import Wire
from support import Served, tiny_gguf, wait_until


# --- unloaded by force ---
def test_force_ends_a_load_and_who_waits_for_it_is_told(
    wire: Wire, staged: Served, threads: ThreadPoolExecutor
) -> None:
    model = f"gated-{wire.name}"
    waiting = [threads.submit(wire.call, "load_model", {"model_name": model})]
    until(wire, model, "loading")  # the load was taken: later than the unloading it would start another one
    waiting += [threads.submit(wire.call, "infer", {"model_name": model, **ASK}) for _ in range(2)]
    wait_until(lambda: wire.info(model).queued_requests == 2)
    refused(wire.call("unload_model", {"model_name": model}), "unload_model", "conflict", "being loaded")
    assert wire.ok("unload_model", model_name=model, force=True).memory_freed_mb > 30
    for answer in waiting:
        refused(answer.result(), "infer", "overloaded", f"'{model}' was unloaded")
        assert answer.result().retry_after_s
    at_rest(wire, staged, model)


def test_force_ends_the_requests_in_flight_and_those_that_wait(
    wire: Wire, staged: Served, threads: ThreadPoolExecutor
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
    at_rest(wire, staged, model)


def test_force_ends_an_unload_that_waits(wire: Wire, staged: Served, threads: ThreadPoolExecutor) -> None:
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
    at_rest(wire, staged, model)


def test_force_ends_the_attempts_to_restart(wire: Wire, staged: Served, threads: ThreadPoolExecutor) -> None:
    model = f"crashing-{wire.name}"
    wire.ok("load_model", model_name=model)
    asked = threads.submit(wire.call, "infer", {"model_name": model, **ASK})  # once more, when it is restarted
    wait_until(lambda: "not yet" in wire.info(model).message, what="an attempt that failed")
    wire.ok("unload_model", model_name=model, force=True)
    refused(asked.result(), "infer", "overloaded", f"'{model}' was unloaded")
    wait_until(lambda: not any(model in process.cmdline() for process in staged.engines() if process.is_running()))
    at_rest(wire, staged, model)


def test_force_forgets_a_failure(wire: Wire, staged: Served) -> None:
    model = f"broken-{wire.name}"
    refused(wire.call("load_model", {"model_name": model}), "load_model", "engine_failed", "out of luck")
    assert status(wire, model) == "failed"
    wire.ok("unload_model", model_name=model, force=True)
    at_rest(wire, staged, model)
    refused(wire.call("unload_model", {"model_name": model, "force": True}), "unload_model", "conflict", "not loaded")


def test_force_ends_a_model_together_with_the_version_that_was_to_replace_it(
    wire: Wire, staged: Served, threads: ThreadPoolExecutor
) -> None:
    model = f"gated-{wire.name}"
    gate(staged, model).touch()
    tiny_gguf(staged.data_dir / "models" / "sub" / f"{model}.gguf", general__name=model)
    label = wire.ok("register_version", model_name=model, model_path=f"sub/{model}.gguf").model_version
    wire.ok("load_model", model_name=model)
    gate(staged, model).unlink()
    chunks = wire.stream({"model_name": model, **LONG})
    next(chunks)
    swapping = threads.submit(wire.call, "activate_version", {"model_name": model, "model_version": label})
    starts = staged.data_dir / f"starts of {model}"
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
    at_rest(wire, staged, model)
    assert wire.info(model).model_version == "v1"
