"""Runs one step of the child program: starts it, hears what it says, pauses it, and ends it.

Owns the child until the step is over. What a step is, and what its files are, is the child's to know.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelops.api.errors import (
    DeadlineExceeded,
    DiskFull,
    InsufficientMemory,
    InvalidRequest,
    ModelOpsError,
)
from modelops.engines.process import Process

log = logging.getLogger(__name__)

PROGRAM = (sys.executable, "-m", "modelops.learning.trainer")
#: What marks a line of the child's as said to us: its libraries write to the same pipe.
MARK = "@"
_LOOK_S, _LOOKS = 0.02, 500
_LAST_LINES = 20  # of a trainer that failed, for the log


class TrainerFailed(ModelOpsError):
    """The trainer ended without a result, and neither the request nor the machine is known to be at fault."""

    code = "engine_failed"


class TrainerDied(TrainerFailed):
    """Somebody killed the trainer, or it crashed: it may be run again, and goes on where it was."""


#: What the child says of a failure → what is raised.
_ERRORS: Mapping[str, type[ModelOpsError]] = {
    "invalid_request": InvalidRequest,
    "unsupported": InvalidRequest,
    "diverged": InvalidRequest,
    "disk_full": DiskFull,
    "no_memory": InsufficientMemory,
}


@dataclass(frozen=True)
class Said:
    """What the child has told: `kind` is progress, log or warning; of progress `done` of `total`, and `metrics`."""

    kind: str
    message: str = ""
    done: int = 0
    total: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)


class Child:
    """One run of one step."""

    def __init__(
        self,
        step: str,
        folder: Path,
        heard: Callable[[Said], None],
        *,
        stall_s: float,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._program = program
        self._step = step
        self._folder = folder
        self._heard = heard
        self._stall_s = stall_s
        self._process = Process(f"learning {step}", self._line)
        self._failure: ModelOpsError | None = None
        self._limit: asyncio.Timeout | None = None
        self._paused = False
        self._last: deque[str] = deque(maxlen=_LAST_LINES)

    async def run(self, environment: Mapping[str, str]) -> None:
        """Run the step to its end. However this ends, the child has ended too.

        Raises what the child said of its failure: InvalidRequest, DiskFull, InsufficientMemory; DeadlineExceeded where
        it did nothing for too long; TrainerDied; else TrainerFailed.
        """
        argv = [*self._program, self._step, str(self._folder)]
        try:
            async with asyncio.timeout(None) as self._limit:
                self._alive()
                await self._process.start(argv, environment)
                await self._begun()
                ended = await self._process.exited()
        except TimeoutError:
            raise DeadlineExceeded(
                f"the trainer did nothing for {self._stall_s:.0f} s while it was to {self._step}; the machine may be "
                "busy, or the disk hang: raise learning.stall_timeout_s, or try again"
            ) from None
        except OSError as error:
            raise TrainerFailed(f"the trainer could not be started: {error.strerror}") from None
        finally:
            self._limit = None
            self._process.resume()
            await self._process.kill()
        if self._failure or ended.code:
            for line in self._last:
                log.warning("the trainer said: %s", line, extra={"step": self._step})
        if self._failure:
            raise self._failure
        if ended.code:
            died = TrainerDied if ended.code < 0 else TrainerFailed
            raise died(f"the trainer {ended.reason} while it was to {self._step}")

    async def _begun(self) -> None:
        """Wait until the program itself runs: before, there is nothing that could be paused."""
        for _ in range(_LOOKS):
            if not self._process.running or len(self._process.pids()) > 1:  # its guard is the first
                break
            await asyncio.sleep(_LOOK_S)
        if self._paused:
            self._process.pause()

    def pids(self) -> set[int]:
        """Its processes; none before the start and after the end."""
        return self._process.pids()

    def taken_bytes(self) -> int:
        """Memory that it has taken by now; 0 when it has ended."""
        return self._process.taken_bytes()

    def pause(self) -> None:
        """Stop it where it stands."""
        self._paused = True
        self._process.pause()
        self._alive()

    def resume(self) -> None:
        """Let it go on."""
        self._paused = False
        self._process.resume()
        self._alive()

    def _alive(self) -> None:
        """It has done something, or may not."""
        if self._limit and not self._limit.expired():
            self._limit.reschedule(None if self._paused else asyncio.get_running_loop().time() + self._stall_s)

    def _line(self, line: str) -> None:
        self._alive()
        if not line.startswith(MARK):
            log.debug("%s", line, extra={"step": self._step})
            self._last.append(line)
            return
        try:
            said = json.loads(line.removeprefix(MARK), parse_constant=lambda _: None)  # the API has no NaN
            match said["event"]:
                case "progress":
                    metrics = dict(said.get("metrics") or {})
                    self._heard(Said("progress", done=int(said["done"]), total=int(said["total"]), metrics=metrics))
                case "log" | "warning" as kind:
                    self._heard(Said(kind, str(said["message"])))
                case "failed":
                    error = _ERRORS.get(said["code"], TrainerFailed)
                    self._failure = error(str(said["message"])[:2000])
        except (ValueError, KeyError, TypeError):
            log.warning("the trainer said what is not understood", extra={"step": self._step})
