"""Counting callers' requests and tokens in windows of time, in this process. Pure: the clock, one that never goes back,
is passed in.

Where there is no room the answer is when there is: at that moment exactly, if nobody else takes it.
"""

from __future__ import annotations

import math
from collections import deque

#: A moving window keeps the time of each request. Where a rate allows more than this they are counted in a fixed one.
MOST_MOVING = 10_000
_TIDY_S = 60.0

#: What is counted, whose, and the rate: how many, in how many seconds.
_Key = tuple[str, str, int, int]


class Windows:
    """Moving windows and fixed ones; those that are over are forgotten. Each method gives the seconds to wait."""

    def __init__(self) -> None:
        self._moving: dict[_Key, deque[float]] = {}
        self._fixed: dict[_Key, tuple[float, int]] = {}  # when it ends, and what was used
        self._tidied = -math.inf

    def __len__(self) -> int:
        return len(self._moving) + len(self._fixed)

    def request(self, name: str, amount: int, seconds: int, now: float) -> float:
        """Count a request; where there is no room for it, it is not counted."""
        self._tidy(now)
        key = ("requests", name, amount, seconds)
        if amount > MOST_MOVING:
            wait = self._left(key, now)
            if not wait:
                self._use(key, 1, now)
            return wait
        times = self._moving.setdefault(key, deque())
        while times and times[0] + seconds <= now:
            times.popleft()
        if len(times) >= amount:
            return times[0] + seconds - now
        times.append(now)
        return 0.0

    def budget(self, name: str, amount: int, seconds: int, now: float) -> float:
        """Whether any tokens are left."""
        return self._left(("tokens", name, amount, seconds), now)

    def charge(self, name: str, amount: int, seconds: int, now: float, tokens: int) -> None:
        """Count tokens, also more than are left; the first ones begin the window."""
        self._tidy(now)
        self._use(("tokens", name, amount, seconds), tokens, now)

    def _left(self, key: _Key, now: float) -> float:
        end, used = self._fixed.get(key, (now, 0))
        return end - now if end > now and used >= key[2] else 0.0

    def _use(self, key: _Key, number: int, now: float) -> None:
        end, used = self._fixed.get(key, (now, 0))
        self._fixed[key] = (end, used + number) if end > now else (now + key[3], number)

    def _tidy(self, now: float) -> None:
        if now - self._tidied >= _TIDY_S:
            self._tidied = now
            self._moving = {key: times for key, times in self._moving.items() if times and times[-1] + key[3] > now}
            self._fixed = {key: one for key, one in self._fixed.items() if one[0] > now}
