"""Goals as callers see them."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from goals.pursued import CountingDoer, Pursuing, pursuing, request
from metrics.pages import samples
from modelops.api.errors import Conflict, InvalidRequest, NotFound, Overloaded
from modelops.durable.bell import Bell
from modelops.goals.doing import HELD_OUT
from modelops.learning import datasets


async def ended_at_once(parts: Pursuing, goal_id: str) -> str:
    async for event in parts.goals.watch(goal_id, 0, 0.0):
        if event.done:
            return event.message
    raise AssertionError("there is a last event")


# --- creating ---
async def test_a_goal_waits_with_its_rows_copied_and_all_that_was_said_of_it(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        later = datetime.now(UTC) + timedelta(hours=1)
        made = await parts.create(
            rows=True,
            description="what for",
            priority="high",
            target_completion=later.isoformat(),
            limits={"max_jobs": 2},
            metadata={"team": "a"},
        )
        assert (made.status, made.priority, made.limits) == ("pending", "high", {"max_jobs": 2})
        assert made.plan
        assert (made.warnings, made.metadata, made.description) == (["a warning"], {"team": "a"}, "what for")
        assert made.target_completion == later
        assert "eval_dataset" not in made.objective
        assert made.objective["model_name"] == "m"
        rows = datasets.load(parts.folders.goal(made.goal_id) / HELD_OUT, "evaluate")
        assert [row.answer for row in rows] == ["4"]
        assert await parts.goals.get(made.goal_id) == made.model_copy(update={"plan": None})
        assert samples(parts.metrics.page({}).decode())["moc_goals_total", ()] == 1


UNTIL = {"until": "2100-01-31T12:00:00Z"}


@pytest.mark.parametrize(
    ("kind", "objective", "fields", "warned"),
    [
        ("availability", {}, {}, ""),
        ("availability", UNTIL, {"limits": {"max_seconds": 9}}, ""),
        ("availability", UNTIL, {"target_completion": "2100-01-31T12:00:01Z"}, ""),
        (
            "availability",
            {},
            {"limits": {"max_seconds": 9}},
            r"without objective\.until .* at limits\.max_seconds it will",
        ),
        ("availability", {}, {"target_completion": "2100-01-31T12:00:00Z"}, "at target_completion it will have failed"),
        ("serving", {"watch_seconds": 60}, {"limits": {"max_seconds": 60.5}}, ""),
        ("serving", {"watch_seconds": 60}, {"limits": {"max_seconds": 60}}, r"\(60\) leave no time for the 60 s"),
        ("quality", {"watch_seconds": 9}, {"limits": {"max_seconds": 1.5}}, r"\(1\.5\) leave no time for the 9 s"),
    ],
)
async def test_what_its_limits_will_not_let_come_to_pass_is_warned_of(
    tmp_path: Path, kind: str, objective: dict[str, Any], fields: dict[str, Any], warned: str
) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        wanted = request("m", kind, **fields)
        found = await parts.goals.preview(wanted.model_copy(update={"objective": wanted.objective | objective}))
        assert len(found.warnings) == bool(warned)
        assert re.search(warned, "".join(found.warnings))


async def test_a_preview_makes_nothing(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        found = await parts.goals.preview(request(rows=True))
        assert (found.goal_id, found.plan and found.plan.steps[0]) == ("", "look")
        assert await parts.goals.list("all") == []
        assert not parts.folders.root.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"objective": {"type": "peace"}}, "objective.type"),
        ({"objective": {"type": "quality", "model_name": "m", "target": 2}}, "target"),
        ({"limits": {"max_job": 1}}, "limits: unknown field 'max_job'"),
        ({"limits": {"max_seconds": 0}}, "limits: "),
        ({"target_completion": "2001-01-01T00:00:00Z"}, "target_completion has passed"),
        (
            {
                "objective": {"type": "availability", "models": ["m"], "until": "2100-01-31T12:00:00Z"},
                "target_completion": "2100-01-31T11:59:59Z",
            },
            r"target_completion is before objective\.until",
        ),
    ],
)
async def test_what_is_wrong_is_said_and_nothing_is_made(tmp_path: Path, given: dict[str, object], said: str) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        with pytest.raises(InvalidRequest, match=said):
            await parts.create(**given)  # type: ignore[arg-type] # fields of the request
        assert await parts.goals.list("all") == []


async def test_the_same_request_under_one_key_is_one_goal_and_another_is_refused(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        made = await asyncio.gather(*(parts.create(key="k", rows=True) for _ in range(5)))
        assert len({goal.goal_id for goal in made}) == 1
        assert [folder.name for folder in parts.folders.root.iterdir()] == [made[0].goal_id]
        with pytest.raises(Conflict, match="idempotency key"):
            await parts.create("another", key="k")
        assert len(await parts.goals.list()) == 1


async def test_two_goals_that_want_the_same_of_one_model_contradict_each_other(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        first = await parts.create()
        for refused in (parts.create(priority="critical"), parts.goals.preview(request())):
            with pytest.raises(Conflict, match=f"the goal {first.goal_id} \\('of m'\\)"):
                await refused
        for kind, model in (("serving", "m"), ("quality", "n"), ("availability", "m"), ("availability", "m")):
            await parts.create(model, kind)
        await parts.goals.cancel(first.goal_id, "")
        assert (await parts.create()).status == "pending"


async def test_of_several_that_contradict_each_other_at_once_one_is_made(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        made = await asyncio.gather(*(parts.create(rows=True) for _ in range(8)), return_exceptions=True)
        assert sorted(type(each).__name__ for each in made) == ["Conflict"] * 7 + ["Goal"]
        assert len(list(parts.folders.root.iterdir())) == 1


async def test_more_than_may_wait_are_refused(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False, max_pending=2) as parts:
        await parts.create("a")
        await parts.create("b")
        with pytest.raises(Overloaded, match=r"goals\.max_pending") as refused:
            await parts.create("c")
        assert refused.value.retry_after_s


# --- looking ---
async def test_without_a_status_those_that_have_not_ended_are_listed(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        a, b = await parts.create("a"), await parts.create("b")
        assert (await parts.goals.cancel(a.goal_id, "")).error_message == "it was cancelled"
        listed = {
            status: [goal.objective["model_name"] for goal in await parts.goals.list(status)]
            for status in (None, "all", "pending", "active", "cancelled")
        }
        assert listed == {None: ["b"], "all": ["b", "a"], "pending": ["b"], "active": [], "cancelled": ["a"]}
        assert b.status == "pending"


async def test_what_there_is_not_is_not_found(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        for asked in (parts.goals.get("x"), parts.goals.cancel("x", ""), anext(parts.goals.watch("x", 0, 0.0))):
            with pytest.raises(NotFound, match="there is no goal 'x'"):
                await asked


async def test_a_goal_that_waits_is_cancelled_at_once_and_its_rows_are_gone(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        made = await parts.create(rows=True)
        assert (await parts.goals.cancel(made.goal_id, "no more")).status == "cancelled"
        again = await parts.goals.cancel(made.goal_id, "another reason")
        assert (again.status, again.error_message) == ("cancelled", "no more")
        assert not parts.folders.goal(made.goal_id).exists()
        assert await ended_at_once(parts, made.goal_id) == "cancelled: no more"


async def test_a_list_has_the_newest_steps_of_each_goal(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(script=["look"] * 13)) as parts:
        made = await parts.create(rows=True)
        ended = await parts.end(made.goal_id)
        (listed,) = await parts.goals.list("all")
        assert [step.number for step in ended.steps] == list(range(1, 14))
        assert listed == ended.model_copy(update={"steps": ended.steps[3:]})


async def test_whoever_leaves_is_listened_for_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    hearing = Bell.hearing

    @contextlib.contextmanager
    def counted(bell: Bell, row_id: str) -> Iterator[asyncio.Event]:
        heard.append(row_id)
        try:
            with hearing(bell, row_id) as rung:
                yield rung
        finally:
            heard.remove(row_id)

    monkeypatch.setattr(Bell, "hearing", counted)
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        made = await parts.create(rows=True)
        watching = parts.goals.watch(made.goal_id, 0, asyncio.get_running_loop().time() + 20)
        assert (await anext(watching)).kind == "warning"
        assert heard == [made.goal_id]
        await watching.aclose()
        assert heard == []


async def test_whoever_watches_is_told_of_each_step_and_of_the_end(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer()) as parts:
        made = await parts.create()
        deadline = asyncio.get_running_loop().time() + 10
        events = [event async for event in parts.goals.watch(made.goal_id, 0, deadline)]
        told = {event.number: event for event in reversed(events)}  # the last may be one that was told before
        assert sorted(told) == list(range(1, len(told) + 1))
        assert [event.step for event in events if event.kind == "step"] == ["look", "heavy train", "promote"]
        states = [told[number].message for number in sorted(told) if told[number].kind == "state"]
        assert states == ["active", "completed: all of it is done"]
        last = events[-1].goal
        assert events[-1].done
        assert last
        assert (last.status, last.progress, last.learning_job_ids) == ("completed", 1.0, ["job 2"])
        assert last.result == {"reached": 3}
        assert last.metrics == {"done": 3}
        assert [(step.number, step.action, step.reason) for step in last.steps] == [
            (1, "look", "look comes next"),
            (2, "heavy train", "heavy train comes next"),
            (3, "promote", "promote comes next"),
        ]
        assert all(step.completed_at and step.arguments == {"which": step.number - 1} for step in last.steps)
