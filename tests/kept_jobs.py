"""Learning jobs that are in a coordinator's state file before it begins, as an earlier one left them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from modelops.metrics import Metrics
from modelops.store.database import open_database
from modelops.store.jobs import EventRow, JobQueries, JobRow

#: The id of one that has ended.
ENDED = "ended"
CREATED = 1.7e9
JOB = JobRow(
    ENDED,
    "evaluate",
    "quick",
    created_at=CREATED,
    status="completed",
    request={"parameters": {"metrics": ["f1"], "max_tokens": 64, "system": ""}},
    progress=1.0,
    metrics={"rows": 2, "total_rows": 2},
    result={"model_version": "v1", "scores": {"f1": 0.5, "rows": 2, "tokens": 4, "seconds": 0.25, "versions": ["v1"]}},
    started_at=CREATED + 1,
    completed_at=CREATED + 2,
    attempts=1,
)
EVENTS = (
    EventRow(ENDED, 1, CREATED + 1, "step", step="evaluate", message="evaluate"),
    EventRow(ENDED, 2, CREATED + 1.5, "progress", step="evaluate", metrics={"rows": 1, "total_rows": 2}),
    EventRow(ENDED, 3, CREATED + 2, "state", message="completed"),
)


def keep(data_dir: Path, job: JobRow = JOB, events: Sequence[EventRow] = EVENTS) -> None:
    """Put the job there, with what has happened to it."""

    async def kept(queries: JobQueries) -> None:
        await queries.add(job)
        for event in events:
            told = {"step": event.step, "message": event.message, "metrics": event.metrics}
            await queries.tell(job.id, event.at, event.kind, **told)  # type: ignore[arg-type] # each is of its own

    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    asyncio.run(written(data_dir, kept))


async def written(data_dir: Path, write: Callable[[JobQueries], Awaitable[object]]) -> None:
    """Write to the state file, as another coordinator that works on jobs would; also while one has it."""
    database = await open_database(data_dir / "state.db", Metrics(enabled=False))
    try:
        await write(JobQueries(database))
    finally:
        await database.dispose()
