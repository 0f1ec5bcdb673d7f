"""How fast a training is, and how long it will still take."""

from __future__ import annotations

import statistics
import time
from collections import deque

_WINDOW = 32
#: Seconds between two lines of progress, at least.
_EVERY_S = 0.25


class Pace:
    """Of the last steps: the median, which a step in which the process was stopped does not move.

    `seconds` is what all steps took, also those of earlier processes, and also while they were stopped.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._steps: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._begun = time.monotonic()
        self._told = -_EVERY_S

    def begun(self) -> None:
        """A step begins."""
        self._begun = time.monotonic()

    def stepped(self, tokens: int) -> None:
        """It has ended, having seen so many tokens."""
        took = time.monotonic() - self._begun
        self.seconds += took
        self._steps.append((tokens, took))

    def due(self) -> bool:
        """Whether it is time to tell."""
        now = time.monotonic()
        if now - self._told < _EVERY_S:
            return False
        self._told = now
        return True

    def tokens_per_second(self) -> float:
        """Of a usual step."""
        return round(statistics.median(tokens / max(took, 1e-6) for tokens, took in self._steps), 1)

    def eta_seconds(self, steps: int) -> float:
        """Until so many more steps are done."""
        return round(statistics.median(took for _, took in self._steps) * steps, 1)
