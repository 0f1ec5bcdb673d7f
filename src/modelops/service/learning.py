"""Learning jobs: created, listed, watched, cancelled. What becomes of them is `learning`'s."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from modelops.api import learning
from modelops.service.call import Call, Parts


class Learning:
    """The operations on learning jobs."""

    _parts: Parts

    async def create_job(self, call: Call, request: learning.CreateJobRequest) -> learning.LearningJob:
        """The job, checked as far as can be without a model, and waiting for its turn; or what it would take."""
        jobs = self._parts.jobs
        if request.dry_run:
            return await jobs.preview(request)
        return await jobs.create(request, caller=call.caller.name, key=call.idempotency_key)

    async def list_jobs(self, _: Call, request: learning.ListJobsRequest) -> learning.JobList:
        """The jobs, the newest first."""
        return learning.JobList(jobs=await self._parts.jobs.list(request.status))

    async def get_job(self, _: Call, request: learning.GetJobRequest) -> learning.LearningJob:
        """One job as it stands."""
        return await self._parts.jobs.get(request.job_id)

    async def watch_job(self, call: Call, request: learning.WatchJobRequest) -> AsyncGenerator[learning.JobEvent]:
        """What has happened to the job, and what happens until it has ended, or the time is up."""
        deadline = self._parts.deadline(call) if request.follow else 0.0
        async with contextlib.aclosing(self._parts.jobs.watch(request.job_id, request.after, deadline)) as events:
            async for event in events:
                yield event

    async def cancel_job(self, _: Call, request: learning.CancelJobRequest) -> learning.LearningJob:
        """The job, which ends soon if it has not yet."""
        return await self._parts.jobs.cancel(request.job_id, request.reason)
