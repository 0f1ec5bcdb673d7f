"""Who has the turn to do heavy work, who waits for it, and who changes which model: of all goals of one process."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from modelops.goals.turns import Waiting, first, given


class Turning:
    """The turn: one goal has it at a time. Whoever waits for it, and gets it, is woken."""

    def __init__(self) -> None:
        self._holder = ""
        self._expected: set[str] = set()
        self._waiting: tuple[Waiting, ...] = ()
        self._places: dict[str, Waiting] = {}  # of those that have come before, and have not worked since
        self._wake: dict[str, Callable[[], None]] = {}
        self._numbers = itertools.count(1)

    def has(self, goal_id: str) -> bool:
        """Whether it is the goal's turn."""
        return self._holder == goal_id

    def taken(self, goal_id: str) -> bool:
        """Whether it is another's, or kept for one."""
        return self._holder not in ("", goal_id) or bool(self._expected - {goal_id})

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for it."""
        return bool(self._waiting)

    def expect(self, goal_id: str) -> None:
        """The goal did something heavy when a coordinator ended, and may be at it still: nobody else gets the turn
        until it asks for that, or does not need it."""
        self._expected.add(goal_id)

    def ask(self, goal_id: str, priority: int, wake: Callable[[], None], *, working: bool = False) -> bool:
        """Whether it is the goal's turn; else the goal waits, and is woken when it is. One that is `working` at
        something heavy already goes before all that wait. It has one place among them until it works: a turn that it
        could not use costs it nothing, and nobody else was passed over by it."""
        self._expected.discard(goal_id)
        if working and self._holder in ("", goal_id):
            self._leave(goal_id)
            self._holder = goal_id
            if place := self._places.pop(goal_id, None):
                self._waiting = given(self._waiting, place)
        elif self._holder != goal_id and all(each.goal_id != goal_id for each in self._waiting):
            place = self._places.pop(goal_id, None) or Waiting(goal_id, priority, next(self._numbers))
            self._waiting += (place,)
            self._wake[goal_id] = wake
        self._pass_on()
        return self._holder == goal_id

    def hand_on(self, goal_id: str, priority: int, wake: Callable[[], None]) -> bool:
        """The goal has worked, and is to work again: it waits for that, as one that comes now. Whether it is its turn
        again, as it goes before all others that wait."""
        self._holder = ""
        return self.ask(goal_id, priority, wake)

    def give_back(self, goal_id: str) -> None:
        """The goal does not need it now, nor does it wait for it."""
        self._leave(goal_id)
        self._expected.discard(goal_id)
        if self._holder == goal_id:
            self._holder = ""
        self._pass_on()

    def gone(self, goal_id: str) -> None:
        """The goal has ended."""
        self.give_back(goal_id)
        self._places.pop(goal_id, None)

    def _leave(self, goal_id: str) -> None:
        for place in self._waiting:
            if place.goal_id == goal_id:
                self._places[goal_id] = place
        self._waiting = tuple(each for each in self._waiting if each.goal_id != goal_id)
        self._wake.pop(goal_id, None)

    def _pass_on(self) -> None:
        if self._holder or self._expected or (chosen := first(self._waiting)) is None:
            return
        wake = self._wake[chosen.goal_id]
        self._leave(chosen.goal_id)
        self._holder = chosen.goal_id
        wake()


@dataclass(frozen=True)
class Claim:
    """A goal that changes a model. `begun`: it has done something already; a smaller `number` is older."""

    goal_id: str
    model: str
    priority: int
    number: int
    begun: bool = False


class Changing:
    """Which goals change which models. Of several for one model, that which has begun goes first; else the most urgent,
    else the oldest; and the others wait until it has ended."""

    def __init__(self) -> None:
        self._claims: dict[str, Claim] = {}

    def come(self, claim: Claim) -> None:
        """The goal is there, and changes a model, unless that is empty."""
        if claim.model:
            self._claims[claim.goal_id] = claim

    def begin(self, goal_id: str) -> None:
        """The goal does something."""
        if goal_id in self._claims:
            self._claims[goal_id] = replace(self._claims[goal_id], begun=True)

    def gone(self, goal_id: str) -> None:
        """The goal has ended."""
        self._claims.pop(goal_id, None)

    def holder(self, goal_id: str) -> str:
        """Words for the goal that goes before this one; empty: none does."""
        mine = self._claims.get(goal_id)
        if mine is None:
            return ""
        rivals = (claim for claim in self._claims.values() if claim.model == mine.model)
        holder = min(rivals, key=lambda claim: (not claim.begun, -claim.priority, claim.number))
        return "" if holder.goal_id == goal_id else f"the goal {holder.goal_id}"
