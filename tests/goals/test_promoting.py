"""Versions that are promoted, watched, taken back and deleted, in a pool with real processes for engines."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapters import make_adapter
from damages import DAMAGES, Damage
from goals.promoting import OBJECTIVE, PROMOTE, TRAINED, Scene, scene
from goals.pursued import until
from goals.taught import HELD_OUT as HELD_OUT_ROWS
from goals.taught import TRAIN
from modelops.api.errors import Conflict, EngineFailed, InsufficientMemory, NotFound
from modelops.api.goals import GoalLimits
from modelops.goals.attempts import QualityFacts
from modelops.goals.doing import HELD_OUT
from modelops.goals.values import Action, Step
from modelops.learning import datasets
from modelops.serving.catalog import Version
from modelops.store.jobs import JobRow
from serving.house import Shown
from support import tiny_gguf


async def test_a_version_is_promoted_once_however_often_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as made:
        await made.house.load()
        for _ in range(2):
            result = await made.do("promote", **PROMOTE)
            assert (result["version"], result["loaded"], result["failures"]) == ("v2", True, 0)
            assert made.active == made.house.pool.view("a").version.label == "v2"
        assert made.house.starts == 2


async def test_what_was_compared_with_another_version_is_not_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as made:
        await made.house.catalog.activate(made.house.catalog.version("a", "v3"))
        with pytest.raises(Conflict, match="v3 is active now, and v2 was compared with v1"):
            await made.do("promote", **PROMOTE)
        with pytest.raises(NotFound):
            await made.do("promote", version="v9", from_version="v3")
        assert made.active == "v3"


async def test_a_version_that_somebody_activates_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch, load_s=0.3) as made, asyncio.TaskGroup() as group:
        house, chosen = made.house, made.house.catalog.version("a", "v3")
        await house.load()
        deadline = asyncio.get_running_loop().time() + 20
        choosing = group.create_task(house.pool.activate(chosen, drain_first=False, deadline=deadline))
        await until(lambda: not house.pool.at_rest("a"))
        with pytest.raises(Conflict, match="v3 is active now, and v2 was compared with v1"):
            await made.do("promote", **PROMOTE)
        await choosing
        assert made.active == house.pool.view("a").version.label == "v3"


async def test_a_version_that_somebody_activates_while_the_other_is_prepared_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as made:
        house, pool = made.house, made.house.pool
        chosen, activate = house.catalog.version("a", "v3"), house.pool.activate
        await house.load()

        async def late(version: Version, **given: Any) -> None:
            """At the last moment at which anybody else can."""
            await activate(chosen, drain_first=False, deadline=given["deadline"])
            await activate(version, **given)

        monkeypatch.setattr(pool, "activate", late)
        with pytest.raises(Conflict, match="v3 is active now, and v2 was compared with v1"):
            await made.do("promote", **PROMOTE)
        assert made.active == pool.view("a").version.label == "v3"


async def test_a_version_that_does_not_start_leaves_the_present_one_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch, load_fails=["", "the file is damaged"]) as made:
        await made.house.load()
        with pytest.raises(EngineFailed):
            await made.do("promote", **PROMOTE)
        assert made.active == made.house.pool.view("a").version.label == "v1"
        assert await made.house.ask()


async def test_a_promotion_that_is_interrupted_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch, load_s=0.5) as made:
        await made.house.load()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await made.do("promote", **PROMOTE)
        assert made.active == "v2", "what has begun goes on: whoever decides sees it"


async def test_a_job_is_seen_though_its_step_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as made:
        row = JobRow(
            id="stray",
            job_type="lora",
            model_name="a",
            created_at=1.0,
            caller="goal",
            idempotency_key="g-2",
            status="running",
        )
        await made.queries.add(row)
        made.steps += (Step(2, TRAINED.action, "", 2.0, 3.0, error="interrupted"),)
        seen = (await made.facts()).jobs
        assert seen["stray"].status == "running"
        assert seen["ours"].status == "failed", "nobody knows it"
        assert (await made.facts()).made == {"v2"}
        await made.do("cancel_job", job_id="stray")
        row_now = await made.queries.get("stray")
        assert row_now
        assert row_now.cancel_reason == "because"
        await made.do("cancel_job", job_id="nobody knows it")


async def test_a_job_whose_step_is_interrupted_while_it_is_created_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelops.goals.training._LAST_S", 0.0)
    async with scene(tmp_path, monkeypatch) as made, asyncio.TaskGroup() as group:
        await made.learning.clear()
        rows = datasets.read([{"prompt": "2 and 2?", "completion": "4"}], "evaluate", "rows")
        datasets.write(rows, made.folder / HELD_OUT)
        judging = group.create_task(made.do("baseline", version="v1"))
        await until(lambda: "goals of quality: create g-2" in {task.get_name() for task in asyncio.all_tasks()})
        judging.cancel()
        await asyncio.wait({judging})
        made.steps += (Step(2, Action("baseline", {"version": "v1"}), "", 2.0, 3.0, error="interrupted"),)
        assert [job.status for job in (await made.facts()).jobs.values()] == ["failed", "pending"]


@pytest.mark.parametrize("state", ["loaded", "failed", "restarting", "unloaded"])
async def test_it_is_taken_back_in_whatever_state_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr("modelops.serving.scheduler.BACKOFF_S", (0.0, 0.2) if state == "failed" else (0.0, 60.0))
    # Its second start is the promoted version's; what follows are its restarts, until it is given up.
    fails = {"failed": ["", "", "no", "no"], "restarting": ["", "", "no"]}.get(state, [])
    async with scene(tmp_path, monkeypatch, load_fails=fails) as made:
        await made.house.load()
        result = await made.do("promote", **PROMOTE)
        if state == "unloaded":
            await made.house.unload()
        elif state != "loaded":
            for process in made.house.processes():
                with contextlib.suppress(psutil.NoSuchProcess):  # of the version before, which ends
                    process.kill()
            wanted = ("failed", 4) if state == "failed" else ("loading", 3)
            await made.house.until(lambda view: (view.status, made.house.starts) == wanted)
        assert await made.do("roll_back", **PROMOTE, loaded=result["loaded"]) == {"version": "v1"}
        view = made.house.pool.view("a")
        assert (made.active, view.status, view.version.label) == ("v1", "loaded", "v1")
        assert await made.house.ask()
        assert await made.do("roll_back", **PROMOTE, loaded=True) == {"version": "v1"}, "again, and nothing changes"


async def test_it_is_taken_back_also_where_others_have_taken_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Shown()
    monkeypatch.setattr("serving.house.ThisMachine", lambda: shown)
    async with scene(tmp_path, monkeypatch) as made:
        house = made.house
        larger = tiny_gguf(tmp_path / "larger.gguf", llama__embedding_length=640)
        await house.catalog.publish("a", larger, "llm", {"job_id": "ours"})
        await house.load()
        shown.less = 2**60
        assert await made.do("roll_back", version="v1", from_version="v4", loaded=True) == {"version": "v4"}
        assert (made.active, house.pool.view("a").status, house.processes()) == ("v4", "available", set())
        with pytest.raises(InsufficientMemory):
            await house.ask()
        shown.less = 0
        assert await house.ask()
        assert house.pool.view("a").version.label == "v4"


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_version_whose_file_is_damaged_is_seen_taken_back_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    async with scene(tmp_path, monkeypatch) as made:
        await made.house.load()
        result = await made.do("promote", **PROMOTE)
        assert (await made.facts()).damaged == frozenset()
        damage(made.house.catalog.version("a", "v2").file)
        assert (await made.facts()).damaged == {"v2"}
        psutil.Process(made.house.pool.view("a").engine_pid).children()[0].kill()
        await made.do("roll_back", **PROMOTE, loaded=result["loaded"])
        assert (made.active, made.house.pool.view("a").version.label) == ("v1", "v1")
        assert await made.house.ask()
        assert made.house.starts == 3, "of the damaged file no engine was started"
        assert await made.do("discard", versions=["v2"]) == {"removed": ["v2"]}
        assert (await made.facts()).damaged == frozenset()


async def test_what_nobody_had_loaded_is_not_loaded_when_it_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as made:
        assert (await made.do("promote", **PROMOTE))["loaded"] is False
        await made.do("roll_back", **PROMOTE, loaded=False)
        assert (made.active, made.house.starts) == ("v1", 0)


async def test_what_somebody_else_has_activated_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as made:
        await made.do("promote", **PROMOTE)
        await made.house.catalog.activate(made.house.catalog.version("a", "v3"))
        assert await made.do("roll_back", **PROMOTE, loaded=True) == {"version": "v3"}
        assert made.active == "v3"


async def test_only_what_the_goal_has_made_and_nobody_uses_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch) as made:
        labels = ["v1", "v2", "v3", "v9"]
        file = made.house.catalog.version("a", "v2").file
        await made.do("promote", **PROMOTE)
        assert await made.do("discard", versions=labels) == {"removed": []}, "it answers"
        await made.do("roll_back", **PROMOTE, loaded=False)
        assert await made.do("discard", versions=labels) == {"removed": ["v2"]}
        assert [version.label for version in made.house.catalog.versions("a")] == ["v1", "v3"]
        assert not file.exists()
        assert await made.do("discard", versions=labels) == {"removed": []}


@pytest.mark.parametrize("need", ["job", "adapter", "engine"])
async def test_what_something_needs_still_is_not_deleted_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: str
) -> None:
    async with scene(tmp_path, monkeypatch, request_timeout_s=0.1) as made, contextlib.AsyncExitStack() as stack:
        house, catalog = made.house, made.house.catalog
        if need == "job":
            await made.queries.add(
                JobRow("theirs", created_at=1.0, job_type="lora", model_name="a", request={"model_version": "v2"})
            )
            said = "v2, which the learning job theirs trains or judges"
        elif need == "adapter":
            base = catalog.version("a", "v2")
            await catalog.publish_adapter("a:x", base, make_adapter(tmp_path / "made-x.gguf", base.file))
            said = "v2, for which adapters were made: 'a:x' v1"
        else:
            await house.load()
            await made.do("promote", **PROMOTE)
            await stack.enter_async_context(house.lease())
            await made.do("roll_back", **PROMOTE, loaded=True)
            said = "v2, which an engine runs"
        again = tiny_gguf(tmp_path / "again.gguf", general__name="again")
        assert (await catalog.publish("a", again, "llm", {"job_id": "ours"})).label == "v4"
        with pytest.raises(Conflict, match=said):
            await made.do("discard", versions=["v2", "v4"])
        assert [version.label for version in catalog.versions("a")] == ["v1", "v2", "v3"], "the rest is"


async def test_an_engine_that_was_replaced_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path, monkeypatch) as made, asyncio.TaskGroup() as group:
        await made.house.load()
        await made.do("promote", **PROMOTE)
        async with made.house.lease():
            await made.do("roll_back", **PROMOTE, loaded=True)
            discarding = group.create_task(made.do("discard", versions=["v2"]))
            await asyncio.wait({discarding}, timeout=0.1)
            assert not discarding.done()
        assert await discarding == {"removed": ["v2"]}


async def test_adapters_of_the_present_version_are_told_of(
    learning: None, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(tmp_path, monkeypatch, model=tiny) as made:
        wanted = OBJECTIVE.model_copy(update={"train_dataset": TRAIN, "eval_dataset": HELD_OUT_ROWS})
        base = made.house.catalog.active("a")
        warned = (await made.doer.check(wanted, GoalLimits())).warnings
        await made.house.catalog.publish_adapter("a:x", base, make_adapter(tmp_path / "x.gguf", base.file))
        (more,) = set((await made.doer.check(wanted, GoalLimits())).warnings) - set(warned)
        assert "adapters that were made for the present version ('a:x') are refused until that answers again" in more


# --- the watch ---
async def probes(made: Scene, condition: Any) -> QualityFacts:
    """What is seen of the probes, looked at until it is as wanted."""
    async with asyncio.timeout(20):
        while not condition(facts := await made.facts()):
            await asyncio.sleep(0.02)
    return facts


async def test_a_promoted_version_is_asked_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelops.goals.watching._EVERY_S", 0.05)
    async with scene(tmp_path, monkeypatch, sick_file=str(tmp_path / "sick")) as made:
        await made.house.load()
        assert (await made.facts()).answered == 0
        await made.do("promote", **PROMOTE)
        assert (await probes(made, lambda facts: facts.answered >= 3)).unanswered == 0
        (tmp_path / "sick").touch()
        await probes(made, lambda facts: facts.unanswered >= 3)
        (tmp_path / "sick").unlink()
        await made.do("roll_back", **PROMOTE, loaded=True)
        facts = await made.facts()
        assert (facts.answered, facts.unanswered) == (0, 0), "it is not watched any more"


async def test_a_probe_that_waits_behind_others_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelops.goals.watching._EVERY_S", 0.05)
    monkeypatch.setattr("modelops.goals.watching._PATIENCE_S", 0.1)
    async with scene(tmp_path, monkeypatch, token_s=0.01) as made:
        await made.house.load()
        await made.do("promote", **PROMOTE)
        async with made.house.lease(), made.house.lease():
            for _ in range(20):
                facts = await made.facts()
                await asyncio.sleep(0.03)
            assert (facts.answered, facts.unanswered) == (0, 0)
        await probes(made, lambda facts: facts.answered >= 1)
