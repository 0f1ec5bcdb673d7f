"""Claims learning jobs and works on them: one at a time, or as many as the settings let.

The only writer of a job's row from its claim to its end. A job that is interrupted goes back to the queue; whoever
claims it next goes on after the last step that was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from modelops.api.errors import ModelOpsError
from modelops.learning.work import Lost, Work, Works
from modelops.metrics import Metrics
from modelops.metrics.families import JOB_DURATION, JOBS_COMPLETED, JOBS_FAILED
from modelops.store.jobs import JobQueries, JobRow
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: How long a job is its claimer's without a sign of life.
LEASE_S = 15.0
_HEARTBEAT_S = 2.0
#: How often the queue is looked at where nobody says that there is something new: a lease may have lapsed.
_LOOK_S = 2.0


class Runner:
    """Works on the jobs of the state file, `at_once` of them together."""

    def __init__(
        self,
        queries: JobQueries,
        works: Works,
        metrics: Metrics,
        *,
        owner: str,
        at_once: int,
        changed: Callable[[str], None],
    ) -> None:
        self._queries = queries
        self._works = works
        self._metrics = metrics
        self._owner = owner
        self._at_once = at_once
        self._changed = changed
        self._tasks = Tasks("learning")
        self._new = asyncio.Event()
        self._working: dict[str, Work] = {}

    @property
    def running(self) -> int:
        """Jobs that are being worked on."""
        return len(self._working)

    def paused(self, job_id: str) -> bool:
        """Whether the job stands still because requests are being answered."""
        work = self._working.get(job_id)
        return work is not None and work.paused

    async def start(self) -> None:
        """Take back what a predecessor of the same name was at when it was killed, and begin."""
        if count := await self._queries.requeue(self._owner):
            log.info("%d learning jobs were interrupted, and go on", count, extra={"count": count})
        if self._at_once:
            self._tasks.start("claim", self._claim())

    def wake(self) -> None:
        """There is something new in the queue, or somebody wants a job to end."""
        self._new.set()
        for work in self._working.values():
            work.look()

    async def close(self) -> None:
        """Stop where the jobs are; they go back to the queue."""
        await self._tasks.close()

    async def _claim(self) -> None:
        while True:
            self._new.clear()
            try:
                await self._claim_all()
            except SQLAlchemyError as error:  # a full disk, or somebody who holds the file: it may be over next time
                log.warning("the queue of learning jobs could not be read: %s", type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._new.wait()

    async def _claim_all(self) -> None:
        while len(self._working) < self._at_once:
            row = await self._queries.claim(self._owner, time.time(), LEASE_S)
            if row is None:
                return
            if row.id in self._working:  # its lease lapsed while this machine stood still; the old claim ends first
                await self._queries.release(row.id, row.fence)
                self._working[row.id].look()
                return
            self._working[row.id] = self._works.begin(row)
            self._tasks.start(f"job {row.id}", self._work(row, self._working[row.id]))

    async def _work(self, row: JobRow, work: Work) -> None:
        about = {"job": row.id, "model": row.model_name}
        log.info("working on learning job %s (%s of %s)", row.id, row.job_type, row.model_name, extra=about)
        try:
            await self._finished(row, work)
        except Lost:
            log.warning("learning job %s is somebody else's by now", row.id, extra=about)
        except SQLAlchemyError as error:  # when its lease has lapsed it is claimed again, and goes on
            log.warning("learning job %s could not be written: %s", row.id, type(error).__name__, extra=about)
        except asyncio.CancelledError:
            await self._queries.release(row.id, row.fence)  # nobody cancels us twice
            raise
        finally:
            if self._working.get(row.id) is work:
                del self._working[row.id]
            self._changed(row.id)
            self._new.set()

    async def _finished(self, row: JobRow, work: Work) -> None:
        """Do all of it, and write how it ended. Raises Lost where that is not ours to write."""
        keeping = self._tasks.start(f"keep {row.id}", self._keep(row, work), expected=(Lost,))
        working = self._tasks.start(f"steps of {row.id}", work.run(), expected=(ModelOpsError, Lost))
        try:
            await asyncio.wait({keeping, working}, return_when=asyncio.FIRST_COMPLETED)
            if work.publishing:  # what is half published cannot be cancelled
                await asyncio.wait({working})
        finally:
            for task in (working, keeping):
                if not task.cancelling():  # whoever closes has: a second time would cut short what it still clears up
                    task.cancel()
            await asyncio.wait({working, keeping})
        if not working.cancelled():
            error = working.exception()
            if isinstance(error, Lost | SQLAlchemyError):
                raise error
            if error is None:
                await self._end(row, "completed", working.result(), "")
            elif isinstance(error, ModelOpsError):
                await self._end(row, "failed", {}, error.message)
            else:  # the task's owner has logged it
                await self._end(row, "failed", {}, "a fault of the server ended it; the log has the reason")
        elif work.cancel_reason is not None:
            await self._end(row, "cancelled", {}, work.cancel_reason)
        else:
            raise Lost

    async def _end(self, row: JobRow, status: str, result: dict[str, object], why: str) -> None:
        now = time.time()
        ended = await self._queries.end(row.id, row.fence, status, now, result=result, error=why)
        if not ended:
            raise Lost
        await asyncio.to_thread(self._works.folders.remove, row.id)
        said = f"{status}: {why}" if why else status
        log.info("learning job %s %s", row.id, said, extra={"job": row.id, "model": row.model_name})
        if status != "cancelled":
            self._metrics.count(JOBS_COMPLETED if status == "completed" else JOBS_FAILED)
        self._metrics.observe(JOB_DURATION, max(0.0, now - (row.started_at or now)))

    async def _keep(self, row: JobRow, work: Work) -> None:
        """Keep the lease while somebody works on the job, and see what others want of it."""
        while True:
            present = await self._queries.heartbeat(row.id, row.fence, time.time() + LEASE_S)
            if present is None:
                raise Lost
            if present.cancel_reason is not None:
                work.cancel_reason = present.cancel_reason
                return  # the work is ended with it
            await work.looked_at(_HEARTBEAT_S)
