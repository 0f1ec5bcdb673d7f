"""The time a training takes: of the last steps, and not of those in which it was stopped."""

from __future__ import annotations

import time

import pytest

from modelops.learning.trainer.pace import Pace


def test_it_is_that_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace()

    def step(seconds: float, tokens: int = 100) -> None:
        nonlocal now
        pace.begun()
        now += seconds
        pace.stepped(tokens)
        now += 1  # a checkpoint

    step(30)
    assert (pace.tokens_per_second(), pace.eta_seconds(2)) == (3.3, 60.0)
    for _ in range(40):
        step(2)
    assert (pace.tokens_per_second(), pace.eta_seconds(10)) == (50.0, 20.0)
    step(600)  # stopped, while requests were answered
    assert (pace.tokens_per_second(), pace.eta_seconds(10)) == (50.0, 20.0)
    assert pace.seconds == 30 + 80 + 600


def test_it_is_told_four_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pace = Pace()
    told = 0
    for _ in range(100):
        now += 0.0625
        told += pace.due()
    assert told == 25
