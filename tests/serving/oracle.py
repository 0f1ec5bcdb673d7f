"""Placement once more, by trying everything: every run of layers over the GPUs, every set of evictions.

Slow and simple on purpose: it shares no code and no idea with `placement`, only the rules that are promised.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from modelops.serving.memory import Need
from modelops.serving.placement import HOST, CpuLayers, Holder, Wants
from serving.needs import machine, need, reserve

MODES: tuple[CpuLayers, ...] = get_args(CpuLayers)

Split = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """Something to place."""

    wants: Wants
    free: Mapping[str, int]
    holders: tuple[Holder, ...]
    cpu_layers: CpuLayers

    @property
    def evictable(self) -> list[str]:
        """Who may be evicted."""
        return sorted(holder.model for holder in self.holders if holder.cost is not None)

    def freed(self, evicted: Sequence[str]) -> dict[str, int]:
        """What is free when they are gone."""
        free = dict(self.free)
        for holder in self.holders:
            if holder.model in evicted:
                for device, size in holder.held.items():
                    free[device] += size
        return free

    def stages(self) -> list[tuple[list[int], bool]]:
        """How many units may be on GPUs, and whether others are evicted for that; what comes first is preferred."""
        units, asked = len(self.wants.need.layers) + 1, self.wants.gpu_layers
        if len(self.free) == 1 or asked == 0:
            counts = [[0]]
        elif asked is not None:
            counts = [[min(asked, units)]]
        else:
            anything = list(range(units, -1, -1))
            counts = {"before_eviction": [anything], "after_eviction": [[units], anything], "never": [[units]]}[
                self.cpu_layers
            ]
        return [(each, evicting) for each in counts for evicting in (False, True)]

    def fitting(self, counts: Sequence[int], evicted: Sequence[str] = ()) -> list[Split]:
        """Every split with one of these counts that fits when those are gone."""
        return fitting(self.wants.need, self.freed(evicted), counts)


def fitting(need: Need, free: Mapping[str, int], counts: Sequence[int]) -> list[Split]:
    """Every split with one of these counts that fits."""
    gpus = len(free) - 1
    return [
        split
        for count in counts
        for split in _splits(count, gpus)
        if all(size <= free[device] for device, size in reserve(need, split).items())
    ]


def subsets(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Every set of them, the smaller first."""
    return itertools.chain.from_iterable(itertools.combinations(names, size) for size in range(len(names) + 1))


def _splits(count: int, gpus: int) -> Iterator[Split]:
    if gpus == 0:
        return iter([()] if count == 0 else [])
    return (split for split in itertools.product(range(count + 1), repeat=gpus) if sum(split) == count)


def small_case(pick: random.Random) -> Case:
    """At most 3 GPUs, 5 layers and 4 models: all that can be tried is tried in a moment."""
    return _case(pick, gpus=pick.randint(0, 3), layers=pick.randint(1, 5), holders=pick.randint(0, 4), size=12)


def large_case(pick: random.Random) -> Case:
    """Up to 8 GPUs, 60 layers and 10 models."""
    return _case(pick, gpus=pick.randint(1, 8), layers=pick.randint(2, 60), holders=pick.randint(0, 10), size=1000)


def _case(pick: random.Random, *, gpus: int, layers: int, holders: int, size: int) -> Case:
    def any_need() -> Need:
        return need(
            [pick.randint(1, size) for _ in range(layers)],
            output=pick.randint(0, size),
            tied=pick.choice([0, pick.randint(0, size)]),
            host=pick.randint(0, size),
            compute=pick.randint(0, size // 2),
            driver=pick.choice([0, pick.randint(0, size)]),
            visiting=pick.choice([0, pick.randint(0, size)]),
        )

    # Rooms of the order of the need: where everything fits, or nothing does, little is decided.
    wanted = any_need()
    room = int(wanted.total * pick.choice([0.3, 0.6, 1.0, 1.5]))
    free = machine(pick.randint(0, 2 * wanted.total), *(pick.randint(-size, room) for _ in range(gpus)))
    devices = list(free)
    held = [
        Holder(
            f"m{number}",
            {device: pick.randint(1, room // 2 + 2) for device in pick.sample(devices, pick.randint(1, len(devices)))},
            pick.choice([None, 0.0, round(pick.random() * 10, 1), 2.0]),
        )
        for number in range(holders)
    ]
    asked = pick.choice([None, None, None, 0, 1, layers, layers + 1, layers + 9, pick.randint(1, layers)])
    groups = tuple(
        tuple((f"way {group}.{number}", _less(wanted, pick)) for number in range(pick.randint(0, 3)))
        for group in range(pick.randint(0, 2))
    )
    return Case(Wants(wanted, asked, groups), free, tuple(held), pick.choice(MODES))


def _less(of: Need, pick: random.Random) -> Need:
    part = pick.random()
    return need(
        [int(size * part) + 1 for size in of.layers],
        output=of.output,
        tied=of.tied,
        host=int(of.host * part),
        compute=int(of.compute * part),
        driver=of.driver,
        visiting=int(of.visiting * part),
    )


__all__ = ["HOST", "MODES", "Case", "fitting", "large_case", "small_case", "subsets"]
