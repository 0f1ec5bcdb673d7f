"""The queue of one model: who waits for a slot, whose turn it is, and who gives way where it is full. Pure.

Fair by tokens of service, after the Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models",
OSDI 2024). Each caller has a counter: the tokens that it was served, divided by its weight. The next slot goes to the
waiting caller with the least; among equals to who has waited longest; within a caller to who came first. What a request
is expected to cost is charged when it gets its slot, and corrected when it has ended.

Nobody is served the more for having been idle: a caller that begins to wait is lifted to the least counter of those
that wait already or, where nobody does, to the level that service has reached. So whoever waits is overtaken by each
other caller for a bounded number of tokens only, however many come: nobody starves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from modelops.serving.events import Share


@dataclass(frozen=True)
class Request:
    """One request. `cost`: the tokens of prompt and answer that it is expected to take; `prompt_tokens` are of it."""

    ticket: int
    share: Share
    prompt_tokens: int
    cost: float


class FairQueue:
    """Requests that wait, those that were granted and have not ended, and what their callers were served.

    Those that were pushed with `held` wait as all do, but get no turn before `release`.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Request] = {}  # in the order in which they came
        self._held: set[int] = set()
        self._granted: dict[int, Request] = {}
        self._counters: dict[str, float] = {}
        self._level = 0.0  # never falls while anybody is here

    # --- who waits ---
    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[int]:
        """The tickets that may have a turn, in the order in which they came."""
        return (ticket for ticket in self._waiting if ticket not in self._held)

    def __contains__(self, ticket: object) -> bool:
        return ticket in self._waiting

    @property
    def ready(self) -> int:
        """How many may have a turn."""
        return len(self._waiting) - len(self._held)

    @property
    def prompt_tokens(self) -> int:
        """Of all that wait."""
        return sum(request.prompt_tokens for request in self._waiting.values())

    @property
    def counters(self) -> dict[str, float]:
        """Tokens of service by weight, of each caller that is remembered; for display and tests."""
        return dict(self._counters)

    # --- what happens ---
    def push(self, request: Request, *, held: bool = False) -> None:
        """It waits from now on."""
        caller = request.share.caller
        waiting = {other.share.caller for other in self._waiting.values()}
        if caller not in waiting:
            least = min((self._counters[other] for other in waiting), default=self._level)
            self._counters[caller] = max(self._counters.get(caller, 0.0), least, self._level)
        self._waiting[request.ticket] = request
        if held:
            self._held.add(request.ticket)

    def pop(self) -> int:
        """The ticket whose turn it is, charged with what it is expected to cost. One has to be `ready`."""
        heads: dict[str, Request] = {}
        for ticket in self:
            request = self._waiting[ticket]
            heads.setdefault(request.share.caller, request)
        caller = min(heads, key=self._counters.__getitem__)  # of equals the first, who has waited longest
        request = self._waiting.pop(heads[caller].ticket)
        self._granted[request.ticket] = request
        self._level = max(self._level, self._counters[caller])
        self._counters[caller] += request.cost / request.share.weight
        if not self._waiting:  # nobody went without for it: it is no debt
            self._level = max(self._level, self._counters[caller])
        self._forget()
        return request.ticket

    def remove(self, ticket: int) -> None:
        """It waits no more, and was not served."""
        del self._waiting[ticket]
        self._held.discard(ticket)
        self._forget()

    def clear(self) -> None:
        """Nobody waits any more, but who is held."""
        for ticket in list(self):
            del self._waiting[ticket]
        self._forget()

    def release(self) -> None:
        """Those that were held may have a turn."""
        self._held.clear()

    def end(self, ticket: int, tokens: int) -> None:
        """A granted request has ended and took `tokens` in all; 0: not known, what was expected stands."""
        request = self._granted.pop(ticket, None)
        if request and tokens:
            self._counters[request.share.caller] += (tokens - request.cost) / request.share.weight
        self._forget()

    def _forget(self) -> None:
        """Who is not here, and would be lifted to the level anyway. Without anybody there is no level either."""
        here = {request.share.caller for of in (self._waiting, self._granted) for request in of.values()}
        if not here:
            self._level = 0.0
            self._counters.clear()
        elif len(self._counters) > len(here):
            self._counters = {
                caller: served for caller, served in self._counters.items() if caller in here or served > self._level
            }

    # --- who gives way ---
    def make_room(self, request: Request, *, most: int, most_tokens: int, at_once: int = 0) -> list[int] | None:
        """The tickets that give way so that `request` may wait; None where it is the one that has to go.

        `most` requests may wait, and `most_tokens` tokens of prompts; `at_once` more requests are about to have slots.
        What is too long for `most_tokens` may wait where otherwise nobody would, but for those that have slots at once.
        Each caller's share of what there is too much of (requests, or tokens) is divided by its weight: the newest
        request of the largest holder gives way, unless the asker would hold as much. Nothing is changed.
        """
        left, gone = dict(self._waiting), list[int]()
        while True:
            if len(left) >= most + at_once:
                by_tokens = False
            elif len(left) >= max(1, at_once) and request.prompt_tokens + _tokens(left) > most_tokens:
                by_tokens = True
            else:
                return gone
            held = {request.share.caller: _size(request, by_tokens)}
            for other in left.values():
                held[other.share.caller] = held.get(other.share.caller, 0.0) + _size(other, by_tokens)
            largest = max(held, key=held.__getitem__)  # of equals the first: the asker
            if largest == request.share.caller:
                return None
            newest = next(ticket for ticket in reversed(left) if left[ticket].share.caller == largest)
            del left[newest]
            gone.append(newest)


def _size(request: Request, by_tokens: bool) -> float:
    return (request.prompt_tokens if by_tokens else 1) / request.share.weight


def _tokens(requests: dict[int, Request]) -> int:
    return sum(request.prompt_tokens for request in requests.values())
