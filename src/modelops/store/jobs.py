"""Named queries on learning jobs: durable work with a lease, a heartbeat and a fencing token.

Whoever works on a job has claimed it: it has the job's `fence`, and every write of it names that. Once the lease has
lapsed and somebody else has claimed the job, such a write changes nothing and says so.

The clock is the caller's: of several machines that share a database, the clocks must agree to well within a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, case, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from modelops.store.tables import learning_job_events, learning_jobs

#: The statuses that a job ends with; it keeps the one that it was given first.
ENDED = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True)
class JobRow:
    """A learning job. Times are seconds since the epoch; `request`, `memo`, `metrics`, `result` are JSON objects."""

    id: str
    job_type: str
    model_name: str
    created_at: float
    number: int = 0
    output_model_name: str = ""
    status: str = "pending"
    priority: int = 1
    caller: str = ""
    idempotency_key: str | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    memo: Mapping[str, Any] = field(default_factory=dict)
    step: str = ""
    progress: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    paused: bool = False
    cancel_reason: str | None = None
    started_at: float | None = None
    completed_at: float | None = None
    lease_owner: str = ""
    lease_until: float = 0.0
    fence: int = 0
    attempts: int = 0


@dataclass(frozen=True)
class EventRow:
    """Something that happened to a job; `number` is from 1 on, for each job."""

    job_id: str
    number: int
    at: float
    kind: str
    step: str = ""
    message: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)


_JOB = [learning_jobs.c[each.name] for each in fields(JobRow)]
_EVENT = [learning_job_events.c[each.name] for each in fields(EventRow)]
_JSON = frozenset({"request", "memo", "metrics", "result"})
_NOTED = frozenset({"step", "progress", "metrics", "message", "paused"})


class JobQueries:
    """Reads and writes the tables `learning_jobs` and `learning_job_events`; on SQLite and PostgreSQL alike.

    Any number of coroutines, processes, and on PostgreSQL machines may use the same tables at once.
    """

    def __init__(self, database: AsyncEngine) -> None:
        if database.dialect.name == "postgresql":
            # Each statement sees what others wrote before it; with a stricter level, writers at once would be refused.
            database = database.execution_options(isolation_level="READ COMMITTED")
        self._database = database
        # SQLite has one writer at a time, and whoever waits for it looks again after ever longer pauses.
        self._turn = asyncio.Lock() if database.dialect.name == "sqlite" else contextlib.nullcontext()

    async def add(self, row: JobRow) -> tuple[JobRow, bool]:
        """Insert the job, with the next number, and True; or the one that its caller made before under the same
        idempotency key, and False."""
        jobs, written = learning_jobs.c, _columns(vars(row))
        key = written["idempotency_key"]
        before = select(*_JOB).where((jobs.caller == written["caller"]) & (jobs.idempotency_key == key))
        number = select(func.coalesce(func.max(jobs.number), 0) + 1).scalar_subquery()
        made = insert(learning_jobs).values(written | {"number": number}).returning(*_JOB)
        async with self._writing() as connection:
            if connection.dialect.name == "postgresql":  # the last number, and whether a key is there, have no row
                await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('learning_jobs.number'))"))
            if key is not None:
                known = (await connection.execute(before)).first()
                if known:
                    return _job(known), False
            return _job((await connection.execute(made)).one()), True

    async def get(self, job_id: str) -> JobRow | None:
        """The job, if there is one."""
        async with self._database.connect() as connection:
            row = (await connection.execute(_one(job_id))).first()
            return _job(row) if row else None

    async def of_key(self, caller: str, key: str) -> JobRow | None:
        """The job that the caller made under that idempotency key, if there is one."""
        jobs = learning_jobs.c
        chosen = select(*_JOB).where((jobs.caller == caller) & (jobs.idempotency_key == key))
        async with self._database.connect() as connection:
            row = (await connection.execute(chosen)).first()
            return _job(row) if row else None

    async def all(self, status: str | None = None, limit: int = 1000) -> list[JobRow]:
        """Jobs, the newest first."""
        chosen = select(*_JOB).order_by(learning_jobs.c.number.desc()).limit(limit)
        if status is not None:
            chosen = chosen.where(learning_jobs.c.status == status)
        async with self._database.connect() as connection:
            return [_job(row) for row in await connection.execute(chosen)]

    async def unfinished(self) -> set[str]:
        """The ids of all jobs that have not ended."""
        chosen = select(learning_jobs.c.id).where(learning_jobs.c.status.not_in(ENDED))
        async with self._database.connect() as connection:
            return set((await connection.execute(chosen)).scalars())

    async def count(self, status: str) -> int:
        """How many jobs have that status."""
        counted = select(func.count()).select_from(learning_jobs).where(learning_jobs.c.status == status)
        async with self._database.connect() as connection:
            return (await connection.execute(counted)).scalar_one()

    async def claim(self, owner: str, now: float, lease_s: float) -> JobRow | None:
        """Take the next job for `lease_s`: pending, or running with a lease that has lapsed. It is running, and its
        fence and attempts have grown by one. None: there is none, or somebody writes to it at this moment (PostgreSQL).

        First are those with a `cancel_reason`, given back or left before they could be ended so: whoever claims one
        ends it. Then the highest priority, then the oldest.
        """
        jobs = learning_jobs.c
        lapsed = (jobs.status == "running") & (jobs.lease_until <= now)
        chosen = (
            select(jobs.id)
            .where((jobs.status == "pending") | lapsed)
            .order_by(jobs.cancel_reason.is_(None), jobs.priority.desc(), jobs.number)
            .limit(1)
            # Whoever has stopped within a write holds nobody up. SQLite, with its one writer, leaves this out.
            .with_for_update(skip_locked=True)
        )
        claimed = {
            "status": "running",
            "paused": False,
            "started_at": func.coalesce(jobs.started_at, now),
            "lease_owner": owner,
            "lease_until": now + lease_s,
            "fence": jobs.fence + 1,
            "attempts": jobs.attempts + 1,
        }
        return await self._change(jobs.id == chosen.scalar_subquery(), claimed)

    async def heartbeat(self, job_id: str, fence: int, until: float) -> JobRow | None:
        """Keep the job until then; as it stands, with what others want of it. None: it is somebody else's by now, or
        has ended."""
        return await self._change(_held(job_id, fence), {"lease_until": until})

    async def note(self, job_id: str, fence: int, **fields: Any) -> bool:
        """Write some of step, progress, metrics, message, paused. False: it is somebody else's by now, or has ended."""
        if unknown := fields.keys() - _NOTED:
            raise TypeError(f"note() writes {', '.join(sorted(_NOTED))}, and not {', '.join(sorted(unknown))}")
        return await self._change(_held(job_id, fence), {"fence": fence, **fields}) is not None

    async def memorise(self, job_id: str, fence: int, step: str, result: Mapping[str, Any]) -> bool:
        """The step is done, with that result; it is not done again. False as in `note`."""
        held = _held(job_id, fence)
        async with self._writing() as connection:
            memo = (await connection.execute(select(learning_jobs.c.memo).where(held).with_for_update())).scalar()
            if memo is None:
                return False
            grown = _columns({"memo": {**json.loads(memo), step: result}})
            await connection.execute(update(learning_jobs).where(held).values(grown))
            return True

    async def end(
        self, job_id: str, fence: int, status: str, at: float, *, result: Mapping[str, Any], error: str = ""
    ) -> bool:
        """The job has ended so, once: completed, failed or cancelled; its last event says so. False as in `note`."""
        if status not in ENDED:
            raise ValueError(f"a job does not end as {status!r}; that is one of {', '.join(sorted(ENDED))}")
        ended = _free() | {"status": status, "completed_at": at, "result": result, "error": error}
        return await self._change(_held(job_id, fence), ended, _state(status, error, at)) is not None

    async def release(self, job_id: str, fence: int) -> bool:
        """Back to the queue: whoever claims it next goes on with it. False as in `note`."""
        return await self._change(_held(job_id, fence), _free() | {"status": "pending"}) is not None

    async def requeue(self, owner: str) -> int:
        """Back to the queue with all that `owner` was at when it was killed, its leases lapsed or not; how many."""
        jobs = learning_jobs.c
        chosen = (jobs.status == "running") & (jobs.lease_owner == owner)
        given_back = update(learning_jobs).where(chosen).values(_columns(_free() | {"status": "pending"}))
        async with self._writing() as connection:
            return (await connection.execute(given_back)).rowcount

    async def ask_cancel(self, job_id: str, reason: str, at: float) -> JobRow | None:
        """Somebody wants the job to end. A pending one is cancelled at once; a running one is by whoever works on it;
        one that has ended is left as it is, and of two reasons the first. The job as it stands then; None: there is
        none."""
        jobs = learning_jobs.c
        pending = jobs.status == "pending"
        asked = {
            "cancel_reason": func.coalesce(jobs.cancel_reason, _clean(reason)),
            "status": case((pending, "cancelled"), else_=jobs.status),
            "completed_at": case((pending, at), else_=jobs.completed_at),
            "error": case((pending, _clean(reason)), else_=jobs.error),
        }
        chosen, told = (jobs.id == job_id) & jobs.status.not_in(ENDED), _state("cancelled", reason, at)
        return await self._change(chosen, asked, told) or await self.get(job_id)

    async def tell(
        self,
        job_id: str,
        at: float,
        kind: str,
        *,
        step: str = "",
        message: str = "",
        metrics: Mapping[str, Any] | None = None,
        fence: int | None = None,
    ) -> int:
        """Add an event with the job's next number, which is returned. 0, and nothing is added: there is no such job,
        or a `fence` is given and somebody else has claimed the job since."""
        job = select(learning_jobs.c.id).where(learning_jobs.c.id == job_id)
        if fence is not None:
            job = job.where(learning_jobs.c.fence == fence)
        said = _columns({"at": at, "kind": kind, "step": step, "message": message, "metrics": metrics or {}})
        number = select(_last(job_id) + 1).scalar_subquery()
        event = insert(learning_job_events).values(job_id=job_id, number=number, **said)
        async with self._writing() as connection:
            if (await connection.execute(job.with_for_update())).first() is None:
                return 0
            return int((await connection.execute(event.returning(learning_job_events.c.number))).scalar_one())

    async def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[EventRow]:
        """The job's events with a higher number than `after`, in order, at most `limit` of them."""
        events = learning_job_events.c
        chosen = select(*_EVENT).where((events.job_id == job_id) & (events.number > after))
        async with self._database.connect() as connection:
            rows = await connection.execute(chosen.order_by(events.number).limit(limit))
            return [EventRow(**_fields(row)) for row in rows]

    async def latest(self, job_id: str) -> int:
        """The number of the job's last event; 0: there is none."""
        async with self._database.connect() as connection:
            return (await connection.execute(select(_last(job_id)))).scalar_one()

    async def _change(
        self, chosen: ColumnElement[bool], values: Mapping[str, Any], told: Mapping[str, Any] | None = None
    ) -> JobRow | None:
        """The one job that is `chosen`, changed; where that ends it, `told` is its last event, written with it."""
        # One statement: what it is chosen by still holds when it is written.
        changed = update(learning_jobs).where(chosen).values(_columns(values)).returning(*_JOB)
        async with self._writing() as connection:
            row = (await connection.execute(changed)).first()
            job = _job(row) if row else None
            if job and told and job.status in ENDED:
                number = select(_last(job.id) + 1).scalar_subquery()
                await connection.execute(insert(learning_job_events).values(job_id=job.id, number=number, **told))
            return job

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        async with self._turn, self._database.begin() as connection:
            if connection.dialect.name == "sqlite":
                # By itself the driver begins with the first write: what was read before could have changed by then.
                await connection.execute(text("BEGIN IMMEDIATE"))
            yield connection


def _one(job_id: str) -> Select[Any]:
    return select(*_JOB).where(learning_jobs.c.id == job_id)


def _held(job_id: str, fence: int) -> ColumnElement[bool]:
    jobs = learning_jobs.c
    return (jobs.id == job_id) & (jobs.fence == fence) & (jobs.status == "running")


def _free() -> dict[str, Any]:
    return {"paused": False, "lease_owner": "", "lease_until": 0.0}


def _state(status: str, why: str, at: float) -> dict[str, Any]:
    """The event of a job's end."""
    message = f"{status}: {why}" if why else status
    return _columns({"at": at, "kind": "state", "step": "", "message": message, "metrics": {}})


def _last(job_id: str) -> ColumnElement[int]:
    events = learning_job_events.c
    return select(func.coalesce(func.max(events.number), 0)).where(events.job_id == job_id).scalar_subquery()


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if name in _JSON else _clean(value) for name, value in values.items()}


def _clean(value: Any) -> Any:
    """What a program said of itself may hold characters that a database does not take."""
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _job(row: Row[Any]) -> JobRow:
    return JobRow(**_fields(row))


def _fields(row: Row[Any]) -> dict[str, Any]:
    return {name: json.loads(value) if name in _JSON else value for name, value in row._mapping.items()}
