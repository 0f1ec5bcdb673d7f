"""The loop that pursues goals: what it records, when it is interrupted, and who waits for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from goals.pursued import CountingDoer, Pursuing, pursuing, registered, until
from metrics.pages import samples
from modelops.api.errors import NotFound
from modelops.engines.base import EngineBroke
from modelops.goals import turns
from modelops.goals.doing import HELD_OUT
from modelops.goals.turning import Turning
from modelops.goals.values import Act, Action, Decision, End, Ending, ModelSeen, Pursued, Seen, Step
from modelops.store.goals import GoalQueries, GoalRow

LONG = ("look", "heavy train", "promote", "wait")


class Held:
    """Holds steps until they are let go on; they notice when they are cancelled."""

    def __init__(self, *kinds: str) -> None:
        self.kinds = kinds
        self.entered: list[tuple[str, str]] = []
        self.cancelled: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self, goal: Pursued, step: Step) -> None:
        if self.kinds and step.action.kind not in self.kinds:
            return
        self.entered.append((goal.goal_id, step.action.kind))
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.append(step.action.kind)
            raise


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, at: float = 100.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def _looked(doer: CountingDoer, times: int) -> bool:
    return len(doer.seen) >= times


def metric(parts: Pursuing, name: str, *labels: tuple[str, str]) -> float:
    return samples(parts.metrics.page({}).decode()).get((name, labels), 0.0)


# --- from the start to the end ---
async def test_how_far_it_is_is_written_with_each_step(tmp_path: Path) -> None:
    held = Held("promote")
    async with pursuing(tmp_path, CountingDoer(script=LONG, hold=held)) as parts:
        made = await parts.create()
        await until(lambda: held.entered, "that it promotes")
        assert (await parts.goals.get(made.goal_id)).progress == 0.5
        held.go_on.set()
        await parts.goals.cancel(made.goal_id, "")
        assert (await parts.end(made.goal_id)).progress == 0.5


async def test_what_was_done_is_counted_and_nothing_is_left(tmp_path: Path) -> None:
    doer = CountingDoer()
    async with pursuing(tmp_path, doer) as parts:
        made = await parts.create(rows=True)
        ended = await parts.end(made.goal_id)
        await until(lambda: doer.gone == [made.goal_id], "that what it held is given back")
        await until(lambda: not parts.folders.goal(made.goal_id).exists(), "that its rows are gone")
        await until(lambda: parts.goals.active == 0, "that nobody works on it")
        assert (ended.status, ended.attempts) == ("completed", 1)
        assert ended.started_at
        assert metric(parts, "moc_goals_completed_total") == 1
        assert metric(parts, "moc_goals_failed_total") == 0
        assert metric(parts, "moc_goals_execution_duration_seconds_count") == 1
        assert metric(parts, "moc_goals_actions_total", ("action", "heavy train"), ("type", "quality")) == 1


async def test_what_cannot_be_done_is_recorded_and_decided_about(tmp_path: Path) -> None:
    doer = CountingDoer(fails={"heavy train": EngineBroke("the engine broke", "crashed")})
    async with pursuing(tmp_path, doer) as parts:
        ended = await parts.end((await parts.create()).goal_id)
        assert (ended.status, ended.error_message) == ("failed", "the engine broke")
        assert [(step.action, step.error_message) for step in ended.steps] == [
            ("look", ""),
            ("heavy train", "the engine broke"),
        ]
        assert ended.result == {"reached": 1}
        await until(lambda: metric(parts, "moc_goals_failed_total") == 1, "that it is counted")


async def test_a_fault_of_ours_clears_away_before_the_goal_has_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with pursuing(tmp_path, CountingDoer(fails={"promote": KeyError("a secret")})) as parts:
        ended = await parts.end((await parts.create()).goal_id)
        assert (ended.status, ended.steps[-1].action) == ("failed", "clear")
        assert "a fault of the server" in ended.error_message
        assert "secret" not in ended.model_dump_json()
        assert "KeyError" in caplog.text


async def test_a_fault_of_ours_does_not_end_what_clears_away(tmp_path: Path) -> None:
    class Stubborn(CountingDoer):
        def give_up(self, goal: Pursued, seen: Seen, ending: Ending) -> Decision:
            tried = goal.all("clear")
            if len(tried) < 2:
                return Act(Action("clear"), "what was begun is cleared away", ending=ending)
            return End(ending.status, ending.why, {"reached": len(goal.steps)})

    doer = Stubborn(fails={"promote": KeyError("a secret"), "clear": OSError("a secret")})
    async with pursuing(tmp_path, doer) as parts:
        ended = await parts.end((await parts.create()).goal_id)
        assert [step.action for step in ended.steps[-2:]] == ["clear", "clear"]
        assert all("a fault of the server" in step.error_message for step in ended.steps[-2:])
        assert (ended.status, ended.error_message) == (
            "failed",
            "promote: a fault of the server; its log has the reason",
        )
        assert ended.result == {"reached": 5}


async def test_what_cannot_be_decided_clears_away_before_the_goal_has_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(CountingDoer):
        def decide(self, goal: Pursued, seen: Seen) -> Decision:
            if len(goal.steps) == 2:
                raise KeyError("a secret")
            return super().decide(goal, seen)

    async with pursuing(tmp_path, Faulty()) as parts:
        ended = await parts.end((await parts.create()).goal_id)
        assert (ended.status, [step.action for step in ended.steps]) == ("failed", ["look", "heavy train", "clear"])
        assert "a fault of the server" in ended.error_message
        assert "secret" not in ended.model_dump_json()
        assert "KeyError" in caplog.text


async def test_what_cannot_be_seen_is_waited_for(tmp_path: Path) -> None:
    looks = 0

    async def point() -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise NotFound("there is no model 'm' at this moment")

    async with pursuing(tmp_path, CountingDoer(point=point)) as parts:
        made = await parts.create()
        events = [event async for event in parts.goals.watch(made.goal_id, 0, asyncio.get_running_loop().time() + 10)]
        assert events[-1].goal and events[-1].goal.status == "completed"
        assert "there is no model 'm' at this moment" in [event.message for event in events]


async def test_what_is_waited_for_is_told_once(tmp_path: Path) -> None:
    doer = CountingDoer(script=("wait",))
    async with pursuing(tmp_path, doer) as parts:
        made = await parts.create()
        for looks in range(1, 6):
            await until(partial(_looked, doer, looks), "that it is looked at")
            parts.runner._working[made.goal_id].wake()
        found = await parts.goals.get(made.goal_id)
        assert (found.status, found.message, found.metrics) == ("active", "nothing is to be done", {"looks": 1})
        events = await parts.queries.events(made.goal_id)
        assert [event.message for event in events] == ["active", "nothing is to be done"]


# --- ends that the objective does not decide ---
@pytest.mark.parametrize("kind", ["heavy train", "wait"])
async def test_a_goal_is_cancelled_at_a_long_step_which_is_interrupted_and_cleared_away(
    tmp_path: Path, kind: str
) -> None:
    held = Held(kind)
    doer = CountingDoer(script=LONG, hold=held)
    async with pursuing(tmp_path, doer) as parts:
        made = await parts.create(rows=True)
        if kind == "wait":
            await until(lambda: doer.seen and len(doer.world.effects) == 3, "that it waits")
        else:
            await until(lambda: held.entered, f"that it is at {kind}")
        before = asyncio.get_running_loop().time()
        assert (await parts.goals.cancel(made.goal_id, "no more")).status == "active"
        ended = await parts.end(made.goal_id)
        assert asyncio.get_running_loop().time() - before < 5, "it waits for no step"
        assert (ended.status, ended.error_message) == ("cancelled", "no more")
        assert held.cancelled == ([] if kind == "wait" else [kind])
        assert ended.steps[-1].action == "clear"
        if kind != "wait":
            assert ended.steps[-2].error_message == "interrupted: no more"
            assert [*doer.world.effects.values()] == [*LONG[: LONG.index(kind)], "clear"]
        assert doer.seen[-1].cancelled == "no more"
        await until(lambda: doer.gone == [made.goal_id], "that what it held is given back")


@pytest.mark.parametrize("kind", ["look", "promote"])
async def test_a_goal_is_cancelled_at_a_short_step_which_is_done_to_its_end(tmp_path: Path, kind: str) -> None:
    held = Held(kind)
    doer = CountingDoer(script=LONG, hold=held)
    async with pursuing(tmp_path, doer) as parts:
        made = await parts.create()
        await until(lambda: held.entered, f"that it is at {kind}")
        await parts.goals.cancel(made.goal_id, "no more")
        held.go_on.set()
        ended = await parts.end(made.goal_id)
        assert (ended.status, held.cancelled) == ("cancelled", [])
        assert [*doer.world.effects.values()] == [*LONG[: LONG.index(kind) + 1], "clear"]
        assert not any(step.error_message for step in ended.steps)


async def test_a_goal_that_sees_nothing_for_a_minute_is_ended(tmp_path: Path) -> None:
    looks, began = 0, 0.0

    def clock() -> float:  # a second for each time that somebody looks at it
        nonlocal began
        began += 1.0
        return began

    async def point() -> None:
        nonlocal looks
        looks += 1
        raise NotFound("the draft model is gone")

    async with pursuing(tmp_path, CountingDoer(point=point), clock=clock) as parts:
        ended = await parts.end((await parts.create()).goal_id)
        assert (ended.status, "the draft model is gone" in ended.error_message) == ("failed", True)
        assert looks > 5


async def test_what_clears_away_is_not_interrupted(tmp_path: Path) -> None:
    held = Held("clear")
    clock = Clock()
    async with pursuing(tmp_path, CountingDoer(script=LONG, hold=held), clock=clock) as parts:
        made = await parts.create(limits={"max_seconds": 50})
        await until(lambda: parts.runner.running, "that it is worked on")
        clock.at += 60
        await until(lambda: held.entered, "that it clears away")
        await parts.goals.cancel(made.goal_id, "no more")
        held.go_on.set()
        ended = await parts.end(made.goal_id)
        assert (held.cancelled, ended.status) == ([], "failed")
        assert ended.error_message == "it was not completed within limits.max_seconds (50)"


async def test_an_end_that_was_decided_on_is_not_replaced_while_it_clears_away(tmp_path: Path) -> None:
    class Ends(CountingDoer):
        def decide(self, goal: Pursued, seen: Seen) -> Decision:
            return Act(Action("clear"), "files are not needed", ending=Ending("completed", "all is well"))

    held = Held("clear")
    doer, clock = Ends(hold=held), Clock()
    async with pursuing(tmp_path, doer, clock=clock) as parts:
        made = await parts.create(limits={"max_seconds": 50})
        await until(lambda: held.entered, "that it clears away")
        clock.at += 60
        await parts.goals.cancel(made.goal_id, "too late")
    held.go_on.set()
    async with pursuing(tmp_path, doer, clock=clock) as parts:
        ended = await parts.end(made.goal_id)
        assert (ended.status, ended.result, doer.world.of(made.goal_id)) == ("completed", {"reached": 0}, ["clear"])


async def test_the_limit_of_time_interrupts_what_is_done(tmp_path: Path) -> None:
    clock, held = Clock(), Held("heavy train")
    async with pursuing(tmp_path, CountingDoer(hold=held), clock=clock) as parts:
        made = await parts.create(limits={"max_seconds": 50})
        await until(lambda: held.entered, "that it trains")
        clock.at += 51
        ended = await parts.end(made.goal_id)
        assert (ended.status, held.cancelled) == ("failed", ["heavy train"])
        assert ended.result == {"reached": 2}


async def test_a_wall_clock_that_is_set_changes_nothing_but_target_completion(tmp_path: Path) -> None:
    now, held = Clock(1e9), Held("heavy train")
    async with pursuing(tmp_path, CountingDoer(hold=held), now=now) as parts:
        made = await parts.create(limits={"max_seconds": 3600}, target_completion="2190-01-01T00:00:00Z")
        await until(lambda: held.entered, "that it trains")
        now.at = 0.0
        parts.runner._working[made.goal_id].wake()
        await until(lambda: not parts.runner._working[made.goal_id]._woken.is_set(), "that it has looked")
        assert held.cancelled == []
        now.at = 7e9
        ended = await parts.end(made.goal_id)
        assert (ended.status, ended.error_message) == ("failed", "it was not completed by its target_completion")


async def test_a_model_that_is_removed_ends_its_goal(tmp_path: Path) -> None:
    gone = False

    def models(names: Any) -> Mapping[str, ModelSeen]:
        return {name: ModelSeen(name, registered=not gone) for name in names}

    async with pursuing(tmp_path, CountingDoer(script=LONG), models=models) as parts:
        made = await parts.create()
        await until(lambda: parts.runner.running, "that it is worked on")
        gone = True
        ended = await parts.end(made.goal_id)
        assert (ended.status, ended.error_message) == ("failed", "the model 'm' was removed")


# --- from one coordinator to the next ---
async def test_a_goal_goes_on_where_it_was_and_its_time_goes_on_too(tmp_path: Path) -> None:
    doer, clock = CountingDoer(script=LONG), Clock()
    async with pursuing(tmp_path, doer, clock=clock) as parts:
        made = await parts.create(limits={"max_seconds": 50})
        await until(lambda: len(doer.world.effects) == 3, "that it waits")
        clock.at += 30
        parts.runner._working[made.goal_id].wake()
        await until(lambda: doer.seen[-1].elapsed_s >= 30, "that it has looked")
        await until(lambda: parts.runner._working[made.goal_id]._record._noted_s >= 30, "that its time is noted")
    again, clock = CountingDoer(doer.world, LONG), Clock(0.0)
    async with pursuing(tmp_path, again, clock=clock) as parts:
        await until(lambda: again.seen, "that it is looked at")
        assert again.seen[0].elapsed_s == 30
        found = await parts.goals.get(made.goal_id)
        assert (found.status, found.attempts, len(found.steps)) == ("active", 2, 3)
        clock.at += 21
        ended = await parts.end(made.goal_id)
        assert (ended.status, ended.error_message) == (
            "failed",
            "it was not completed within limits.max_seconds (50)",
        )
        assert len(doer.world.asked) == 4


@pytest.mark.parametrize("change", ["changed", "gone"])
async def test_rows_that_were_changed_meanwhile_end_the_goal(tmp_path: Path, change: str) -> None:
    async with pursuing(tmp_path, CountingDoer(script=LONG), started=False) as parts:
        made = await parts.create(rows=True)
        file = parts.folders.goal(made.goal_id) / HELD_OUT
    if change == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes().replace(b'"4"', b'"5"'))
    doer = CountingDoer(script=LONG)
    async with pursuing(tmp_path, doer) as parts:
        ended = await parts.end(made.goal_id)
        assert (ended.status, [*doer.world.effects.values()]) == ("failed", ["clear"])
        assert f"its rows ({HELD_OUT}) were changed" in ended.error_message or change == "gone"
        assert f"its rows ({HELD_OUT}) are gone" in ended.error_message or change == "changed"


async def test_a_goal_that_was_begun_is_cancelled_by_whoever_clears_up(tmp_path: Path) -> None:
    doer = CountingDoer(script=LONG)
    async with pursuing(tmp_path, doer) as parts:
        made = await parts.create()
        await until(lambda: len(doer.world.effects) == 3, "that it waits")
    async with pursuing(tmp_path, doer, started=False) as parts:
        assert (await parts.goals.cancel(made.goal_id, "no more")).status == "active"
        assert [goal.goal_id for goal in await parts.goals.list("active")] == [made.goal_id]
        await parts.runner.start()
        assert (await parts.end(made.goal_id)).status == "cancelled"
        assert [*doer.world.effects.values()][-1] == "clear"


async def test_a_goal_that_this_release_does_not_take_fails_and_no_other(tmp_path: Path) -> None:
    async with pursuing(tmp_path, CountingDoer(), started=False) as parts:
        request: dict[str, Any] = {"objective": {"type": "quality", "model_name": "m"}, "limits": {}, "digests": {}}
        request |= {"description": "", "metadata": {}, "warnings": []}
        await parts.queries.add(GoalRow("old", created_at=1.0, title="old", goal_type="quality", request=request))
        made = await parts.create("n")
        await parts.runner.start()
        assert (await parts.end(made.goal_id)).status == "completed"
        ended = await parts.end("old")
        assert (ended.status, ended.error_message) == ("failed", "objective: target: field required")


class Failing(GoalQueries):
    """The state file cannot be written once somebody wants a goal to end."""

    async def heartbeat(self, row_id: str, fence: int, until: float) -> GoalRow | None:
        row = await self.get(row_id)
        if row and row.cancel_reason is not None and self._failing:
            raise OperationalError("UPDATE", {}, Exception("the disk is full"))
        return await super().heartbeat(row_id, fence, until)

    _failing = True


async def test_a_goal_whose_lease_cannot_be_kept_is_not_cancelled_before_it_was_cleared_away(tmp_path: Path) -> None:
    doer, held = CountingDoer(script=LONG), Held("clear")
    doer.hold = held
    async with pursuing(tmp_path, doer, asking=Failing) as parts:
        made = await parts.create()
        await until(lambda: len(doer.world.effects) == 3, "that it waits")
        work = parts.runner._working[made.goal_id]
        work.asked_to_end("no more")
        await until(lambda: held.entered, "that it clears away")
        await parts.goals.cancel(made.goal_id, "no more")
        await until(lambda: not parts.runner.running, "that its work ends")
        found = await parts.goals.get(made.goal_id)
        assert (found.status, found.steps[-1].completed_at) == ("active", None)
        assert held.cancelled == ["clear"]
    doer.hold = None
    async with pursuing(tmp_path, doer) as parts:
        ended = await parts.end(made.goal_id)
        assert (ended.status, ended.error_message) == ("cancelled", "no more")
        assert [*doer.world.effects.values()].count("clear") == 1


# --- several goals ---
async def test_two_goals_for_one_model_go_one_after_the_other(tmp_path: Path) -> None:
    held = Held("look")
    doer = CountingDoer(hold=held)
    async with pursuing(tmp_path, doer) as parts:
        first = await parts.create("m", "quality")
        await until(lambda: held.entered, "that the first is begun")
        second = await parts.create("m", "serving", priority="critical")
        other = await parts.create("n", "serving")
        await until(lambda: len(held.entered) == 2, "that the one for another model is begun")
        waits = f"it waits for the goal {first.goal_id}, which changes the same model"
        for _ in range(500):
            if (await parts.goals.get(second.goal_id)).message == waits:
                break
        assert (await parts.goals.get(second.goal_id)).message == waits
        assert {goal_id for goal_id, _ in held.entered} == {first.goal_id, other.goal_id}
        held.go_on.set()
        for goal in (first, second, other):
            assert (await parts.end(goal.goal_id)).status == "completed"
        order = [goal_id for goal_id, _, _ in doer.world.asked if goal_id != other.goal_id]
        assert order == [first.goal_id] * 3 + [second.goal_id] * 3


class Told(Turning):
    """Notes who asks first, and who gets the turn."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: dict[str, turns.Waiting] = {}
        self.got: list[str] = []

    def ask(self, goal_id: str, priority: int, wake: Callable[[], None], *, working: bool = False) -> bool:
        if goal_id not in self.waiting:
            self.waiting[goal_id] = turns.Waiting(goal_id, priority, len(self.waiting))
        has = super().ask(goal_id, priority, wake, working=working)
        if has and goal_id not in self.got:
            self.got.append(goal_id)
        return has


async def test_fifty_goals_at_once_do_what_is_heavy_one_at_a_time_in_the_order_of_their_turns(tmp_path: Path) -> None:
    held, turning, at_once = Held("heavy train"), Told(), []
    running: set[str] = set()

    async def hold(goal: Pursued, step: Step) -> None:
        if step.action.kind == "heavy train":
            running.add(goal.goal_id)
            at_once.append(len(running))
            try:
                await held(goal, step)
                await asyncio.sleep(0)
            finally:
                running.discard(goal.goal_id)

    doer = CountingDoer(hold=hold)
    async with pursuing(tmp_path, doer, turning=turning) as parts:
        priorities = ("low", "medium", "high", "critical")
        made = [await parts.create(f"m{number}", priority=priorities[number * 7 % 4]) for number in range(50)]
        await until(lambda: len(turning.waiting) == 50, "that all wait for their turn", 30.0)
        first, *waiting = turning.waiting.values()
        held.go_on.set()
        for goal in made:
            assert (await parts.end(goal.goal_id, 60.0)).status == "completed"
        expected, left = [first.goal_id], tuple(waiting)
        while chosen := turns.first(left):
            expected.append(chosen.goal_id)
            left = turns.given(left, chosen)
        assert [goal_id for goal_id, _, kind in doer.world.asked if kind == "heavy train"] == expected
        assert {*at_once} == {1}
        assert doer.world.doubled == []


async def test_who_is_refused_while_another_has_the_turn_waits_for_that(tmp_path: Path) -> None:
    at: list[str] = []
    urgent, turning = "", Turning()

    async def hold(goal: Pursued, step: Step) -> None:
        at.append(goal.goal_id)
        await until(lambda: turning.wanted or urgent in at, "that the urgent one has asked")
        at.append("")

    doer = CountingDoer(script=("heavy one", "heavy two", "heavy three"), hold=hold)
    doer.refuses = lambda goal: "jobs are worked on" if goal.goal_id == urgent and at[-1] else ""
    async with pursuing(tmp_path, doer, turning=turning) as parts:
        low = await parts.create("m", priority="low")
        await until(lambda: at, "that the first is at work")
        urgent = (await parts.create("n", priority="critical")).goal_id
        for goal_id in (low.goal_id, urgent):
            assert (await parts.end(goal_id)).status == "completed"
        heavy = [goal_id for goal_id, _, kind in doer.world.asked if kind.startswith("heavy")]
        assert heavy[:2] == [low.goal_id, urgent]


async def test_the_more_urgent_of_two_goes_on_before_the_other(tmp_path: Path) -> None:
    turning, held = Turning(), Held("heavy one")
    doer = CountingDoer(script=("heavy one", "tidy", "heavy two", "heavy three"), hold=held)
    async with pursuing(tmp_path, doer, turning=turning) as parts:
        urgent = await parts.create("m", priority="critical")
        await until(lambda: held.entered, "that the urgent one is at work")
        low = await parts.create("n", priority="low")
        await until(lambda: turning.wanted, "that the other waits")
        held.go_on.set()
        for goal in (urgent, low):
            assert (await parts.end(goal.goal_id)).status == "completed"
        heavy = [goal_id for goal_id, _, kind in doer.world.asked if kind.startswith("heavy")]
        assert heavy == [urgent.goal_id] * 3 + [low.goal_id] * 3
        told = [event.message for event in await parts.queries.events(urgent.goal_id)]
        assert sum("it waits for its turn" in each for each in told) == 1, "as long as nobody else has it"


async def test_the_less_urgent_of_two_hands_its_turn_on_also_where_it_does_what_is_light_between(
    tmp_path: Path,
) -> None:
    turning, held = Turning(), Held("heavy one")
    doer = CountingDoer(script=("heavy one", "tidy", "heavy two"), hold=held)
    async with pursuing(tmp_path, doer, turning=turning) as parts:
        low = await parts.create("m", priority="low")
        await until(lambda: held.entered, "that the first is at work")
        urgent = await parts.create("n", priority="critical")
        await until(lambda: turning.wanted, "that the other waits")
        held.go_on.set()
        for goal in (low, urgent):
            assert (await parts.end(goal.goal_id)).status == "completed"
        heavy = [goal_id for goal_id, _, kind in doer.world.asked if kind.startswith("heavy")]
        assert heavy == [low.goal_id, urgent.goal_id, urgent.goal_id, low.goal_id]


async def test_what_does_not_fit_waits_without_the_turn_and_says_so(tmp_path: Path) -> None:
    refused = True
    doer = CountingDoer(script=("heavy one",))
    async with pursuing(tmp_path, doer) as parts:
        stuck = ""
        doer.refuses = lambda goal: "there is no room" if refused and goal.goal_id == stuck else ""
        stuck = (await parts.create("m", priority="critical")).goal_id
        await until(partial(_looked, doer, 5), "that it has looked")
        other = await parts.create("n", priority="low")
        assert (await parts.end(other.goal_id)).status == "completed"
        found = await parts.goals.get(stuck)
        assert (found.status, found.message) == ("active", "there is no room")
        events = [event.message for event in await parts.queries.events(stuck)]
        assert len(events) < 6, "it is told once, and once that it waits for its turn"
        refused = False
        assert (await parts.end(stuck)).status == "completed"


async def test_a_job_of_its_own_wakes_a_goal_and_no_other(tmp_path: Path) -> None:
    doer = CountingDoer(script=LONG)
    async with pursuing(tmp_path, doer) as parts:
        await parts.create()
        await until(lambda: len(doer.world.effects) == 3 and len(doer.seen) == 4, "that it waits")
        parts.runner.hear("job 7")
        parts.runner.hear("job 2")
        await until(lambda: len(doer.seen) == 5, "that it looks")


def test_models_that_are_not_there_are_seen_as_such() -> None:
    assert not registered(["gone m"])["gone m"].registered
    assert Seen().models == {}


async def test_what_was_begun_before_a_restart_goes_before_what_is_more_urgent(tmp_path: Path) -> None:
    held = Held("heavy train")
    doer = CountingDoer(hold=held)
    async with pursuing(tmp_path, doer) as parts:
        first = await parts.create("m", "quality", priority="low")
        await until(lambda: held.entered, "that the first trains")
    async with pursuing(tmp_path, doer, started=False) as parts:
        rival = await parts.create("m", "serving", priority="critical")
        other = await parts.create("n", "serving", priority="critical")
        await parts.runner.start()
        await until(lambda: len(doer.world.effects) == 2, "that the one for another model looks")
        held.go_on.set()
        for goal in (first, rival, other):
            assert (await parts.end(goal.goal_id)).status == "completed"
        heavy = [goal_id for goal_id, _, kind in doer.world.asked if kind == "heavy train"]
        assert heavy == [first.goal_id, first.goal_id, other.goal_id, rival.goal_id]
        assert doer.world.doubled == []
