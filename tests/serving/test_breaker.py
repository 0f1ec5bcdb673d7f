"""The breaker as a table, then fed everything in every order."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modelops.serving.breaker import COOL_DOWN_S, FAILURES, LOADS, LONGEST_S, Breaker, Reading, State

Step = Callable[[Breaker], object]


def fails(times: int = 1, ticket: int | None = None, at: float = 0.0) -> Step:
    return lambda made: [made.failure(at, "it broke", ticket) for _ in range(times)]


def answers(ticket: int = 1) -> Step:
    return lambda made: made.success(ticket)


def trips(at: float = 0.0) -> Step:
    def trip(made: Breaker) -> None:
        made.load_failed()
        made.trip(at, "it does not load", "load")

    return trip


def begins(ticket: int, at: float = 0.0) -> Step:
    return lambda made: made.begin(ticket, at)


def leaves(ticket: int) -> Step:
    return lambda made: made.left(ticket)


OPEN = fails(FAILURES)
LATER = COOL_DOWN_S  # when the first cool-down is over
PROBED = (OPEN, begins(9, LATER))
LOADED: Step = lambda made: made.loaded()  # noqa: E731 - one of the steps

#: id: (what happened, at which time it is looked at, the state, whether a request may go through, seconds left)
TABLE: dict[str, tuple[tuple[Step, ...], float, State, bool, float]] = {
    "at first it is closed": ((), 0.0, "closed", True, 0.0),
    "a few failures leave it closed": ((fails(FAILURES - 1),), 0.0, "closed", True, 0.0),
    "one more opens it": ((OPEN,), 0.0, "open", False, COOL_DOWN_S),
    "an answer between them counts them anew": (
        (fails(FAILURES - 1), answers(), fails(FAILURES - 1)),
        0.0,
        "closed",
        True,
        0.0,
    ),
    "who leaves without a word does not": (
        (fails(FAILURES - 1), leaves(1), fails()),
        0.0,
        "open",
        False,
        COOL_DOWN_S,
    ),
    "a load that fails opens it at once": ((trips(),), 0.0, "open", False, COOL_DOWN_S),
    "open it says how long": ((OPEN,), 5.0, "open", False, COOL_DOWN_S - 5),
    "answers of requests that had begun before do not close it": ((OPEN, answers()), 1.0, "open", False, 14.0),
    "nor do their failures keep it open longer": ((OPEN, fails(at=1.0)), 2.0, "open", False, 13.0),
    "after the cool-down one may try": ((OPEN,), LATER, "half_open", True, 0.0),
    "but only one": (PROBED, LATER, "half_open", False, 0.0),
    "its success closes it": ((*PROBED, answers(9)), LATER, "closed", True, 0.0),
    "and all is forgotten": ((*PROBED, answers(9), fails(FAILURES - 1)), LATER, "closed", True, 0.0),
    "its failure opens it for twice as long": (
        (*PROBED, fails(1, 9, LATER)),
        LATER,
        "open",
        False,
        2 * COOL_DOWN_S,
    ),
    "so does a crash": ((*PROBED, fails(1, None, LATER)), LATER, "open", False, 2 * COOL_DOWN_S),
    "another's answer does not close it": ((*PROBED, answers(8)), LATER, "half_open", False, 0.0),
    "nor does another's failure open it": ((*PROBED, fails(1, 8, LATER)), LATER, "half_open", False, 0.0),
    "where it leaves without a word the next may try": ((*PROBED, leaves(9)), LATER, "half_open", True, 0.0),
    "another that leaves makes no room": ((*PROBED, leaves(8)), LATER, "half_open", False, 0.0),
    "a good load closes what a load had opened": ((trips(), LOADED), 1.0, "closed", True, 0.0),
    "but not what requests had": ((OPEN, LOADED), 1.0, "open", False, 14.0),
    "and it does not forget how often": ((trips(), LOADED, trips(1.0)), 1.0, "open", False, 2 * COOL_DOWN_S),
    "an answer does": ((trips(), LOADED, answers(), trips(1.0)), 1.0, "open", False, COOL_DOWN_S),
}


@pytest.mark.parametrize(("steps", "at", "state", "lets", "left"), TABLE.values(), ids=TABLE)
def test_it_is(steps: tuple[Step, ...], at: float, state: State, lets: bool, left: float) -> None:
    made = Breaker()
    for step in steps:
        step(made)
    assert (made.state(at), made.lets(at), made.left_s(at)) == (state, lets, left)


def test_each_opening_in_a_row_lasts_twice_as_long_up_to_a_bound() -> None:
    made, now, lasted = Breaker(), 0.0, []
    for _ in range(8):
        made.trip(now, "it does not load", "load")
        lasted.append(made.left_s(now))
        now += made.left_s(now)
    assert lasted == [15.0, 30.0, 60.0, 120.0, 240.0, 300.0, 300.0, 300.0]
    for _ in range(2000):
        made.trip(now, "it does not load", "load")
    assert made.left_s(now) == LONGEST_S


def test_a_load_that_is_asked_for_is_tried_at_once_unless_loads_have_failed_in_a_row() -> None:
    made = Breaker()
    for number in range(1, LOADS + 1):
        assert made.lets_load(0.0)
        trips()(made)
        assert made.loads == number
    assert not made.lets_load(0.0)
    assert made.lets_load(made.left_s(0.0))
    made.loaded()
    trips()(made)
    assert made.lets_load(0.0)
    fails(99)(made)
    assert made.lets_load(0.0), "requests that fail are not held against loads"


def test_failures_are_counted_for_ever() -> None:
    made = Breaker()
    for step in (OPEN, begins(9, LATER), answers(9), trips(LATER), fails(2, 3, LATER)):
        step(made)
    assert made.read(LATER) == Reading("open", FAILURES + 1 + 2, COOL_DOWN_S, "it does not load")


class Machine(RuleBasedStateMachine):
    """Requests go through where it lets them, and end in some way or another."""

    @initialize()
    def begin(self) -> None:
        self.made, self.now = Breaker(), 0.0
        self.tickets = 0
        self.flying: set[int] = set()
        self.in_a_row = 0  # failures since the last answer, while it was closed
        self.opened: float | None = None

    @rule()
    def ask(self) -> None:
        state = self.made.state(self.now)
        self.tickets += 1
        if self.made.lets(self.now):
            assert state != "open"
            self.made.begin(self.tickets, self.now)
            self.flying.add(self.tickets)
            if state == "half_open":
                assert self.made.probe == self.tickets
                assert not self.made.lets(self.now), "one probe"
        else:
            assert state != "closed"

    @rule(how=st.sampled_from(["answered", "failed", "left", "crash"]), which=st.integers(0, 99))
    def end(self, how: str, which: int) -> None:
        before, openings = self.made.state(self.now), self.made.openings
        if how == "crash":
            opened = self.made.failure(self.now, "it crashed")
            self.flying.clear()
            assert opened == (before == "half_open" or (before == "closed" and self.in_a_row + 1 >= FAILURES))
            self.in_a_row += before == "closed"
        elif self.flying:
            ticket = sorted(self.flying)[which % len(self.flying)]
            self.flying.discard(ticket)
            probe = ticket == self.made.probe
            if how == "answered":
                self.made.success(ticket)
                assert (self.made.state(self.now) == "closed") == (probe or before == "closed")
                self.in_a_row = 0 if self.made.until is None else self.in_a_row
            elif how == "failed":
                opened = self.made.failure(self.now, "it failed", ticket)
                assert opened == (probe or (before == "closed" and self.in_a_row + 1 >= FAILURES))
                self.in_a_row += before == "closed"
            self.made.left(ticket)
            assert self.made.probe != ticket
        else:
            return
        if self.made.openings > openings:
            lasts = self.made.left_s(self.now)
            assert lasts == min(COOL_DOWN_S * 2**openings, LONGEST_S)
            self.in_a_row = 0

    @rule(good=st.booleans())
    def load(self, good: bool) -> None:
        if good:
            opened_by = self.made.cause
            self.made.loaded()
            if self.made.openings and opened_by == "load":
                assert self.made.state(self.now) == "closed" or self.made.cause == "requests"
                self.in_a_row = self.made.failures
        else:
            self.made.load_failed()
            self.made.trip(self.now, "it does not load", "load")
            assert self.made.state(self.now) == "open"

    @rule(seconds=st.sampled_from([0.5, 5.0, COOL_DOWN_S, LONGEST_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def it_is_never_shut_for_ever(self) -> None:
        assert 0.0 <= self.made.left_s(self.now) <= LONGEST_S
        assert (self.made.probe is None) or self.made.until is not None
        if self.made.state(self.now) == "half_open" and not self.made.lets(self.now):
            assert self.made.probe in self.flying, "it waits for somebody who is gone"


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=50)
