"""Which parameters a training is tried with next: from what was tried, and what was wrong with it. Pure.

A goal has some six trainings of minutes or hours each. A sampler such as Optuna's TPE draws its first ten at random
before it has learnt anything, and does not know why a trial was bad; here that is known, and says which way to go:

* below the target: twice the epochs, the rate, or the rank, whichever was raised least so far, in that order;
* something was lost, on the held-out rows or on the regression rows: half the rate, then half the epochs;
* it failed, as where a loss is no longer a number: a quarter of the rate.

What a person has set is not searched for, nothing is tried twice, and nothing beyond the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from modelops.api.learning import LoraParameters

Outcome = Literal["passed", "under", "lost", "failed"]

_KNOBS = ("epochs", "learning_rate", "rank")
_FIRST = LoraParameters()
_BOUNDS: Mapping[str, tuple[float, float]] = {"epochs": (0.25, 48), "learning_rate": (1e-6, 1e-2), "rank": (4, 128)}
#: What each knob is multiplied by, and the ways to go, one after another.
_WAYS: Mapping[Outcome, tuple[tuple[str, float], ...]] = {
    "passed": (),
    "under": (("epochs", 2), ("learning_rate", 2), ("rank", 2)),
    "lost": (("learning_rate", 0.5), ("epochs", 0.5)),
    "failed": (("learning_rate", 0.25), ("learning_rate", 0.0625)),
}


@dataclass(frozen=True)
class Tried:
    """Parameters that a training had, and what came of it."""

    parameters: Mapping[str, Any]
    outcome: Outcome


def next_parameters(base: Mapping[str, Any], tried: Sequence[Tried]) -> dict[str, Any] | None:
    """The parameters of the next training, of which `base` are those that a person has set; None: nothing is left to
    try. Where the last training leads nowhere new, the one before it is gone on from."""
    if not tried:
        return dict(base)
    known = [_point(each.parameters) for each in tried]
    for each in reversed(tried):
        for point in _beside(base, each):
            if point not in known:
                return _parameters(base, point)
    return None


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """What is different, in words."""
    pairs = zip(_KNOBS, _point(before), _point(after), strict=True)
    return ", ".join(f"{knob} {value:g}" for knob, was, value in pairs if value != was)


_Point = tuple[float, ...]


def _point(parameters: Mapping[str, Any]) -> _Point:
    return tuple(float(parameters.get(knob, getattr(_FIRST, knob))) for knob in _KNOBS)


def _beside(base: Mapping[str, Any], tried: Tried) -> Iterator[_Point]:
    """Where it can go from there, the best way first."""
    point = dict(zip(_KNOBS, _point(tried.parameters), strict=True))
    ways = list(_WAYS[tried.outcome])
    if tried.outcome == "under":
        ways.sort(key=lambda way: round(math.log2(point[way[0]] / _start(base, way[0]))))
    for knob, factor in ways:
        value = point[knob] * factor
        least, most = _BOUNDS[knob]
        if _free(base, knob) and least <= value <= most:
            yield tuple((point | {knob: value}).values())


def _start(base: Mapping[str, Any], knob: str) -> float:
    return float(base.get(knob, getattr(_FIRST, knob)))


def _free(base: Mapping[str, Any], knob: str) -> bool:
    return knob not in base and not (knob == "epochs" and base.get("steps"))


def _parameters(base: Mapping[str, Any], point: _Point) -> dict[str, Any]:
    """Only what differs from what a job has by itself; the LoRA's scale stays as it is, whatever its rank."""
    epochs, rate, rank = point
    found: dict[str, Any] = {"epochs": epochs, "learning_rate": rate, "rank": int(rank)}
    if rank != _FIRST.rank:
        found["alpha"] = rank * _FIRST.alpha / _FIRST.rank
    changed = {knob: value for knob, value in found.items() if value != getattr(_FIRST, knob)}
    return changed | dict(base)
