"""What is done for goals of the type `availability`: models kept, probed, loaded again, and let go, on a real pool."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import psutil
import pytest

from goals.gates import Gate
from modelops.api.errors import InsufficientMemory, InvalidRequest, NotAvailable, NotFound
from modelops.api.goals import AvailabilityObjective, GoalLimits
from modelops.goals.availability import AvailabilityFacts, Tally
from modelops.goals.decide import decide
from modelops.goals.doing import Tell, Tools
from modelops.goals.keeping import AvailabilityDoer
from modelops.goals.observing import Observer
from modelops.goals.values import Act, Decision, Pursued, Seen, Step, Wait
from modelops.serving.catalog import Version
from modelops.serving.pool import Pool
from modelops.serving.wishes import Wish
from modelops.settings import ModelEntry, Settings
from serving.house import House, house
from support import FAKE_ENGINE, tiny_gguf

ROOM_FOR_ONE_MB = 70
_NOTHING = cast(Any, None)  # of the tools, what availability does not use
_TELL = cast(Tell, None)


class Goal:
    """A goal that is pursued look by look, as the loop does it, without a row."""

    def __init__(self, scene: Scene, goal: Pursued) -> None:
        self._scene = scene
        self.pursued = goal
        self.decision: Decision = Wait("not looked at yet")

    async def look(self) -> Decision:
        """One look, and what follows from it is done."""
        scene, goal = self._scene, self.pursued
        facts = await scene.doer.facts(goal, Path())
        now = asyncio.get_running_loop().time() - scene.began
        models = Observer(scene.house.catalog, scene.house.pool)(facts.models)
        self.decision = decision = decide(goal, Seen(now, models=models, facts=facts))
        if isinstance(decision, Act):
            step = Step(len(goal.steps) + 1, decision.action, decision.why, now)
            result = await scene.doer.perform(goal, step, Path(), _TELL)
            assert await scene.doer.perform(goal, step, Path(), _TELL) == result, "done twice it is done once"
            self.pursued = replace(goal, steps=(*goal.steps, replace(step, ended_s=now, result=result)))
        elif isinstance(decision, Wait):
            self.pursued = replace(goal, metrics={**goal.metrics, **decision.metrics})
        return decision

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> None:
        """Look until it is so."""
        async with asyncio.timeout(seconds):
            while not (isinstance(await self.look(), Wait) and condition()):
                await asyncio.sleep(0.01)

    async def answers(self, more: int = 1) -> None:
        """Look until so many probes more were answered."""
        wanted = self.count("answered") + more
        await self.until(lambda: self.count("answered") >= wanted)

    def count(self, of: str) -> Any:
        return self.pursued.metrics.get(of, 0)

    def says(self, words: str) -> bool:
        return isinstance(self.decision, Wait) and words in self.decision.why


class Scene:
    """A house, and who keeps models in it."""

    def __init__(self, made: House) -> None:
        self.house = made
        self.began = asyncio.get_running_loop().time()
        tools = Tools(_NOTHING, made.catalog, made.pool, _NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING)
        self.doer = AvailabilityDoer(tools)
        self._count = 0

    def goal(self, *names: str, priority: int = 1, metrics: dict[str, Any] | None = None, **fields: Any) -> Goal:
        self._count += 1
        return Goal(
            self, Pursued(f"g{self._count}", objective(*names, **fields), priority=priority, metrics=metrics or {})
        )

    def status(self, name: str = "a") -> str:
        return self.house.pool.view(name).status


class Enter(Protocol):
    def __call__(
        self, behaviour: dict[str, Any] | None = ..., *, entries: dict[str, ModelEntry] | None = ..., **sections: Any
    ) -> contextlib.AbstractAsyncContextManager[Scene]: ...


@pytest.fixture
def enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Enter:
    """A house with the models `a`, `b` and `c` in fake engines. Entering it again is a restart."""

    @contextlib.asynccontextmanager
    async def enter(
        behaviour: dict[str, Any] | None = None, *, entries: dict[str, ModelEntry] | None = None, **sections: Any
    ) -> AsyncIterator[Scene]:
        starts = tmp_path / "starts"
        monkeypatch.setenv("FAKE_ENGINE", json.dumps({"count_file": str(starts)} | (behaviour or {})))
        fake = {"executable": str(FAKE_ENGINE), "slots": 2, "threads": 1, "stop_timeout_s": 2.0, "probe": False}
        settings = Settings.model_validate({"data_dir": tmp_path, "engine": fake, **sections})
        for name in ("a", "b", "c"):
            if not (file := settings.models_dir / f"{name}.gguf").exists():
                tiny_gguf(file)
        async with house(tmp_path, settings, starts, entries) as made:
            scene = Scene(made)
            try:
                yield scene
            finally:
                await scene.doer.close()

    return enter


def objective(*names: str, **fields: Any) -> AvailabilityObjective:
    written = {"type": "availability", "models": list(names or ["a"]), "probe_seconds": 0.5, **fields}
    return AvailabilityObjective.parse(written)


async def checked(scene: Scene, *names: str, **fields: Any) -> Any:
    return await scene.doer.check(objective(*names, **fields), GoalLimits())


# --- before it is created ---
async def test_what_is_wrong_with_it_is_said(enter: Enter) -> None:
    entries = {"a": ModelEntry(aliases=["first"])}
    async with enter(entries=entries) as scene:
        with pytest.raises(NotFound, match="'nobody'"):
            await checked(scene, "a", "nobody")
        with pytest.raises(InvalidRequest, match="'a' is named twice, as 'first'"):
            await checked(scene, "a", "first")
        with pytest.raises(InvalidRequest, match="until: that time has passed"):
            await checked(scene, "a", until=datetime.now(UTC) - timedelta(seconds=1))
        found = await checked(scene, "first", "b", until=datetime.now(UTC) + timedelta(hours=1))
        assert found.objective.models == ["a", "b"]
        assert found.warnings == ()
        assert found.plan.memory_mb > 60
        assert "keep a, b" in found.plan.steps[0]
        assert not scene.house.pool.kept, "nothing is kept for what is only looked at"


async def test_models_without_a_place_together_are_warned_of_with_the_bill(enter: Enter) -> None:
    async with enter(memory={"budget_mb": ROOM_FOR_ONE_MB}) as scene:
        (warning,) = (await checked(scene, "a", "b")).warnings
        assert warning.startswith("not all of the models have a place together: 'b' needs")
        assert "kept by a goal" in warning
        assert (await checked(scene, "b")).warnings == ()
        await scene.goal("a").look()
        (warning,) = (await checked(scene, "b")).warnings
        assert warning.startswith("the models have no place beside those that other goals keep: 'b' needs")
        assert (await checked(scene, "a")).warnings == (), "two goals may keep the same model"


# --- held ---
async def test_it_loads_its_models_and_probes_them(enter: Enter) -> None:
    async with enter() as scene:
        goal = scene.goal("a", "b")
        await goal.answers(4)
        assert goal.says("all 2 models are loaded and answer")
        assert [step.action.arguments["model_name"] for step in goal.pursued.steps] == ["a", "b"]
        assert goal.count("probes") == goal.count("answered")
        assert goal.count("share") == 1.0
        assert goal.count("recoveries") == 0
        assert scene.house.starts == 2


async def test_what_is_loaded_is_probed_at_once_however_seldom_it_is_probed(enter: Enter) -> None:
    async with enter() as scene:
        goal = scene.goal(probe_seconds=3600)
        await goal.answers()
        assert goal.says("it is loaded and answers")
        os.kill(psutil.Process(scene.house.pool.view("a").engine_pid).children()[0].pid, signal.SIGKILL)
        await goal.until(lambda: goal.count("recoveries") == 1)
        assert goal.count("probes") == goal.count("answered") == 2


async def test_a_probe_comes_at_most_every_so_many_seconds(enter: Enter) -> None:
    async with enter() as scene:
        goal, began = scene.goal(probe_seconds=0.5), asyncio.get_running_loop().time()
        await goal.answers(4)
        assert asyncio.get_running_loop().time() - began >= 3 * 0.5


async def test_no_load_evicts_what_it_keeps_until_it_has_ended(enter: Enter) -> None:
    async with enter(memory={"budget_mb": ROOM_FOR_ONE_MB}, models={"keep_alive": 0.05}) as scene:
        goal = scene.goal()
        await goal.answers()
        pid = scene.house.pool.view("a").engine_pid
        for _ in range(3):
            with pytest.raises(InsufficientMemory, match=r"'a' .* kept by a goal"):
                await scene.house.ask("b")
        await goal.answers(2)
        assert scene.house.pool.view("a").engine_pid == pid
        await scene.doer.ended(goal.pursued)
        await scene.doer.ended(goal.pursued)
        assert scene.house.pool.kept == {}
        await scene.house.until(lambda view: view.status == "available")


async def test_what_two_goals_keep_stays_until_both_have_ended(enter: Enter) -> None:
    async with enter() as scene:
        one, other = scene.goal("a"), scene.goal("a", "b", priority=3)
        await one.look()
        await other.look()
        assert scene.house.pool.kept == {"a": 1, "b": 1}
        await scene.doer.ended(other.pursued)
        assert scene.house.pool.kept == {"a": 0}
        await scene.doer.ended(one.pursued)
        assert scene.house.pool.kept == {}


async def test_an_engine_that_is_killed_comes_back_by_itself_and_that_is_counted(enter: Enter) -> None:
    async with enter({"load_s": 0.2}) as scene:
        goal = scene.goal()
        await goal.answers()
        os.kill(psutil.Process(scene.house.pool.view("a").engine_pid).children()[0].pid, signal.SIGKILL)
        await goal.until(lambda: goal.count("recoveries") == 1)
        assert 0.2 <= goal.count("longest_recovery_s") < 3
        assert len(goal.pursued.steps) == 1, "the pool has loaded it again"


async def test_what_somebody_unloads_is_loaded_again(enter: Enter) -> None:
    async with enter() as scene:
        goal = scene.goal()
        await goal.answers()
        await scene.house.unload("a", force=True)
        await goal.until(lambda: goal.count("recoveries") == 1)
        assert len(goal.pursued.steps) == 2
        assert goal.count("longest_recovery_s") < 3


async def test_loads_that_fail_are_tried_again_when_they_may_be_and_no_sooner(
    enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelops.serving.breaker.COOL_DOWN_S", 1.0)
    async with enter({"load_fails": ["error: out of luck"] * 2}) as scene:
        goal = scene.goal()
        await goal.until(lambda: goal.says("'a' is loaded again after a pause: "))
        assert goal.says("out of luck")
        await goal.answers()
        first, second, third = (step.began_s for step in goal.pursued.steps)
        assert second - first >= 1.0
        assert third - second >= 2.0, "the breaker's pauses grow"
        assert scene.house.starts == 3


async def test_a_probe_that_is_not_answered_in_time_is_counted_so(enter: Enter, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    async with enter({"sick_file": str(sick), "status": 500, "says": "ill"}) as scene:
        goal = scene.goal()
        await goal.answers()
        sick.touch()
        await goal.until(lambda: goal.says("'a' is loaded and does not answer: "))
        assert goal.count("probes") > goal.count("answered")
        sick.unlink()
        await goal.until(lambda: goal.count("recoveries") == 1)
        assert goal.says("it is loaded and answers")
    async with enter({"prompt_s": 5}) as scene:
        goal = scene.goal(probe_timeout_seconds=0.2)
        await goal.until(lambda: goal.says("it did not answer within 0.2 s"))


async def test_embeddings_and_rerankers_are_asked_for_what_they_do(enter: Enter) -> None:
    entries = {"a": ModelEntry(file="a.gguf", type="embedding"), "b": ModelEntry(file="b.gguf", type="reranker")}
    async with enter(entries=entries) as scene:
        goal = scene.goal("a", "b")
        for name, entry in entries.items():
            if scene.house.catalog.active(name).model_type != entry.type:
                found = await scene.house.catalog.retyped(scene.house.catalog.active(name), entry.type)
                await scene.house.catalog.activate(found)
        await goal.answers(2)
        assert goal.count("probes") == goal.count("answered")


# --- a load that takes long before the pool has begun it ---
async def test_while_one_is_prepared_the_others_are_probed_and_loaded_again(enter: Enter, gate: Gate) -> None:
    async with enter() as scene:
        goal = scene.goal("a", "b")
        await goal.until(lambda: goal.says("'a' is on its way (its file is prepared); 'b' is on its way (its file is"))
        gate.open.set()
        await goal.answers(2)
        gate.open.clear()
        await scene.house.unload("a", force=True)
        await goal.until(lambda: goal.says("'a' is on its way (its file is prepared)"))
        os.kill(psutil.Process(scene.house.pool.view("b").engine_pid).children()[0].pid, signal.SIGKILL)
        await goal.until(lambda: goal.count("recoveries") == 1)
        await goal.answers(2)
        assert goal.says("'a' is on its way (its file is prepared)")
        loads = [step.action.arguments["model_name"] for step in goal.pursued.steps]
        assert (loads, gate.asked) == (["a", "b", "a"], 3), "it is begun once"
        gate.open.set()
        await goal.until(lambda: goal.count("recoveries") == 2)
        assert goal.says("all 2 models are loaded and answer")


async def test_one_that_was_prepared_when_the_coordinator_ended_is_begun_again(enter: Enter, gate: Gate) -> None:
    async with enter() as scene:
        goal = scene.goal()
        await goal.until(lambda: goal.says("'a' is on its way (its file is prepared)"))
    async with enter() as scene:
        again = Goal(scene, goal.pursued)
        await again.until(lambda: again.says("'a' is on its way (its file is prepared)"))
        gate.open.set()
        await again.answers()
        assert (gate.asked, scene.house.starts) == (2, 1)


async def test_one_that_cannot_be_prepared_is_begun_again_after_a_pause(enter: Enter, gate: Gate) -> None:
    async with enter() as scene:
        gate.open.set()
        gate.error = NotAvailable("no route")
        goal = scene.goal()
        await goal.until(lambda: goal.says("'a' is loaded again after a pause: no route"))
        await goal.until(lambda: gate.asked == 2)
        gate.error = None
        await goal.answers()
        first, second, third = (step.began_s for step in goal.pursued.steps)
        assert second - first >= 2.0
        assert third - second >= 4.0, "the pauses grow"


async def test_what_is_kept_no_more_is_not_prepared(enter: Enter, gate: Gate) -> None:
    async with enter() as scene:
        one, other = scene.goal(), scene.goal()
        await one.look()
        await other.until(lambda: gate.asked == 1)
        await scene.doer.ended(one.pursued)
        await other.until(lambda: other.says("'a' is on its way (its file is prepared)"))
        await scene.doer.ended(other.pursued)
        gate.open.set()
        await asyncio.sleep(0.1)
        assert (gate.asked, scene.status()) == (1, "available")


# --- contradictions ---
async def test_the_goal_that_goes_first_takes_the_place_and_the_other_says_so_and_comes_back(enter: Enter) -> None:
    async with enter(memory={"budget_mb": ROOM_FOR_ONE_MB}) as scene:
        low = scene.goal("a", priority=0)
        await low.answers()
        high = scene.goal("b", priority=3)
        await high.answers()
        assert scene.status("a") == "available"
        by = f"'a' cannot be held: it gives way to 'b' (kept by the goal {high.pursued.goal_id}), which goes first: "
        await low.until(lambda: low.says(by))
        assert low.says("'a' needs")
        for _ in range(3):
            await low.look()
            await high.look()
        assert (scene.status("b"), scene.house.starts) == ("loaded", 2), "nothing goes to and fro"
        await scene.doer.ended(high.pursued)
        await low.until(lambda: low.count("recoveries") == 1)


async def test_of_one_priority_the_older_stays(enter: Enter) -> None:
    async with enter(memory={"budget_mb": ROOM_FOR_ONE_MB}) as scene:
        older = scene.goal("a")
        await older.answers()
        younger = scene.goal("b")
        await younger.until(lambda: younger.says("'b' cannot be held: it gives way to 'a'"))
        await older.answers()
        assert scene.house.starts == 1


async def test_what_fits_as_soon_as_there_is_room_is_loaded_then(enter: Enter) -> None:
    async with enter(memory={"budget_mb": ROOM_FOR_ONE_MB}) as scene:
        goal = scene.goal("a")
        async with scene.house.lease("b"):
            await goal.until(lambda: goal.says("'a' cannot be held: 'a' needs"))
        await goal.answers()


# --- the end, and a restart ---
async def test_it_is_completed_when_its_time_is_over(enter: Enter) -> None:
    async with enter() as scene:
        goal = scene.goal(until=datetime.now(UTC) + timedelta(seconds=2))
        await goal.answers()
        async with asyncio.timeout(10):
            while isinstance(decision := await goal.look(), Wait | Act):
                await asyncio.sleep(0.01)
        assert decision.status == "completed"
        assert decision.result["answered"] >= 1
        assert decision.result["share"] == decision.result["answered"] / decision.result["probes"]


async def test_after_a_restart_it_is_kept_before_anything_is_loaded_and_counts_go_on(enter: Enter) -> None:
    memory = {"budget_mb": ROOM_FOR_ONE_MB}
    async with enter(memory=memory) as scene:
        goal = scene.goal()
        await goal.answers(2)
    noted = goal.pursued
    async with enter({"load_s": 0.2}, memory=memory) as scene:
        scene.doer.begin([noted])
        assert scene.house.pool.kept == {"a": 0}
        scene.house.residents.restore(scene.house.catalog, scene.house.pool, await scene.house.residents.queries.all())
        await scene.house.until(lambda view: view.status == "loaded")
        with pytest.raises(InsufficientMemory, match="kept by a goal"):
            await scene.house.ask("b")
        again = Goal(scene, noted)
        await again.until(lambda: again.count("answered") > noted.metrics["answered"])
        assert again.count("recoveries") == 1, "the restart is one"
        assert 0.2 <= again.count("longest_recovery_s") < 5
        facts = await scene.doer.facts(again.pursued, Path())
        assert isinstance(facts, AvailabilityFacts)
        assert isinstance(facts.models["a"].tally, Tally)


async def test_what_goals_keep_is_restored_first(enter: Enter, caplog: pytest.LogCaptureFixture) -> None:
    async with enter() as scene:
        await scene.house.load("a")
        await scene.house.load("b")
    async with enter() as scene:
        scene.doer.begin([scene.goal("a").pursued])
        with caplog.at_level("INFO"):
            rows = await scene.house.residents.queries.all()
            scene.house.residents.restore(scene.house.catalog, scene.house.pool, rows)
            await scene.house.until(lambda view: view.status == "loaded", "b")
    assert "loading a, b" in caplog.text, "not the one first that was loaded last"


async def test_why_it_has_no_place_is_looked_at_now_and_then_and_it_comes_all_the_same(
    enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    preview = Pool.preview

    async def counted(pool: Pool, version: Version, wish: Wish) -> Any:
        looked.append(version.model_name)
        return await preview(pool, version, wish)

    monkeypatch.setattr(Pool, "preview", counted)
    async with enter(memory={"budget_mb": ROOM_FOR_ONE_MB}) as scene:
        goal = scene.goal("a", probe_seconds=0.5)
        async with scene.house.lease("b"):
            await goal.until(lambda: goal.says("'a' cannot be held: "))
            looked.clear()
            until = asyncio.get_running_loop().time() + 2.5
            await goal.until(lambda: asyncio.get_running_loop().time() > until)
            assert goal.says("'a' cannot be held: ")
            assert len(looked) <= 1
        freed = asyncio.get_running_loop().time()
        await goal.answers()
        assert asyncio.get_running_loop().time() - freed < 2.5


async def test_in_a_storm_it_takes_its_place_as_soon_as_that_is_free(enter: Enter) -> None:
    async with enter(memory={"budget_mb": ROOM_FOR_ONE_MB}) as scene:
        goal = scene.goal("a")
        async with scene.house.lease("b"):
            await goal.until(lambda: goal.says("'a' cannot be held: "))
            with pytest.raises(InsufficientMemory, match=r"'a' .* kept by a goal"):
                await scene.house.ask("c")
        await scene.house.until(lambda view: view.status == "loaded")  # and nobody has looked meanwhile
        await goal.answers()
        assert scene.house.starts == 2
