"""Goals with both clients: created once, listed, watched over the end of the server's time, cancelled."""

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
from kept_goals import REACHED, keep_goal
from modelops import AsyncClient, Client
from modelops.api.errors import InvalidRequest, NotFound
from modelops.api.goals import Goal, GoalEvent
from support import Served, serving, tiny_gguf, wait_until

KEPT: dict[str, Any] = {"type": "availability", "models": ["m"]}

pytestmark = pytest.mark.parametrize("kind", [Client, AsyncClient], ids=["blocking", "async"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator that answers nothing for longer than half a second, and pursues no goals; one has ended."""
    folder = tmp_path_factory.mktemp("goals")
    keep_goal(folder / "data")
    env = {"MODELOPS_GOALS__MAX_ACTIVE": "0", "MODELOPS_SERVER__REQUEST_TIMEOUT_S": "0.5"}
    with serving(folder / "data", links=[("m", tiny_gguf(folder / "m.gguf"))], fake={}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def test_a_goal_is_created_once_listed_and_cancelled(served: Served, kind: Kind) -> None:
    options: dict[str, Any] = {"priority": "critical", "limits": {"max_seconds": 60}, "metadata": {"team": "search"}}
    options["target_completion"] = datetime(2100, 1, 31, 12, tzinfo=UTC)
    planned = call(kind, served.rest, "create_goal", "it answers", KEPT, **options, dry_run=True)
    assert planned.goal_id == ""
    assert planned.plan.steps
    key = f"once by {kind.__name__}"
    first = call(kind, served.rest, "create_goal", "it answers", KEPT, **options, idempotency_key=key)
    again = call(kind, served.rest, "create_goal", "it answers", KEPT, **options, idempotency_key=key)
    assert first.goal_id == again.goal_id
    assert (first.status, first.priority, first.metadata) == ("pending", "critical", {"team": "search"})
    assert first.target_completion == options["target_completion"]
    assert call(kind, served.rest, "get_goal", first.goal_id).created_at == first.created_at
    assert first.goal_id in [goal.goal_id for goal in call(kind, served.rest, "list_goals")]
    assert [goal.goal_id for goal in call(kind, served.rest, "list_goals", "completed")] == [REACHED]
    assert call(kind, served.rest, "list_goals", "failed") == []
    assert call(kind, served.rest, "cancel_goal", first.goal_id, "enough").status == "cancelled"
    assert {goal.status for goal in call(kind, served.rest, "list_goals", "all")} >= {"cancelled", "completed"}


def test_what_happened_comes_from_where_somebody_was(served: Served, kind: Kind) -> None:
    events = chunks(kind, served.rest, REACHED, method="watch_goal")
    assert [event.number for event in events] == [1, 2, 3]
    assert (events[-1].done, events[-1].goal.result["after"]) == (True, {"exact_match": 0.975})
    assert [event.number for event in chunks(kind, served.rest, REACHED, method="watch_goal", after=2)] == [3]
    assert [event.number for event in chunks(kind, served.rest, REACHED, method="watch_goal", first=1)] == [1]
    goal_id = call(kind, served.rest, "create_goal", "it answers", KEPT).goal_id
    *_, last = chunks(kind, served.rest, goal_id, method="watch_goal", follow=False)
    assert (last.done, last.goal.status) == (True, "pending")


def test_a_watch_goes_on_where_the_servers_time_was_up(served: Served, kind: Kind) -> None:
    goal_id = call(kind, served.rest, "create_goal", "it answers", KEPT).goal_id

    async def cancelled_late() -> None:
        async with AsyncClient(served.rest) as client:
            await asyncio.sleep(1.3)  # by then two watches have been ended
            await client.cancel_goal(goal_id, "late")

    async def watched() -> list[GoalEvent]:
        if kind is AsyncClient:
            async with AsyncClient(served.rest) as client, contextlib.aclosing(client.watch_goal(goal_id)) as events:
                return [event async for event in events]
        with Client(served.rest) as blocking:
            return await asyncio.to_thread(lambda: list(blocking.watch_goal(goal_id)))

    async def both() -> list[GoalEvent]:
        seen, _ = await asyncio.gather(watched(), cancelled_late())
        return seen

    events = asyncio.run(both())
    assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1].goal
    assert events[-1].goal.status == "cancelled"
    numbers = [event.number for event in events]
    assert numbers == sorted(set(numbers))


def test_a_watch_is_not_begun_over_and_over_where_each_is_ended_at_once(kind: Kind) -> None:
    """As a coordinator does that shuts down, until it is away."""
    goal = Goal(goal_id="g", title="it answers", status="pending", created_at=datetime.now(UTC))
    last = GoalEvent(number=0, kind="state", at=goal.created_at, done=True, goal=goal)
    over = last.model_copy(update={"goal": goal.model_copy(update={"completed_at": goal.created_at})})
    waits, ended = (Answer(b"data: %b\n\n" % event.model_dump_json().encode()) for event in (last, over))
    path = "/goals/g/events?after=0&follow=true"
    with bad_server() as server, ThreadPoolExecutor() as threads:
        server.answers[path] = waits
        begun = time.monotonic()
        watched = threads.submit(chunks, kind, server.url(""), "g", method="watch_goal")
        wait_until(lambda: len(server.requests) >= 3 or watched.done())
        assert time.monotonic() - begun > 0.8
        server.answers[path] = ended
        assert watched.result(10) == [over]


def test_what_is_wrong_is_told(served: Served, kind: Kind) -> None:
    with pytest.raises(NotFound, match="no goal 'none'"):
        call(kind, served.rest, "get_goal", "none")
    with pytest.raises(NotFound, match="nobody"):
        call(kind, served.rest, "create_goal", "it answers", KEPT | {"models": ["nobody"]})
    with pytest.raises(InvalidRequest, match="title"):
        call(kind, served.rest, "create_goal", "", KEPT)
    for when in (datetime(2100, 1, 31), "soon", datetime.max.replace(tzinfo=UTC)):
        with pytest.raises(InvalidRequest, match="target_completion"):
            call(kind, served.rest, "create_goal", "it answers", KEPT, target_completion=when)
