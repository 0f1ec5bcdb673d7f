"""Learning jobs as callers see them: checked when they are created, listed, watched, cancelled.

Decides nothing about what runs: that is the runner's, which is told that there is something new.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from datetime import UTC, datetime

from modelops.api.errors import Conflict, DiskFull, ModelOpsError, NotFound, Overloaded
from modelops.api.learning import CreateJobRequest, JobEvent, JobStatus, LearningJob, Priority
from modelops.durable import watching
from modelops.durable.asked import digest
from modelops.durable.bell import Bell
from modelops.learning import datasets
from modelops.learning.checks import Checked, Rows, check
from modelops.learning.folders import Folders
from modelops.learning.runner import Runner
from modelops.learning.telling import warnings
from modelops.metrics import Metrics
from modelops.metrics.families import JOBS
from modelops.serving.catalog import Catalog
from modelops.serving.devices import Machine
from modelops.serving.pool import Pool
from modelops.settings import Settings
from modelops.store.jobs import JobQueries, JobRow
from modelops.tasks import Tasks

PRIORITIES: dict[Priority, int] = {"low": 0, "medium": 1, "high": 2, "critical": 3}
_SPARE_BYTES = 256 << 20  # left free on the disk


class Jobs:
    """All learning jobs."""

    def __init__(
        self,
        settings: Settings,
        queries: JobQueries,
        catalog: Catalog,
        pool: Pool,
        folders: Folders,
        metrics: Metrics,
        bell: Bell,
        runner: Runner,
        machine: Machine,
    ) -> None:
        self._settings = settings
        self._queries = queries
        self._catalog = catalog
        self._pool = pool
        self._folders = folders
        self._metrics = metrics
        self._bell = bell
        self._runner = runner
        self._machine = machine
        self._tasks = Tasks("jobs")

    @property
    def running(self) -> int:
        """Jobs that are being worked on here."""
        return self._runner.running

    async def in_use(self) -> dict[tuple[str, str], str]:
        """The versions, as (model, label), that unfinished jobs train or judge; of each the first job's id."""
        return {(row.model_name, row.request["model_version"]): row.id for row in await self._queries.open()}

    def prune(self, digests: Collection[str]) -> tuple[list[str], int]:
        """Delete what was made of models that have none of `digests`; what, and the bytes that this gave back."""
        return self._folders.prune(digests)

    async def close(self) -> None:
        """Finish what is being created; whoever watches is told that the time is up."""
        self._bell.close()
        await self._tasks.finish()

    async def preview(self, request: CreateJobRequest, rows: Mapping[str, Rows] | None = None) -> LearningJob:
        """What the job would be, and take (`plan`); nothing is created, its id is empty. Raises as `create`."""
        checked = await self._checked(request, rows)
        row = _row("", request, checked, "", None)
        return self._told(row).model_copy(update={"plan": checked.plan})

    async def create(
        self, request: CreateJobRequest, *, caller: str, key: str | None, rows: Mapping[str, Rows] | None = None
    ) -> LearningJob:
        """The job, waiting for its turn; or the one that this caller made before under the same idempotency key.

        `rows`, by the name of their file, are the coordinator's own, read and checked before: the request has none.

        Raises InvalidRequest for what is wrong with the request or a row, NotFound for the model or a file,
        NotAvailable where the extra `learning` is not installed, InsufficientMemory where it would never fit.
        """
        if key is not None and (made := await self._queries.of_key(caller, key)):
            return self._repeated(made, request)
        if await self._queries.count("pending") >= self._settings.learning.max_pending_jobs:
            raise Overloaded(
                f"{self._settings.learning.max_pending_jobs} learning jobs wait already (learning.max_pending_jobs); "
                "cancel some, or try again when some have ended",
                retry_after_s=60.0,
            )
        checked = await self._checked(request, rows)
        row = _row(secrets.token_hex(6), request, checked, caller, key)
        # Whoever asked may be gone meanwhile: rows and row belong together.
        added = await self._tasks.whole(f"create {row.id}", self._create(row, checked), expected=(ModelOpsError,))
        if added.id != row.id:
            return self._repeated(added, request)
        return self._told(added).model_copy(update={"plan": checked.plan})

    async def _create(self, row: JobRow, checked: Checked) -> JobRow:
        new = False
        try:
            await asyncio.to_thread(self._write, row.id, checked)
            added, new = await self._queries.add(row)
        finally:
            if not new:
                await asyncio.to_thread(self._folders.remove, row.id)
        if new:
            self._metrics.count(JOBS)
            for warning in checked.warnings:
                await self._queries.tell(row.id, time.time(), "warning", message=warning)
            self._runner.wake()
        return added

    def _repeated(self, row: JobRow, request: CreateJobRequest) -> LearningJob:
        """The job that was created under the same key. Raises Conflict where something else was asked for."""
        if row.request.get("asked") != digest(request):
            raise Conflict("another job was created under this idempotency key; give each job a key of its own")
        return self._told(row)

    async def list(self, status: JobStatus | None = None) -> list[LearningJob]:
        """The jobs, the newest first."""
        return [self._told(row) for row in await self._queries.all(status)]

    async def get(self, job_id: str) -> LearningJob:
        """One job as it stands. Raises NotFound."""
        return self._told(await self._row(job_id))

    async def watch(self, job_id: str, after: int, deadline: float) -> AsyncGenerator[JobEvent]:
        """What has happened to the job after the event `after`, and what happens until it has ended.

        The last event is `done` and has the job with it; where the deadline, on the loop's clock, comes before the
        job's end, that is an event which has been seen already, or number 0, and the job has not ended.
        Raises NotFound before the first event.
        """
        watched = watching.watch(self._queries, self._bell, job_id, after, deadline, self._row)
        async with contextlib.aclosing(watched) as events:
            async for event, row in events:
                last = {"done": True, "job": self._told(row)} if row else {}
                yield watching.told(event, JobEvent, **last)

    async def of_key(self, caller: str, key: str) -> LearningJob | None:
        """The job that the caller has made under that idempotency key, if there is one."""
        row = await self._queries.of_key(caller, key)
        return self._told(row) if row else None

    async def cancel(self, job_id: str, reason: str) -> LearningJob:
        """The job, which ends soon if it has not yet. Raises NotFound."""
        before = await self._row(job_id)
        row = await self._queries.ask_cancel(job_id, reason, time.time())
        if row is None:
            raise _unknown(job_id)
        if before.status == "pending" and row.status == "cancelled":
            await asyncio.to_thread(self._folders.remove, job_id)
        self._runner.look(job_id)
        self._bell.ring(job_id)
        return self._told(row)

    # --- helpers ---
    async def _checked(self, request: CreateJobRequest, rows: Mapping[str, Rows] | None) -> Checked:
        checked = await check(request, self._settings, self._catalog, self._pool, self._machine, rows)
        free = await asyncio.to_thread(self._free_bytes)
        needed = checked.disk_bytes + _SPARE_BYTES
        if free < needed:
            raise DiskFull(
                f"there is no room on the disk for this job: {needed >> 20} MB are needed, {free >> 20} MB are free; "
                "make room in the data folder, or put it elsewhere with data_dir",
                details={"resource": "disk", "needed_bytes": str(needed), "free_bytes": str(free)},
            )
        return checked

    def _free_bytes(self) -> int:
        self._folders.jobs.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self._folders.jobs).free

    def _write(self, job_id: str, checked: Checked) -> None:
        folder = self._folders.make(job_id)
        for name, rows in checked.rows.items():
            datasets.write(rows, folder / name)

    async def _row(self, job_id: str) -> JobRow:
        row = await self._queries.get(job_id)
        if row is None:
            raise _unknown(job_id)
        return row

    def _told(self, row: JobRow) -> LearningJob:
        return told(row, paused=self._runner.paused(row.id))


def told(row: JobRow, *, paused: bool = False) -> LearningJob:
    """The job as callers see it."""
    running = row.status == "running"
    return LearningJob(
        job_id=row.id,
        job_type=row.job_type,
        model_name=row.model_name,
        status=row.status,
        progress=1.0 if row.status == "completed" else row.progress,
        created_at=_time(row.created_at),
        started_at=_time(row.started_at) if row.started_at else None,
        completed_at=_time(row.completed_at) if row.completed_at else None,
        parameters=dict(row.request.get("parameters", {})),
        # When it will have ended is known only of one that is worked on.
        metrics={name: value for name, value in row.metrics.items() if name != "eta_seconds" or running},
        result=dict(row.result),
        error_message=row.error,
        step=row.step if running or row.status in ("failed", "cancelled") else "",
        paused=paused,
        output_model_name=row.output_model_name,
        priority=next(name for name, value in PRIORITIES.items() if value == row.priority),
        attempts=row.attempts,
        warnings=warnings(row),
        message=row.message if running else "",
    )


def _row(job_id: str, request: CreateJobRequest, checked: Checked, caller: str, key: str | None) -> JobRow:
    return JobRow(
        id=job_id,
        job_type=request.job_type,
        model_name=checked.version.model_name,
        created_at=time.time(),
        output_model_name=checked.output_model_name,
        priority=PRIORITIES[request.priority],
        caller=caller,
        idempotency_key=key,
        request={
            "parameters": checked.parameters.model_dump(mode="json"),
            "model_version": checked.version.label,
            "publish": checked.publish,
            "dataset_digest": checked.dataset_digest,
            "warnings": list(checked.warnings),
            "asked": digest(request),
        },
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _unknown(job_id: str) -> NotFound:
    return NotFound(f"there is no learning job '{job_id[:64]}'; the listing of jobs tells those that there are")
