"""Learning jobs with both clients: created once, listed, watched over the end of the server's time, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from bad_http import Answer, bad_server
from clients import Kind, call, chunks
from kept_jobs import ENDED, keep
from modelops import AsyncClient, Client
from modelops.api.errors import InvalidRequest, NotFound, TooLarge
from modelops.api.learning import JobEvent, LearningJob
from support import Served, serving, tiny_gguf, wait_until

ROWS = [{"prompt": "a", "completion": "b"}]

pytestmark = pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["blocking", "async"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator that answers nothing for longer than half a second, and works on no jobs; one has ended."""
    folder = tmp_path_factory.mktemp("jobs")
    keep(folder / "data")
    env = {"MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0", "MODELOPS_SERVER__REQUEST_TIMEOUT_S": "0.5"}
    with serving(folder / "data", links=[("m", tiny_gguf(folder / "m.gguf"))], fake={}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def test_a_job_is_created_once_listed_and_cancelled(served: Served, kind: Kind) -> None:
    options: dict[str, Any] = {"dataset": ROWS, "parameters": {"metrics": ["f1"]}, "priority": "critical"}
    planned = call(kind, served.rest, "create_job", "evaluate", "m", **options, dry_run=True)
    assert (planned.job_id, planned.plan.rows) == ("", 1)
    key = f"once by {kind.__name__}"
    first = call(kind, served.rest, "create_job", "evaluate", "m", **options, idempotency_key=key)
    again = call(kind, served.rest, "create_job", "evaluate", "m", **options, idempotency_key=key)
    assert first.job_id == again.job_id
    assert (first.status, first.priority, first.parameters["metrics"]) == ("pending", "critical", ["f1"])
    assert call(kind, served.rest, "get_job", first.job_id).created_at == first.created_at
    assert first.job_id in [job.job_id for job in call(kind, served.rest, "list_jobs", "pending")]
    assert [job.job_id for job in call(kind, served.rest, "list_jobs", "completed")] == [ENDED]
    assert call(kind, served.rest, "list_jobs", "failed") == []
    assert call(kind, served.rest, "cancel_job", first.job_id, "enough").status == "cancelled"
    assert {job.status for job in call(kind, served.rest, "list_jobs")} >= {"cancelled", "completed"}


def test_what_happened_comes_from_where_somebody_was(served: Served, kind: Kind) -> None:
    events = chunks(kind, served.rest, ENDED, method="watch_job")
    assert [event.number for event in events] == [1, 2, 3]
    assert (events[-1].done, events[-1].job.result["scores"]["f1"]) == (True, 0.5)
    assert [event.number for event in chunks(kind, served.rest, ENDED, method="watch_job", after=2)] == [3]
    assert [event.number for event in chunks(kind, served.rest, ENDED, method="watch_job", first=1)] == [1]
    job_id = call(kind, served.rest, "create_job", "evaluate", "m", dataset=ROWS).job_id
    *_, last = chunks(kind, served.rest, job_id, method="watch_job", follow=False)
    assert (last.done, last.job.status) == (True, "pending")


def test_a_watch_goes_on_where_the_servers_time_was_up(served: Served, kind: Kind) -> None:
    job_id = call(kind, served.rest, "create_job", "evaluate", "m", dataset=ROWS).job_id

    async def cancelled_late() -> None:
        async with AsyncClient(served.rest) as client:
            await asyncio.sleep(1.3)  # by then two watches have been ended
            await client.cancel_job(job_id, "late")

    async def watched() -> list[JobEvent]:
        if kind is AsyncClient:
            async with AsyncClient(served.rest) as client, contextlib.aclosing(client.watch_job(job_id)) as events:
                return [event async for event in events]
        with Client(served.rest) as blocking:
            return await asyncio.to_thread(lambda: list(blocking.watch_job(job_id)))

    async def both() -> list[JobEvent]:
        seen, _ = await asyncio.gather(watched(), cancelled_late())
        return seen

    events = asyncio.run(both())
    assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].job and events[-1].job.status == "cancelled"
    numbers = [event.number for event in events]
    assert numbers == sorted(set(numbers))


def test_a_watch_is_not_begun_over_and_over_where_each_is_ended_at_once(kind: Kind) -> None:
    """As a coordinator does that shuts down, until it is away."""
    job = LearningJob(job_id="j", job_type="lora", model_name="m", status="pending", created_at=datetime.now(UTC))
    last = JobEvent(number=0, kind="state", at=job.created_at, done=True, job=job)
    over = last.model_copy(update={"job": job.model_copy(update={"completed_at": job.created_at})})
    waits, ended = (Answer(b"data: %b\n\n" % event.model_dump_json().encode()) for event in (last, over))
    path = "/learning/jobs/j/events?after=0&follow=true"
    with bad_server() as server, ThreadPoolExecutor() as threads:
        server.answers[path] = waits
        begun = time.monotonic()
        watched = threads.submit(chunks, kind, server.url(""), "j", method="watch_job")
        wait_until(lambda: len(server.requests) >= 3 or watched.done())
        assert time.monotonic() - begun > 0.8
        server.answers[path] = ended
        assert watched.result(10) == [over]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"text": "\ud800"}, "half of a surrogate pair"),
        ({"n": float("nan")}, "cannot be written as JSON"),
        ({"n": float("inf")}, "cannot be written as JSON"),
        ({"n": 10**5000}, "cannot be written as JSON"),
        ({"text": {"a set"}}, "cannot be written as JSON"),
    ],
)
def test_what_no_json_can_hold_is_told_before_it_is_sent(row: dict[str, Any], told: str, kind: Kind) -> None:
    with pytest.raises(InvalidRequest, match=told):
        call(kind, "http://127.0.0.1:9", "create_job", "evaluate", "m", dataset=[row])


def test_what_is_wrong_is_told(served: Served, kind: Kind) -> None:
    for key in ("", "a\nb", "größer"):
        with pytest.raises(InvalidRequest, match="1 to 255 printable"):
            call(kind, served.rest, "create_job", "evaluate", "m", dataset=ROWS, idempotency_key=key)
    with pytest.raises(InvalidRequest, match="row 1"):
        call(kind, served.rest, "create_job", "evaluate", "m", dataset=[{"prompt": "a"}])
    with pytest.raises(InvalidRequest, match="job_type"):
        call(kind, served.rest, "create_job", "grpo", "m", dataset=ROWS)
    with pytest.raises(NotFound):
        call(kind, served.rest, "get_job", "none")
    with pytest.raises(NotFound):
        chunks(kind, served.rest, "none", method="watch_job")
    with pytest.raises(TooLarge, match="dataset_path"):
        call(kind, served.rest, "create_job", "evaluate", "m", dataset=[{"text": "x" * 1000}] * 1100)
