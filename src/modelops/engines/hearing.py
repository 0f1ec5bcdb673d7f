"""Whether an engine that was asked still says anything: one that does not is hung, whatever its process looks like.

A generating engine that works writes all the time: a token, or how far it is with a prompt. So it is hung when one
request has waited for the whole limit while nobody heard anything. Where that cannot be told, because callers left
before, or because the engine answers only when all is done (embeddings, scores), it is hung when it uses no CPU, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from modelops.engines.http import Answer

#: Seconds between two looks, at the most: long enough to see that a process computes.
_LOOK_S = 2.0
#: Whoever uses less than this part of a core does nothing.
_IDLE = 0.01


class Hearing:
    """Listens to all answers of one engine. Its timer runs only while there are any."""

    def __init__(self, limit_s: float, *, speaks: bool, cpu_s: Callable[[], float], hung: Callable[[], None]) -> None:
        """`speaks`: the engine writes while it works; `cpu_s` tells the seconds of CPU that it has used so far; `hung`
        is called, once, when it has said nothing for `limit_s` seconds."""
        self._limit_s = limit_s
        self._look_s = min(limit_s / 2, _LOOK_S)
        self._speaks = speaks
        self._cpu_s = cpu_s
        self._hung = hung
        self._answers: dict[Answer, float] = {}  # when each was asked for
        self._heard_at = float("-inf")
        self._unheard_s = 0.0  # for which callers had waited who left, since anything was heard
        self._used: float | None = None  # CPU at the look before, where it was under suspicion then
        self._timer: asyncio.TimerHandle | None = None
        self._stands = False  # paused by ourselves

    # --- what the connections tell ---
    def began(self, answer: Answer) -> None:
        """A request was sent, and this is to be its answer."""
        loop = asyncio.get_running_loop()
        self._answers[answer] = loop.time()
        if self._timer is None:
            self._used = self._cpu_s() if self._unheard_s >= self._limit_s else None
            self._timer = loop.call_later(self._look_s, self._look)

    def heard(self) -> None:
        """Something came, on any of them."""
        self._heard_at = asyncio.get_running_loop().time()
        self._unheard_s = 0.0
        self._used = None

    def ended(self, answer: Answer) -> None:
        """Nobody waits for that answer any more."""
        self._unheard_s += self._waited_s(answer, self._answers[answer])
        del self._answers[answer]
        if not self._answers:
            self.close()

    def paused(self) -> None:
        """It is stopped by ourselves, and cannot say anything, nor use any CPU."""
        self._stands = True
        self._used = None

    def resumed(self) -> None:
        """It goes on: its silence counts from now."""
        if self._stands:
            self._stands = False
            self._heard_at = max(self._heard_at, asyncio.get_running_loop().time())
        self._used = None

    def close(self) -> None:
        """Look no more, until somebody asks again."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    # --- looking ---
    def _waited_s(self, answer: Answer, asked_at: float) -> float:
        """For how long it has been waited for in vain; what was not fetched yet is no silence."""
        if not answer.awaited:
            return 0.0
        return asyncio.get_running_loop().time() - max(asked_at, self._heard_at, answer.awaited_since)

    def _look(self) -> None:
        if self._stands:
            self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)
            return
        waited_s = max(self._waited_s(answer, asked_at) for answer, asked_at in self._answers.items())
        sure = self._speaks and waited_s >= self._limit_s
        suspected = waited_s + self._unheard_s >= self._limit_s and waited_s >= self._look_s / 2
        if sure or (suspected and self._idle()):
            self._timer = None
            self._hung()
            return
        self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def _idle(self) -> bool:
        """Whether it has used no CPU since the look before."""
        before, self._used = self._used, self._cpu_s()
        return before is not None and self._used - before < _IDLE * self._look_s
