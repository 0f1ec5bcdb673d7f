"""What is written of a goal while it is pursued: its row, under its fence, and its events.

Raises Lost where the goal is somebody else's by now.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from modelops.api.errors import InvalidRequest
from modelops.api.goals import AvailabilityObjective, GoalEventKind, GoalLimits, objective_of
from modelops.durable.work import Lost
from modelops.goals import memory
from modelops.goals.memory import ENDING, Kept
from modelops.goals.values import Act, Ending, Pursued, Step, Wait
from modelops.store.goals import GoalQueries, GoalRow

#: Steps that are kept of a goal without an end; of others every one is, for what follows is decided by them.
_NEWEST = 100
_ALL = 1_000_000
_NOTE_S = 15.0  # of active time, that a crash may lose


class Record:
    """One goal, from a claim on: as it was read, and what was written since."""

    def __init__(
        self, queries: GoalQueries, row: GoalRow, changed: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._queries = queries
        self._row = row
        self._changed = changed
        self._clock = clock
        self._began = clock()
        self._noted_s = row.elapsed
        self._metrics = dict(row.metrics)
        self._message, self._progress = row.message, row.progress
        self._read = pursued(row)
        self.memory = memory.read(row.memo)

    @property
    def goal(self) -> Pursued:
        """The goal as it stands."""
        return replace(self._read, steps=self.memory.steps, metrics=dict(self._metrics))

    @property
    def elapsed_s(self) -> float:
        """For how long it has been active: by a clock that nobody sets, with what it was before."""
        return self._row.elapsed + self._clock() - self._began

    async def begin(self, act: Act) -> None:
        """It is written that this is done next, before it is."""
        number, most = self.memory.next_number, _ALL
        if isinstance(self._read.objective, AvailabilityObjective):
            most = _NEWEST
        kept = Kept(Step(number, act.action, act.why, self.elapsed_s), time.time(), heavy=act.heavy)
        grown, forgotten = self.memory.begun(kept, most)
        if act.progress is not None:
            self._progress = act.progress
        noted = {"message": act.why, "progress": self._progress}
        await self._memorise(str(number), memory.written(kept), forget=forgotten, **noted)
        self.memory, self._message = grown, act.why
        await self.tell("step", act.why, step=act.action.kind)

    async def end(self, step: Step) -> None:
        """It is written what came of the step that was under way."""
        ended = self.memory.ended(step, time.time())
        await self._memorise(str(step.number), memory.written(ended.kept[-1]))
        self.memory = ended
        if step.error:
            await self.tell("warning", f"{step.action.kind}: {step.error}", step=step.action.kind)
        self._changed(self._row.id)

    async def will_end(self, ending: Ending) -> None:
        """It is written why the goal is to end, and so it stays."""
        if self.memory.ending:
            return
        grown = self.memory.ending_with(ending)
        await self._memorise(ENDING, grown.written())
        self.memory = grown
        await self.tell("log", f"it is to end: {ending.why}")

    async def waits(self, wait: Wait) -> None:
        """Write what of this is new."""
        new: dict[str, Any] = {}
        if wait.why != self._message:
            new["message"] = self._message = wait.why
        if wait.progress is not None and wait.progress != self._progress:
            new["progress"] = self._progress = wait.progress
        if any(self._metrics.get(name) != value for name, value in wait.metrics.items()):
            new["metrics"] = self._metrics = {**self._metrics, **wait.metrics}
        if new:
            await self._note(**new)
        if "progress" in new:
            await self.tell("progress", wait.why, {"progress": wait.progress})
        elif "message" in new:
            await self.tell("log", wait.why)

    async def goes_on(self) -> None:
        """Time has passed: it is noted, now and then."""
        if self.elapsed_s - self._noted_s >= _NOTE_S:
            await self._note()

    async def tell(
        self, kind: GoalEventKind, message: str, metrics: Mapping[str, Any] | None = None, *, step: str = ""
    ) -> None:
        """Add an event."""
        row = self._row
        if not await self._queries.tell(
            row.id, time.time(), kind, step=step, message=message, metrics=metrics, fence=row.fence
        ):
            raise Lost
        self._changed(row.id)

    async def count(self, metrics: Mapping[str, Any]) -> None:
        """Write these among the goal's metrics."""
        self._metrics |= metrics
        await self._note(metrics=self._metrics)

    async def _note(self, **fields: Any) -> None:
        elapsed = self.elapsed_s
        if not await self._queries.note(self._row.id, self._row.fence, elapsed=elapsed, **fields):
            raise Lost
        self._noted_s = elapsed
        self._changed(self._row.id)

    async def _memorise(self, name: str, value: Mapping[str, Any], **fields: Any) -> None:
        elapsed = self.elapsed_s
        if not await self._queries.memorise(self._row.id, self._row.fence, name, value, elapsed=elapsed, **fields):
            raise Lost
        self._noted_s = elapsed


def pursued(row: GoalRow) -> Pursued:
    """The goal as it was written."""
    objective, limits = objective_of(row.request["objective"]), GoalLimits.parse(row.request["limits"])
    return Pursued(row.id, objective, limits, row.priority, memory.read(row.memo).steps, dict(row.metrics))


def readable(rows: Iterable[GoalRow]) -> Iterator[tuple[GoalRow, Pursued]]:
    """The rows, each with its goal; but for those that an earlier release has written, and this one does not take."""
    for row in rows:
        with contextlib.suppress(InvalidRequest):
            yield row, pursued(row)
