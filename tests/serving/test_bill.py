"""Why something does not fit: the figures, the sentence, and the ways that would fit, each tried again."""

from __future__ import annotations

import os
import random

import pytest

from modelops.serving.placement import MB, Bill, CpuLayers, Holder, Plan, Wants, place
from serving.needs import machine, need
from serving.oracle import Case, large_case, small_case

CASES = int(os.environ.get("PLACEMENT_CASES", "1500"))
GB = 1024 * MB

HOLDERS = [
    Holder("busy", {"cpu": 200 * MB, "gpu0": 3 * GB}),
    Holder("idle", {"cpu": 100 * MB, "gpu0": 2 * GB}, cost=1.0),
    Holder("idle", {"cpu": 50 * MB}),  # an engine that was replaced and still answers
]
#: Four layers of 1 GB and an output of 1 GB, with 300 MB to compute and 200 MB that stay in RAM.
MODEL = need([GB] * 4, output=GB, host=200 * MB, compute=300 * MB)


def refused(wants: Wants, *free: int, holders: list[Holder] = HOLDERS, mode: CpuLayers = "before_eviction") -> Bill:
    found = place(wants, machine(*free), holders, cpu_layers=mode)
    assert isinstance(found, Bill)
    return found


def test_the_figures_of_a_machine_with_gpus() -> None:
    bill = refused(Wants(MODEL, 5), 9 * GB, 3 * GB + 1, -5 * MB)
    assert bill == Bill(
        needed=5 * GB + 500 * MB,
        free={"cpu": 9 * GB, "gpu0": 3 * GB + 1, "gpu1": 0},
        reserved={"cpu": 350 * MB, "gpu0": 5 * GB, "gpu1": 0},
        evictable={"cpu": 100 * MB, "gpu0": 2 * GB, "gpu1": 0},
        held={"busy": 3 * GB + 200 * MB, "idle": 2 * GB + 150 * MB},
        would_fit=("gpu_layers 4",),
    )
    assert bill.details() == {
        "needed_mb": "5620",
        "free_mb": "12288",
        "free_mb.cpu": "9216",
        "free_mb.gpu0": "3072",
        "free_mb.gpu1": "0",
        "reserved_mb": "5470",
        "reserved_mb.cpu": "350",
        "reserved_mb.gpu0": "5120",
        "reserved_mb.gpu1": "0",
        "evictable_mb": "2148",
        "evictable_mb.cpu": "100",
        "evictable_mb.gpu0": "2048",
        "evictable_mb.gpu1": "0",
        "held_mb.busy": "3272",
        "held_mb.idle": "2198",
        "would_fit.1": "gpu_layers 4",
    }
    assert bill.sentence("new") == (
        "'new' needs 5620 MB and 9216 MB on cpu, 3072 MB on gpu0 and 0 MB on gpu1 are free "
        "(held: 'busy' 3272 MB, 'idle' 2198 MB); it would fit with gpu_layers 4; "
        "else unload a model that is in use or pinned, or raise memory.budget_mb where it is what binds"
    )


def test_the_figures_of_a_machine_without_gpus() -> None:
    bill = refused(Wants(need(host=400 * MB + 1)), 100 * MB - 1, holders=[])
    assert bill.details() == {
        "needed_mb": "401",
        "free_mb": "99",
        "free_mb.cpu": "99",
        "reserved_mb": "0",
        "reserved_mb.cpu": "0",
        "evictable_mb": "0",
        "evictable_mb.cpu": "0",
    }
    assert bill.sentence("new").startswith(
        "'new' needs 401 MB and 99 MB are free (held: no model); no smaller setting would fit; else"
    )


def test_two_devices_are_joined_by_and() -> None:
    assert "1024 MB on cpu and 0 MB on gpu0 are free" in refused(Wants(MODEL), GB, 0, holders=[]).sentence("new")


def test_no_less_than_nothing_is_free() -> None:
    assert refused(Wants(MODEL), -5 * MB, holders=[]).details()["free_mb"] == "0"


def test_the_largest_of_each_kind_that_fits_is_named() -> None:
    groups = tuple(
        tuple((f"{kind} {size}", need(host=size * MB)) for size in sizes)
        for kind, sizes in {"context_length": (90, 60, 30), "slots": (99, 98), "cache_type": (61, 1)}.items()
    )
    bill = refused(Wants(need(host=100 * MB), None, groups), 10 * MB, holders=[Holder("idle", {"cpu": 51 * MB}, 0.0)])
    assert bill.would_fit == ("context_length 60", "cache_type 61")
    assert "it would fit with context_length 60 or cache_type 61;" in bill.sentence("new")


@pytest.mark.parametrize(
    ("asked", "mode", "free", "would"),
    [
        pytest.param(None, "never", (9 * GB, 3 * GB), ("gpu_layers 2",), id="where layers may stay only if asked for"),
        pytest.param(None, "never", (9 * GB, 0), ("gpu_layers -1",), id="none, as the API writes it"),
        pytest.param(3, "before_eviction", (9 * GB, 3 * GB), ("gpu_layers 2",), id="fewer than were asked for"),
        pytest.param(99, "before_eviction", (9 * GB, 4 * GB + 300 * MB), ("gpu_layers 4",), id="fewer than there are"),
        pytest.param(None, "before_eviction", (GB, 3 * GB), (), id="as many as go were tried"),
        pytest.param(0, "before_eviction", (GB, 99 * GB), (), id="fewer than none"),
    ],
)
def test_fewer_layers_on_gpus_are_named_where_they_help(
    asked: int | None, mode: CpuLayers, free: tuple[int, ...], would: tuple[str, ...]
) -> None:
    assert refused(Wants(MODEL, asked), *free, holders=[], mode=mode).would_fit == would


def tried(case: Case) -> tuple[str, ...]:
    """What a bill for `case` has to name: the first of each group that is placed when it is tried."""

    def fits(wants: Wants) -> bool:
        return isinstance(place(wants, case.free, case.holders, cpu_layers=case.cpu_layers), Plan)

    wants, units = case.wants, len(case.wants.need.layers) + 1
    named = [
        next((name for name, way in group if fits(Wants(way, wants.gpu_layers))), None) for group in wants.alternatives
    ]
    if len(case.free) > 1 and wants.gpu_layers != 0:
        fewer = range(min(wants.gpu_layers or units, units) - 1, -1, -1)
        named.append(next((f"gpu_layers {count or -1}" for count in fewer if fits(Wants(wants.need, count))), None))
    return tuple(name for name in named if name)


def test_what_is_named_fits_and_nothing_larger_of_its_kind_does() -> None:
    named = []
    for seed in range(CASES):
        for make in (small_case, large_case):
            case = make(random.Random(seed))
            found = place(case.wants, case.free, case.holders, cpu_layers=case.cpu_layers)
            if isinstance(found, Bill):
                assert found.would_fit == tried(case)
                named += [name.split()[0] for name in found.would_fit]
    assert min(named.count("way"), named.count("gpu_layers")) > CASES // 10, "bills of both kinds"
