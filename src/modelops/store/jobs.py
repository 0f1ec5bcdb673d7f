"""Named queries on learning jobs."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from modelops.store.durable import ENDED, DurableQueries, DurableRow, EventRow, Kind
from modelops.store.tables import learning_job_events, learning_jobs
from modelops.store.whole import whole

__all__ = ["EventRow", "JobQueries", "JobRow"]


@dataclass(frozen=True)
class JobRow(DurableRow):
    """A learning job."""

    job_type: str
    model_name: str
    output_model_name: str = ""
    step: str = ""
    paused: bool = False


_JOBS = Kind(
    "job",
    JobRow,
    learning_jobs,
    learning_job_events,
    working="running",
    noted=frozenset({"step", "progress", "metrics", "message", "paused"}),
    free={"paused": False},
    progress=500,  # enough for a curve; while a job is worked on there are two in a second
)


class JobQueries(DurableQueries[JobRow]):
    """Reads and writes the tables `learning_jobs` and `learning_job_events`."""

    def __init__(self, database: AsyncEngine) -> None:
        super().__init__(database, _JOBS)

    @whole
    async def open(self) -> list[JobRow]:
        """All jobs that have not ended, the newest first."""
        return await self._listed(learning_jobs.c.status.not_in(ENDED), None)
