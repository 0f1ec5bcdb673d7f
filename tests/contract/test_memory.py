"""What fits, what goes for it, and what is told of it: the same over all transports, and true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from contract import wires
from contract.openapi import conforms
from contract.wires import BY_NAME, TRANSPORTS, Answer, Wire
from support import Served, serving, tiny_gguf, wait_until

BUDGET = 130  # MB: two of the small models fit
ASK = {"input_text": "Hello", "max_tokens": 2, "temperature": 0.0}
SMALL = ("a", "b", "c")


@pytest.fixture(scope="module")
def small_served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with little memory: small models, and `wide` and `wider`, whose context costs much."""
    folder = tmp_path_factory.mktemp("small")
    links = [(name, tiny_gguf(folder / name, general__name=name)) for name in SMALL]
    wide = {"llama__block_count": 64, "llama__context_length": 32_768}
    links += [(name, tiny_gguf(folder / name, general__name=name, **wide)) for name in ("wide", "wider")]
    env = {"MODELOPS_MEMORY__BUDGET_MB": str(BUDGET), "MODELOPS_ENGINE__CONTEXT_LENGTH": "8192"}
    with serving(folder, links=links, fake={"token_s": 0.02}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def wires_of(small_served: Served) -> Iterator[dict[str, Wire]]:
    with wires.connected(small_served) as found:
        yield found


@pytest.fixture
def clients(wires_of: dict[str, Wire], small_served: Served) -> dict[str, Wire]:
    """Clients of the coordinator, with nothing loaded."""
    rest = wires_of["rest"]
    for model in rest.ok("list_models").models:
        rest.call("unload_model", {"model_name": model.model_name, "force": True})
    wait_until(lambda: not small_served.engines())
    assert reserved(rest) == 0
    return wires_of


def reserved(wire: Wire) -> int:
    """MB of RAM that the ledger holds."""
    (device,) = wire.ok("status").devices
    return int(device.reserved_mb)


def loaded(wire: Wire) -> list[str]:
    return [model.model_name for model in wire.ok("list_models").models if model.status == "loaded"]


def does_not_fit(transport: str, answer: Answer, operation: str = "load_model") -> dict[str, str]:
    """The bill."""
    assert answer.code == "insufficient_memory", answer.seen
    assert answer.status in ("507", "RESOURCE_EXHAUSTED", "")
    if transport == "rest":
        conforms(BY_NAME[operation].route, answer)
    return answer.details


def settings(way: str) -> dict[str, Any]:
    """What a bill says would fit, as the fields of a load."""
    found = re.findall(r"(context_length|slots|cache_type) (\w+)", way)
    assert found, way
    return {name: int(value) if value.isdecimal() else value for name, value in found}


# --- dry runs ---
def test_a_dry_run_tells_the_same_plan_everywhere_and_does_nothing(
    clients: dict[str, Wire], small_served: Served
) -> None:
    wish = {"model_name": "a", "context_length": 512, "slots": 2, "cache_type": "q8_0", "pin": True}
    replies = [wire.ok("load_model", **wish, dry_run=True) for wire in clients.values()]
    assert replies[0] == replies[1] == replies[2]
    plan = replies[0].plan
    assert (plan.context_length, plan.slots, plan.cache_type, plan.threads) == (512, 2, "q8_0", 1)
    assert [(device.device, device.layers) for device in plan.devices] == [("cpu", 3)]  # two, and the output
    assert plan.devices[0].memory_mb == plan.needed_mb == replies[0].memory_usage_mb > 30
    assert list(plan.evict) == []
    rest = clients["rest"]
    assert (small_served.engines(), reserved(rest), rest.info("a").status) == ([], 0, "available")
    real = rest.ok("load_model", **wish)
    assert not real.HasField("plan")
    assert real.memory_usage_mb == replies[0].memory_usage_mb
    assert dict(rest.info("a").devices) == {"cpu": real.memory_usage_mb}


def test_a_dry_run_names_what_would_go_and_the_load_lets_just_that_go(clients: dict[str, Wire]) -> None:
    rest = clients["rest"]
    for name in ("a", "b"):
        rest.ok("infer", model_name=name, **ASK)
    plans = [wire.ok("load_model", model_name="c", dry_run=True).plan for wire in clients.values()]
    assert plans[0] == plans[1] == plans[2]
    (victim,) = plans[0].evict
    (stays,) = {"a", "b"} - {victim}
    assert loaded(rest) == ["a", "b"]
    rest.ok("load_model", model_name="c")
    assert loaded(rest) == sorted([stays, "c"])
    assert reserved(rest) <= BUDGET


# --- the bill ---
def test_the_bill_is_the_same_for_a_load_a_dry_run_and_a_request_on_all_transports(
    clients: dict[str, Wire], small_served: Served
) -> None:
    clients["rest"].ok("load_model", model_name="a", pin=True)
    bills = []
    for transport, wire in clients.items():
        for operation, fields in (("load_model", {}), ("load_model", {"dry_run": True}), ("infer", ASK)):
            answer = wire.call(operation, {"model_name": "wide", **fields})
            bills.append(does_not_fit(transport, answer, operation))
            assert f"'wide' needs {bills[-1]['needed_mb']} MB" in answer.message
            assert f"'a' {bills[-1]['held_mb.a']} MB" in answer.message
    assert bills == [bills[0]] * 9
    bill = bills[0]
    held = clients["rest"].info("a").memory_usage_mb
    assert int(bill["held_mb.a"]) == int(bill["reserved_mb"]) == int(bill["reserved_mb.cpu"]) == held
    assert int(bill["evictable_mb"]) == 0  # it is pinned
    assert BUDGET - held - 1 <= int(bill["free_mb.cpu"]) <= BUDGET - held
    assert int(bill["needed_mb"]) > BUDGET
    assert loaded(clients["rest"]) == ["a"]
    assert len(small_served.engines()) == 2


def test_what_a_bill_says_would_fit_is_loaded_when_it_is_followed(clients: dict[str, Wire]) -> None:
    bill = does_not_fit("rest", clients["rest"].call("load_model", {"model_name": "wide"}))
    ways = [value for key, value in sorted(bill.items()) if key.startswith("would_fit.")]
    assert [way for way in ways if way.startswith("context_length")]
    assert [way for way in ways if way.startswith("slots")]
    for transport, way in zip(TRANSPORTS * 2, ways, strict=False):
        wire, wish = clients[transport], settings(way)
        assert way in clients["rest"].call("load_model", {"model_name": "wide"}).message
        planned = wire.ok("load_model", model_name="wide", dry_run=True, **wish)
        done = wire.ok("load_model", model_name="wide", **wish)
        assert done.memory_usage_mb == planned.memory_usage_mb <= BUDGET
        info = wire.info("wide")
        assert {name: getattr(info, name) for name in wish} == wish
        wire.ok("unload_model", model_name="wide")
        # It is the largest that fits: the next larger one does not.
        if wish.keys() == {"context_length"}:
            larger = {"context_length": wish["context_length"] * 2}
            does_not_fit(transport, wire.call("load_model", {"model_name": "wide", **larger}))


# --- eviction ---
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("how", ["load_model", "infer"])
def test_an_idle_model_goes_for_another(transport: str, how: str, clients: dict[str, Wire]) -> None:
    wire = clients[transport]
    for name in ("a", "b", "c", "a"):
        wire.ok(how, model_name=name, **(ASK if how == "infer" else {}))
        assert name in loaded(wire)
        assert reserved(wire) <= BUDGET
        # Which of the others stays is decided by what it would cost to load it again.
        assert len(loaded(wire)) <= 2
    for name in SMALL:
        assert wire.info(name).status in ("loaded", "available")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_busy_model_never_goes(transport: str, clients: dict[str, Wire]) -> None:
    wire, rest = clients[transport], clients["rest"]
    rest.ok("load_model", model_name="a", pin=True)  # so that only one is left to evict
    chunks = rest.stream({"model_name": "b", "input_text": "Hello", "max_tokens": 2000})
    assert next(chunks).text == "w0 "
    assert rest.info("b").active_requests == 1
    for operation, fields in (("load_model", {}), ("infer", ASK)):
        bill = does_not_fit(transport, wire.call(operation, {"model_name": "c", **fields}), operation)
        assert bill["evictable_mb"] == "0"
        assert {"held_mb.a", "held_mb.b"} <= bill.keys()
    assert next(chunks).text == "w1 "
    chunks.close()
    wait_until(lambda: rest.info("b").active_requests == 0)
    wire.ok("load_model", model_name="c")
    assert loaded(wire) == ["a", "c"]


# --- explaining ---
def test_a_models_memory_is_explained_the_same_everywhere_before_and_after_it_was_measured(
    clients: dict[str, Wire],
) -> None:
    rest, found = clients["rest"], list[Any]()

    def at_one_moment() -> bool:
        found[:] = [wire.ok("explain_model", model_name="c") for wire in (rest, clients["grpc"], clients["zmq"], rest)]
        return bool(found[0] == found[-1])

    def explained() -> Any:
        wait_until(at_one_moment, what="that nothing is measured meanwhile")
        assert found[0] == found[1] == found[2]
        return found[0]

    before = explained()
    assert sum(line.mb for line in before.computed) == pytest.approx(before.computed_mb, abs=0.1)
    assert {"weights", "kv cache", "compute"} <= {line.name for line in before.computed}
    assert before.refusal == ""
    rest.ok("infer", model_name="c", **ASK)
    wait_until(lambda: rest.ok("explain_model", model_name="c").measured_mb, what="a measurement")
    after = explained()
    assert (after.model_name, after.model_version) == ("c", "v1")
    assert after.computed == before.computed
    assert after.chosen_mb == after.measured_mb > 0
    assert "measured" in after.chosen_from
    assert after.plan.devices[0].memory_mb == rest.info("c").memory_usage_mb
    rest.ok("unload_model", model_name="c")
    assert rest.ok("load_model", model_name="c", dry_run=True).plan.needed_mb == int(after.measured_mb)


def test_what_would_not_fit_is_explained_with_the_reason(clients: dict[str, Wire]) -> None:
    found = [wire.ok("explain_model", model_name="wider") for wire in clients.values()]
    assert found[0] == found[1] == found[2]
    assert not found[0].HasField("plan")
    assert "'wider' needs" in found[0].refusal
    assert found[0].chosen_mb > BUDGET
