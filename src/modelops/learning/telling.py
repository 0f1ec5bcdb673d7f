"""What is told of a job while it is worked on: its row as it stands, and its events, as often as somebody could read.

Raises Lost where the job is somebody else's by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from modelops.durable.work import Lost
from modelops.learning.child import Said
from modelops.store.jobs import JobQueries, JobRow
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: Which part of the whole each step is, for the progress that is shown: training takes nearly all of the time.
_SHARES = {"validate": 1, "prepare": 2, "train": 80, "convert": 2, "parity": 5, "evaluate": 10, "publish": 1}
_TELL_S = 0.5  # between two events of progress
_WARNED = "warnings"  # in the memo, where else the results of steps are


def warnings(row: JobRow) -> list[str]:
    """What stays with the job, because its result may suffer: known when it was created, and told while it ran."""
    return [*row.request.get("warnings", ()), *row.memo.get(_WARNED, {}).get("said", ())]


class Telling:
    """What is told of one job; `changed` is called with its id whenever there is something new."""

    def __init__(self, queries: JobQueries, row: JobRow, steps: Sequence[str], changed: Callable[[str], None]) -> None:
        self._queries = queries
        self._row = row
        self._steps = steps
        self._changed = changed
        self._tasks = Tasks(f"job {row.id}")
        self._step = steps[0]
        self._part, self._parts = 0, 1
        self._heard: list[Said] = []
        self._ended = asyncio.Event()
        self._metrics = dict(row.metrics)
        self._warned = list(row.memo.get(_WARNED, {}).get("said", ()))

    async def begin(self, step: str) -> None:
        """The job does another thing now."""
        self._step = step
        self.part(0, 1)
        await self.note(step=step, progress=self._share(0.0), message="")
        await self.event("step", message=step)

    def part(self, number: int, count: int) -> None:
        """The progress that is said from now on is that of one part, from 0 on, of so many that the step has."""
        self._part, self._parts = number, count

    async def done(self, result: Mapping[str, Any]) -> None:
        """The present step is done, with that result."""
        if not await self._queries.memorise(self._row.id, self._row.fence, self._step, result):
            raise Lost

    def hear(self, said: Said) -> None:
        """Something that is said in the present step; it is written down soon, if `listening`."""
        self._heard.append(said)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """What is heard while the context is open is written down."""
        self._ended.clear()
        writing = self._tasks.start("write down", self._write(), expected=(Lost,))
        try:
            yield
        finally:
            self._ended.set()
            await asyncio.wait({writing})
        writing.result()

    async def note(self, **fields: Any) -> None:
        """Write parts of the job's row."""
        if not await self._queries.note(self._row.id, self._row.fence, **fields):
            raise Lost
        self._changed(self._row.id)

    async def event(self, kind: str, *, message: str = "", metrics: Mapping[str, Any] | None = None) -> None:
        """Add an event."""
        await self._queries.tell(
            self._row.id, time.time(), kind, step=self._step, message=message, metrics=metrics, fence=self._row.fence
        )
        self._changed(self._row.id)

    async def _write(self) -> None:
        ended = False
        while not ended:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TELL_S):
                    await self._ended.wait()
            ended = self._ended.is_set()  # seen before what was said is taken: the last of it is written, too
            heard, self._heard = self._heard, []
            try:
                await self._write_down(heard)
            except SQLAlchemyError as error:  # a full disk: what was said is lost, and no more
                log.warning("progress could not be written: %s", type(error).__name__, extra={"job": self._row.id})

    async def _write_down(self, heard: Sequence[Said]) -> None:
        for said in heard:
            if said.kind == "warning":
                await self._keep(said.message)
            if said.kind != "progress":
                await self.event(said.kind, message=said.message)
        if progress := [said for said in heard if said.kind == "progress"]:
            newest = progress[-1]
            self._metrics |= newest.metrics  # of a job that has ended, how its training went is still told
            await self.note(progress=self._share(newest.done / max(newest.total, 1)), metrics=self._metrics)
            await self.event("progress", message=newest.message, metrics=newest.metrics)

    async def _keep(self, warning: str) -> None:
        """A step that is done again may say the same again."""
        if warning not in self._warned:
            kept = [*self._warned, warning]
            if not await self._queries.memorise(self._row.id, self._row.fence, _WARNED, {"said": kept}):
                raise Lost
            self._warned = kept

    def _share(self, part: float) -> float:
        """How much of the whole is done, where `part` of the present part of the present step is."""
        done = sum(_SHARES[step] for step in self._steps[: self._steps.index(self._step)])
        here = (self._part + part) / self._parts
        return round((done + here * _SHARES[self._step]) / sum(_SHARES[step] for step in self._steps), 4)
