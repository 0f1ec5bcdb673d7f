"""The circuit breaker of one model: whether it is asked at all after it has failed. Pure; the clock is passed in.

*Closed*, every request goes through. Failures in a row, or a load that failed, open it. *Open*, every request is
refused for a cool-down. Then it is *half open*: one request, the probe, goes through while all others are refused. Its
success closes the breaker; its failure opens it again, for twice as long as before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["closed", "open", "half_open"]
#: What opened it: a load that failed, or what became of requests.
Cause = Literal["load", "requests"]

#: Failures in a row that open it.
FAILURES = 5
#: Seconds for which it is open the first time; each further time in a row doubles them.
COOL_DOWN_S = 15.0
LONGEST_S = 300.0
#: Loads that failed in a row, after which a load that somebody asks for has to wait for the cool-down too.
LOADS = 2


@dataclass(frozen=True)
class Reading:
    """A breaker for display. `failures`: all that ever were; `left_s`: until it may be tried again; `reason`: of the
    last failure."""

    state: State = "closed"
    failures: int = 0
    left_s: float = 0.0
    reason: str = ""


@dataclass
class Breaker:
    """What it knows. `reason` is of the last failure; `probe` the ticket of the request that tries."""

    total: int = 0  # failures that ever were
    failures: int = 0  # in a row
    openings: int = 0  # in a row
    loads: int = 0  # that failed in a row
    until: float | None = None  # when the cool-down is over; None: closed
    cause: Cause = "requests"
    reason: str = ""
    probe: int | None = None

    def state(self, now: float) -> State:
        """Half open from the end of the cool-down on."""
        if self.until is None:
            return "closed"
        return "open" if now < self.until else "half_open"

    def left_s(self, now: float) -> float:
        """Seconds until it may be tried."""
        return 0.0 if self.until is None else max(0.0, self.until - now)

    def read(self, now: float) -> Reading:
        """As it stands."""
        return Reading(self.state(now), self.total, self.left_s(now), self.reason)

    # --- whether to ask ---
    def lets(self, now: float) -> bool:
        """Whether a request may go through."""
        state = self.state(now)
        return state == "closed" or (state == "half_open" and self.probe is None)

    def lets_load(self, now: float) -> bool:
        """Whether a load that somebody asks for may begin: at once, unless loads have failed again and again."""
        return self.loads < LOADS or self.state(now) != "open"

    def begin(self, ticket: int, now: float) -> None:
        """The request goes through; half open, it is the probe."""
        if self.state(now) == "half_open":
            self.probe = ticket

    # --- what became of it ---
    def success(self, ticket: int) -> None:
        """The request was answered. Once open, only the probe's answer counts: others had begun before."""
        if self.until is None or ticket == self.probe:
            self.close()

    def failure(self, now: float, reason: str, ticket: int | None = None) -> bool:
        """The engine failed this request, or crashed where none is named; whether that opened it.

        Once open, only the probe's failure counts, as a crash does when it is half open: others had begun before.
        """
        self.total += 1
        if self.state(now) == "open" or (self.until is not None and ticket not in (None, self.probe)):
            return False
        self.failures, self.reason = self.failures + 1, reason
        if self.until is None and self.failures < FAILURES:
            return False
        self._open(now, "requests")
        return True

    def trip(self, now: float, reason: str, cause: Cause) -> None:
        """A load failed, or restarts were given up, and that was told: it opens at once."""
        self.reason = reason
        self._open(now, cause)

    def load_failed(self) -> None:
        """One more in a row."""
        self.total += 1
        self.loads += 1

    def loaded(self) -> None:
        """The model was loaded: what was held against its loads does not hold any more; what opened it for its
        requests does, and how often it was opened in a row, until one is answered."""
        self.loads = 0
        if self.until is not None and self.cause == "load":
            self.until = self.probe = None

    def left(self, ticket: int) -> None:
        """The request ended without telling anything: another may be the probe."""
        if ticket == self.probe:
            self.probe = None

    def close(self) -> None:
        """Forget all failures but how many there were."""
        self.failures = self.openings = self.loads = 0
        self.until = self.probe = None
        self.reason = ""

    def _open(self, now: float, cause: Cause) -> None:
        self.openings += 1
        self.until = now + min(COOL_DOWN_S * 2 ** min(self.openings - 1, 30), LONGEST_S)
        self.cause, self.probe = cause, None
