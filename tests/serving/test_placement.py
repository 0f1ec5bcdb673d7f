"""Where a model goes: the order of preference as a table, then thousands of machines against an oracle."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.serving.placement import Bill, CpuLayers, Holder, Layout, Ledger, Plan, Wants, place
from serving.needs import machine, need, reserve
from serving.oracle import Case, large_case, small_case, subsets

#: Four layers of 10 and an output of 10, on every device 1 to compute, 5 that stay in RAM.
MODEL = need([10, 10, 10, 10], output=10, host=5, compute=1)
CASES = int(os.environ.get("PLACEMENT_CASES", "1500"))

#: id: (free, units for GPUs, mode, the split; None: it does not fit)
TABLE: dict[str, tuple[Mapping[str, int], int | None, CpuLayers, tuple[int, ...] | None]] = {
    # one GPU
    "one GPU with room for all": (machine(6, 51), None, "before_eviction", (5,)),
    "of those with room for all, the fullest": (machine(6, 90, 51, 60), None, "before_eviction", (0, 5, 0)),
    "of two equals one, always the same": (machine(6, 60, 60), None, "before_eviction", (0, 5)),
    "one GPU rather than two that would be filled": (machine(6, 21, 31, 51), None, "before_eviction", (0, 0, 5)),
    # several
    "split in the order of the numbers, each filled": (machine(6, 31, 31), None, "before_eviction", (3, 2)),
    "split over those with the most room": (machine(6, 11, 31, 31), None, "before_eviction", (0, 3, 2)),
    "split over three where two do not do": (machine(6, 21, 21, 11), None, "before_eviction", (2, 2, 1)),
    "a GPU without room for a layer is left out": (machine(6, 31, 5, 31), None, "before_eviction", (3, 0, 2)),
    "a GPU where others took more than there is": (machine(6, 31, -9, 31), None, "before_eviction", (3, 0, 2)),
    # some layers on the CPU
    "as many as go on the GPU": (machine(99, 31), None, "before_eviction", (3,)),
    "as many as go on two": (machine(99, 21, 11), None, "before_eviction", (2, 1)),
    "none, where not one goes": (machine(99, 10), None, "before_eviction", (0,)),
    "the same where it is the last choice": (machine(99, 31), None, "after_eviction", (3,)),
    "never": (machine(99, 50), None, "never", None),
    "all of them are no layers on the CPU": (machine(6, 51), None, "never", (5,)),
    "the host holds too little for the rest": (machine(25, 31), None, "before_eviction", None),
    "it holds just enough": (machine(26, 31), None, "before_eviction", (3,)),
    "the host holds too little beside the GPU": (machine(5, 99), None, "before_eviction", None),
    # as the caller says
    "none": (machine(56, 99), 0, "before_eviction", (0,)),
    "none, where layers may not stay on the CPU": (machine(56, 99), 0, "never", (0,)),
    "none, and no room": (machine(55, 99), 0, "before_eviction", None),
    "exactly two, although more would go": (machine(99, 99), 2, "before_eviction", (2,)),
    "exactly two, where layers may not stay on the CPU": (machine(99, 99), 2, "never", (2,)),
    "exactly four in two parts": (machine(99, 21, 21), 4, "before_eviction", (2, 2)),
    "exactly four, and fewer would go": (machine(99, 31), 4, "before_eviction", None),
    "more than there are": (machine(6, 51), 99, "before_eviction", (5,)),
    # no GPU
    "a machine without GPUs": (machine(56), None, "never", ()),
    "a machine without GPUs, asked for them": (machine(56), 3, "before_eviction", ()),
    "a machine without GPUs and without room": (machine(55), None, "before_eviction", None),
}


@pytest.mark.parametrize(("free", "asked", "mode", "split"), TABLE.values(), ids=TABLE)
def test_where_it_goes(
    free: Mapping[str, int], asked: int | None, mode: CpuLayers, split: tuple[int, ...] | None
) -> None:
    found = place(Wants(MODEL, asked), free, (), cpu_layers=mode)
    assert (found.layout.split if isinstance(found, Plan) else None) == split
    assert isinstance(found, Bill) or found.layout.gpu_layers == sum(split or ())


#: What goes before what in each mode: the same machine with an idle model in the way, and what is done.
HALF = [Holder("idle", {"gpu0": 30}, cost=1.0)]


@pytest.mark.parametrize(
    ("free", "asked", "mode", "expected"),
    [
        pytest.param(machine(99, 21), None, "before_eviction", ((2,), ()), id="layers on the CPU before eviction"),
        pytest.param(machine(99, 21), None, "after_eviction", ((5,), ("idle",)), id="eviction before that"),
        pytest.param(machine(99, 20), None, "after_eviction", ((1,), ()), id="but none that does not help enough"),
        pytest.param(machine(16, 0), None, "after_eviction", None, id="nothing helps"),
        pytest.param(machine(36, 1), None, "after_eviction", ((3,), ("idle",)), id="both"),
        pytest.param(machine(99, 21), None, "never", ((5,), ("idle",)), id="eviction where it is all or nothing"),
        pytest.param(machine(99, 20), None, "never", None, id="all or nothing"),
        pytest.param(machine(99, 21), 3, "before_eviction", ((3,), ("idle",)), id="eviction for exactly three"),
        pytest.param(machine(99, 31), 3, "never", ((3,), ()), id="none for what fits"),
        pytest.param(machine(99, 21, 31), None, "never", ((2, 3), ()), id="a split before eviction"),
        pytest.param(machine(99, 0), 0, "never", ((0,), ()), id="no GPU's memory for what wants none"),
    ],
)
def test_what_is_preferred(
    free: Mapping[str, int],
    asked: int | None,
    mode: CpuLayers,
    expected: tuple[tuple[int, ...], tuple[str, ...]] | None,
) -> None:
    found = place(Wants(MODEL, asked), free, HALF, cpu_layers=mode)
    assert ((found.layout.split, found.evict) if isinstance(found, Plan) else None) == expected


def test_a_tied_output_takes_memory_on_a_gpu_only() -> None:
    tied = need([10, 10], output=1, tied=9, host=12, compute=1)
    assert place(Wants(tied), machine(34), ()) == Plan(Layout({"cpu": 34}))
    assert place(Wants(tied), machine(13, 31), ()) == Plan(Layout({"cpu": 13, "gpu0": 31}, (3,)))
    assert place(Wants(tied), machine(99, 30), ()) == Plan(Layout({"cpu": 23, "gpu0": 21}, (2,)))


def test_what_holds_memory_of_a_device_that_is_not_shown_gives_none_back() -> None:
    holders = [Holder("idle", {"cpu": 10, "gpu0": 99}, cost=0.0)]
    assert isinstance(place(Wants(MODEL), machine(45), holders), Bill)
    assert place(Wants(MODEL), machine(46), holders) == Plan(Layout({"cpu": 56}), ("idle",))


# --- everything, against the oracle ---
def check(case: Case) -> str:
    """That what is found for `case` is right; returns what it was."""
    found = place(case.wants, case.free, case.holders, cpu_layers=case.cpu_layers)
    again = place(case.wants, case.free, case.holders[::-1], cpu_layers=case.cpu_layers)
    assert found == again, "deterministic, in whatever order the models are told"
    for counts, evicting in case.stages():
        if not any(case.fitting(counts, evicted) for evicted in (subsets(case.evictable) if evicting else [()])):
            continue
        assert isinstance(found, Plan), "there is a plan"
        split = found.layout.split
        splits = case.fitting(counts, found.evict)
        assert split in splits, "it fits, and is allowed"
        assert sum(split) == max(map(sum, splits)), "as many units on GPUs as go"
        alone = any(sum(map(bool, other)) == 1 for other in splits if sum(other) == sum(split))
        assert not alone or sum(map(bool, split)) == 1, "on one GPU, if one takes them"
        assert bool(found.evict) is evicting
        assert set(found.evict) <= set(case.evictable)
        for fewer in subsets(found.evict):
            assert len(fewer) == len(found.evict) or not case.fitting(counts, fewer), "evicts nothing in vain"
        return "evict" if evicting else "fits"
    assert isinstance(found, Bill), "there is no plan"
    return "bill"


def check_sums(case: Case) -> None:
    """That the plan for `case`, however large, accounts for every unit once and is never over a device's room."""
    found = place(case.wants, case.free, case.holders, cpu_layers=case.cpu_layers)
    if isinstance(found, Plan):
        layout = found.layout
        assert len(layout.split) == len(case.free) - 1
        assert layout.reserve == reserve(case.wants.need, layout.split)
        free = case.freed(found.evict)
        assert {device: size for device, size in layout.reserve.items() if size > free[device]} == {}
        assert set(found.evict) <= set(case.evictable)


@given(st.randoms(use_true_random=False))
def test_a_plan_is_found_where_there_is_one_and_evicts_no_more_than_it_must(pick: random.Random) -> None:
    check(small_case(pick))


def test_thousands_of_small_machines() -> None:
    seen = [check(small_case(random.Random(seed))) for seed in range(CASES)]
    assert min(map(seen.count, ("fits", "evict", "bill"))) > CASES // 10, "the cases are of every kind"


def test_thousands_of_machines() -> None:
    for seed in range(CASES):
        check_sums(small_case(random.Random(seed)))
        check_sums(large_case(random.Random(seed)))


# --- the ledger ---
def test_reserving_again_corrects_and_releasing_forgets() -> None:
    made = Ledger()
    made.reserve(1, {"cpu": 300, "gpu0": 5})
    made.reserve(2, {"cpu": 200})
    made.reserve(1, {"cpu": 250, "gpu0": 6})
    assert (made.total("cpu"), made.total("gpu0"), made.total("gpu1")) == (450, 6, 0)
    made.release(2)
    made.release(2)
    assert made.reserved == {1: {"cpu": 250, "gpu0": 6}}
