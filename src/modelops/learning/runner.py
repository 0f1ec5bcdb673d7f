"""Claims learning jobs and works on them: one at a time, or as many as the settings let."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from modelops.durable import runner
from modelops.durable.work import Ended
from modelops.learning.work import Work, Works
from modelops.metrics import Metrics
from modelops.metrics.families import JOB_DURATION, JOBS_COMPLETED, JOBS_FAILED
from modelops.store.jobs import JobQueries, JobRow


class Runner(runner.Runner[JobRow, Work]):
    """Works on the jobs of the state file."""

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
        super().__init__(queries, name="learning job", owner=owner, at_once=at_once, changed=changed)
        self._works = works
        self._metrics = metrics

    def paused(self, job_id: str) -> bool:
        """Whether the job stands still because requests are being answered."""
        work = self._working.get(job_id)
        return work is not None and work.paused

    def begin(self, row: JobRow) -> Work:
        """The work on a job that was claimed."""
        return self._works.begin(row)

    async def ended(self, row: JobRow, end: Ended, seconds: float) -> None:
        """Count it; its folder is of no more use."""
        await asyncio.to_thread(self._works.folders.remove, row.id)
        if end.status != "cancelled":
            self._metrics.count(JOBS_COMPLETED if end.status == "completed" else JOBS_FAILED)
        self._metrics.observe(JOB_DURATION, seconds)

    def words(self, row: JobRow) -> str:
        """It is told which job that is, and of what model."""
        return f"{row.id} ({row.job_type} of {row.model_name})"

    def about(self, row: JobRow) -> Mapping[str, Any]:
        """Its id, and the model's name."""
        return {"job": row.id, "model": row.model_name}
