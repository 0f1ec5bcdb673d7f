"""Claims durable work and does it: so many at once as it is let, and beside them what is only to be ended.

The only writer of a row from its claim to its end. Work that is interrupted goes back to the queue; whoever claims it
next goes on after the last step that was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from modelops.api.errors import ModelOpsError
from modelops.durable.work import Ended, Lost, Work
from modelops.store.durable import DurableQueries, R
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: How long a row is its claimer's without a sign of life.
LEASE_S = 15.0
_HEARTBEAT_S = 2.0
#: How often the queue is looked at where nobody says that there is something new: a lease may have lapsed.
_LOOK_S = 2.0

W = TypeVar("W", bound=Work)


class Runner(ABC, Generic[R, W]):
    """Works on the rows of the state file, `at_once` of them together; what is to end is ended beside them.

    `name` is what one is called; `owner` is the same after a restart; `changed` is called with the id of a row about
    which there is something new.
    """

    def __init__(
        self, queries: DurableQueries[R], *, name: str, owner: str, at_once: int, changed: Callable[[str], None]
    ) -> None:
        self._queries = queries
        self._name = name
        self._owner = owner
        self._at_once = at_once
        self._changed = changed
        self._tasks = Tasks(name)
        self._closed = False
        self._new = asyncio.Event()
        self._working: dict[str, W] = {}

    # --- what each kind of work does in its own way ---
    @abstractmethod
    def begin(self, row: R) -> W:
        """The work on a row that was claimed."""

    @abstractmethod
    async def ended(self, row: R, end: Ended, seconds: float) -> None:
        """It is written how the row ended, so long after it was first claimed: count it, and clear away."""

    def words(self, row: R) -> str:
        """What it is called in the log when it is begun."""
        return row.id

    def about(self, row: R) -> Mapping[str, Any]:
        """What its lines in the log have with them."""
        return {"id": row.id}

    # --- what all of them do ---
    @property
    def running(self) -> int:
        """How many are being worked on."""
        return len(self._working)

    async def start(self) -> None:
        """Take back what a predecessor of the same name was at when it was killed, and begin; not after `close`."""
        if self._closed:
            return
        if count := await self._queries.requeue(self._owner):
            log.info("%d %ss were interrupted, and go on", count, self._name, extra={"count": count})
        if not self._closed:
            self._tasks.start("claim", self._claim())

    def wake(self) -> None:
        """There is something new in the queue."""
        self._new.set()

    def look(self, row_id: str) -> None:
        """Somebody wants something of that row, such as its end."""
        if work := self._working.get(row_id):
            work.look()
        else:  # it may wait to be gone on with, and is ended by whoever claims it
            self._new.set()

    async def close(self) -> None:
        """Stop where the work is; it goes back to the queue, and nothing is claimed any more."""
        self._closed = True
        await self._tasks.close()

    async def _claim(self) -> None:
        while True:
            self._new.clear()
            try:
                await self._claim_all()
            except SQLAlchemyError as error:  # a full disk, or somebody who holds the file: it may be over next time
                log.warning("the queue of %ss could not be read: %s", self._name, type(error).__name__)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._new.wait()

    async def _claim_all(self) -> None:
        while True:
            full = len(self._working) >= self._at_once
            row = await self._queries.claim(self._owner, time.time(), LEASE_S, to_end=full)
            if row is None:
                return
            if row.id in self._working:  # its lease lapsed while this machine stood still; the old claim ends first
                await self._queries.release(row.id, row.fence)
                self._working[row.id].look()
                return
            try:
                self._working[row.id] = self.begin(row)
            except ModelOpsError as error:  # an earlier release took what this one does not
                await self._queries.end(row.id, row.fence, "failed", time.time(), result={}, error=error.message)
                self._changed(row.id)
            else:
                self._tasks.start(row.id, self._work(row, self._working[row.id]))

    async def _work(self, row: R, work: W) -> None:
        said, about = (self._name, row.id), dict(self.about(row))
        log.info("working on %s %s", self._name, self.words(row), extra=about)
        try:
            await self._finished(row, work)
        except Lost:
            log.warning("%s %s is somebody else's by now", *said, extra=about)
        except SQLAlchemyError as error:  # when its lease has lapsed it is claimed again, and goes on
            log.warning("%s %s could not be written: %s", *said, type(error).__name__, extra=about)
        except asyncio.CancelledError:
            await self._queries.release(row.id, row.fence)  # nobody cancels us twice
            raise
        finally:
            if self._working.get(row.id) is work:
                del self._working[row.id]
            self._changed(row.id)
            self._new.set()

    async def _finished(self, row: R, work: W) -> None:
        """Do all of it, and write how it ended. Raises Lost where that is not ours to write."""
        keeping = self._tasks.start(f"keep {row.id}", self._keep(row, work), expected=(Lost,))
        working = self._tasks.start(f"steps of {row.id}", work.run(), expected=(ModelOpsError, Lost))
        try:
            await asyncio.wait({keeping, working}, return_when=asyncio.FIRST_COMPLETED)
            if work.whole:  # what is half done cannot be cancelled
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
                await self._end(row, working.result())
            elif isinstance(error, ModelOpsError):
                await self._end(row, Ended("failed", why=error.message))
            else:  # the task's owner has logged it
                await self._end(row, Ended("failed", why="a fault of the server ended it; the log has the reason"))
        elif not keeping.cancelled() and (lost := keeping.exception()):
            raise lost  # nobody has cleared away what it was at: whoever claims it next does
        elif work.cancel_reason is not None:
            await self._end(row, Ended("cancelled", why=work.cancel_reason))
        else:
            raise Lost

    async def _end(self, row: R, end: Ended) -> None:
        now = time.time()
        written = await self._queries.end(
            row.id, row.fence, end.status, now, result=end.result, error=end.error, why=end.why
        )
        if not written:
            raise Lost
        await self.ended(row, end, max(0.0, now - (row.started_at or now)))
        said = f"{end.status}: {end.why}" if end.why else end.status
        log.info("%s %s %s", self._name, row.id, said, extra=dict(self.about(row)))

    async def _keep(self, row: R, work: W) -> None:
        """Keep the lease while somebody works on the row, and see what others want of it."""
        while True:
            present = await self._queries.heartbeat(row.id, row.fence, time.time() + LEASE_S)
            if present is None:
                raise Lost
            if (
                present.cancel_reason is not None
                and work.cancel_reason is None
                and work.asked_to_end(present.cancel_reason)
            ):
                return  # the work is ended with it
            await work.looked_at(_HEARTBEAT_S)
