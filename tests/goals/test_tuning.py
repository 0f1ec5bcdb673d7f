"""Goals of the type `serving` with a whole coordinator, and their steps on engines that really run.

Where nothing is to be computed engines are fake ones: what is too large for `max_memory_mb` is told by the header
alone, so that which way is chosen does not depend on how fast this machine is.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from adapters import make_adapter
from chaos.callers import client
from goals.pursued import until
from goals.tuned import objective
from modelops.api.errors import Conflict, InvalidRequest, ModelOpsError, NotFound
from modelops.api.goals import Goal, GoalLimits, GoalStep
from modelops.client import Client
from modelops.goals.asked import requests_of
from modelops.goals.doing import REQUESTS as REQUESTS_FILE
from modelops.goals.doing import TEXT, Tools
from modelops.goals.measuring import NoQuietTime
from modelops.goals.narrowing import MOST_AGAIN
from modelops.goals.sampling import turns
from modelops.goals.space import MB, Way
from modelops.goals.targets import Probed, ServingFacts
from modelops.goals.tuning import ServingDoer
from modelops.goals.values import Action, Pursued, Step
from modelops.learning import datasets
from modelops.learning.engines import OwnEngines
from modelops.learning.yielding import Yielding
from modelops.metrics import Metrics
from modelops.serving.catalog import Version
from modelops.serving.devices import Device, ThisMachine
from modelops.serving.wishes import Tuning, Wish
from modelops.settings import Settings
from seeing import CUDA, a_gpu, engine
from serving.house import House, Shown, house
from support import Served, put, serving, tiny_gguf, wait_until

REQUESTS = [{"input_text": "What is a river?", "max_tokens": 4}]
ENV = {
    "MODELOPS_GOALS__SAMPLE_S": "0.03",
    "MODELOPS_ENGINE__CONTEXT_LENGTH": "32768",
    "MODELOPS_LEARNING__RESUME_AFTER_S": "0.05",
}
#: With it one slot has room, and four have not: by the header, 24 MB more.
SMALLER: dict[str, Any] = {"workload": {"requests": REQUESTS, "concurrency": 1}, "max_memory_mb": 100, "formats": []}


@contextmanager
def faked(folder: Path, **behaviour: Any) -> Iterator[Served]:
    """A coordinator whose model `m` is served by fake engines."""
    if not (folder / "models" / "m.gguf").exists():
        tiny_gguf(folder / "models" / "m.gguf", llama__context_length=32768)
    fake = {"token_s": 0.002, "count_file": str(folder / "starts"), **behaviour}
    with serving(folder, fake=fake, env=ENV) as served:
        yield served


def begin(asked: Client, watch_seconds: float = 0.2, **fields: Any) -> str:
    wanted = {"type": "serving", "model_name": "m", "watch_seconds": watch_seconds, **fields}
    return asked.create_goal("the smaller", wanted).goal_id


def ended(asked: Client, goal_id: str) -> Goal:
    """The goal when it has ended; nobody looks meanwhile: that would take what is measured its time."""
    for event in asked.watch_goal(goal_id):
        if event.done and event.goal:
            return event.goal
    raise AssertionError("it has not ended")


def told(asked: Client, goal_id: str, words: str) -> None:
    """Wait until that is said of the goal."""
    assert any(words in event.message for event in asked.watch_goal(goal_id)), f"it ended without '{words}'"


def steps_once(goal: Goal) -> list[GoalStep]:
    """Its steps, but for rounds that were made once more: how often that is depends on what else this machine does."""
    return [step for step in goal.steps if not step.arguments.get("again")]


def actions(goal: Goal) -> list[str]:
    return [step.action for step in steps_once(goal)]


def slots(asked: Client) -> int:
    return asked.model("m").slots


def load(asked: Client) -> None:
    asked.load("m")
    assert slots(asked) == 4


# --- a whole goal ---
def test_what_was_applied_stays_until_somebody_says_otherwise(tmp_path: Path) -> None:
    with faked(tmp_path) as served, client(served) as asked:
        goal = ended(asked, begin(asked, **SMALLER))
        assert goal.status == "completed", goal.error_message
        assert goal.result["applied"] == {"version": "v1", "slots": 1}
        assert actions(goal) == ["measure"] * 4 + ["apply"]
        for _ in range(2):
            assert asked.infer("m", "Hello", max_tokens=2).success
            assert slots(asked) == 1, "whenever it is loaded"
            asked.unload("m")
        assert not (tmp_path / "goals" / goal.goal_id).exists()
    with faked(tmp_path) as served, client(served) as asked:
        asked.load("m")
        assert slots(asked) == 1, "after a restart"
        asked.unload("m")
        asked.load("m", slots=3)
        assert slots(asked) == 3


def test_cancelling_in_the_watch_undoes_it(tmp_path: Path) -> None:
    with faked(tmp_path) as served, client(served) as asked:
        load(asked)
        goal_id = begin(asked, 3600, **SMALLER)
        told(asked, goal_id, "is watched")
        assert slots(asked) == 1
        asked.cancel_goal(goal_id, "it was better before")
        goal = ended(asked, goal_id)
        assert (goal.status, goal.error_message) == ("cancelled", "it was better before")
        assert actions(goal)[-2:] == ["apply", "restore"]
        assert (slots(asked), goal.result["applied"]) == (4, {})
        asked.unload("m")
        load(asked)


def test_a_load_that_asks_for_it_untuned_in_the_watch_is_what_stays(tmp_path: Path) -> None:
    with faked(tmp_path) as served, client(served) as asked:
        load(asked)
        goal_id = begin(asked, 3600, **SMALLER)
        told(asked, goal_id, "is watched")
        assert slots(asked) == 1
        asked.unload("m")
        asked.load("m", untuned=True)
        goal = ended(asked, goal_id)
        assert (goal.status, actions(goal)[-1], goal.result["applied"]) == ("failed", "apply", {})
        assert "untuned" in goal.error_message
        assert (slots(asked), asked.model("m").tuned) == (4, {})


def test_after_kills_nothing_is_measured_twice(tmp_path: Path) -> None:
    notes: dict[str, Any] = {}
    killed_at = []
    goal_id = ""
    for life, samples in enumerate((1, 2, 6)):
        with faked(tmp_path) as served, client(served) as asked:
            if not life:
                load(asked)
                goal_id = begin(asked, 1.0, **SMALLER)
            file = tmp_path / "goals" / goal_id / "measured.json"
            wait_until(lambda: file.exists() and len(json.loads(file.read_text())) >= samples, 30)  # noqa: B023
            served.process.kill()
            served.process.wait(10)
            kept = json.loads(file.read_text())
            assert notes.items() <= kept.items(), "what was measured before is as it was"
            notes = kept
            killed_at.append(len(notes))
    with faked(tmp_path) as served, client(served) as asked:  # and once more when it is applied
        wait_until(lambda: "apply" in actions(asked.get_goal(goal_id)), 50, "that it is applied")
        served.process.kill()
        served.process.wait(10)
    with faked(tmp_path) as served, client(served) as asked:
        goal = ended(asked, goal_id)
        assert goal.status == "completed", goal.error_message
        assert actions(goal) == ["measure"] * 4 + ["apply"]
        wait_until(lambda: slots(asked) == 1, what="the way that was chosen")
    assert sum(len(_samples(step.result)) for step in steps_once(goal)) == 1 + 3 + 3 + 10
    assert len(goal.steps) - len(steps_once(goal)) <= MOST_AGAIN
    samples_made = sum(len(_samples(step.result)) for step in goal.steps)
    told = {sample["requests_per_second"] for step in goal.steps for sample in _samples(step.result)}
    assert {sample["requests_per_second"] for sample in notes.values()} <= told, "what was measured is what counts"
    starts = len((tmp_path / "starts").read_text().splitlines())
    lives = 5
    assert starts <= samples_made + 2 + 2 * lives, "each kill costs one sample, and the model is loaded again"
    assert killed_at == sorted(killed_at)


def _samples(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [sample for way in result.get("measured", ()) for sample in way.get("samples", [way])]


def test_requests_go_first_and_what_fails_in_the_watch_is_undone(tmp_path: Path) -> None:
    sick, took, ends, pauses = tmp_path / "sick", list[float](), threading.Event(), random.Random(1)
    longer = [{**REQUESTS[0], "max_tokens": 10}]
    with faked(tmp_path, token_s=0.02, sick_file=str(sick)) as served, client(served) as asked:
        load(asked)

        def ask() -> None:
            with client(served) as caller:
                while not ends.is_set():
                    began = time.monotonic()
                    assert caller.infer("m", "Hello", max_tokens=4).success
                    took.append(time.monotonic() - began)
                    ends.wait(pauses.uniform(0.1, 0.5))  # never in step with what is measured

        caller = threading.Thread(target=ask)
        goal_id = begin(asked, 3600, **{**SMALLER, "workload": {"requests": longer, "concurrency": 1}})
        caller.start()
        wait_until(lambda: _thrown(asked.get_goal(goal_id)) > 0 or slots(asked) == 1, 50)
        ends.set()
        caller.join()
        told(asked, goal_id, "is watched")
        assert slots(asked) == 1
        assert _thrown(asked.get_goal(goal_id)) > 0
        told(asked, goal_id, "requests leave no quiet time: 1 sample was thrown away so far")
        assert max(took) < 1.5, "the fake answers in 0.08 s; measuring never keeps it from that for long"

        sick.touch()
        for _ in range(4):
            with pytest.raises(ModelOpsError):
                asked.infer("m", "Hello", max_tokens=2)
        goal = ended(asked, goal_id)
        assert (goal.status, actions(goal)[-2:]) == ("failed", ["apply", "restore"])
        sick.unlink()
        wait_until(lambda: slots(asked) == 4, what="how it was before")


def _thrown(goal: Goal) -> int:
    return sum(sample.get("thrown_away", 0) for step in goal.steps for sample in _samples(step.result))


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"model_name": "nothing"}, NotFound, "no model"),
        ({"workload": {"prompt_tokens": 32768}}, InvalidRequest, "more than the context"),
        ({"workload": {"requests": [{"input": "x"}]}}, InvalidRequest, "unknown input"),
        ({"workload": {"requests": [{"input_text": " "}]}}, InvalidRequest, "not empty"),
        ({"workload": {"requests": [{"input_text": "a", "max_tokens": 0}]}}, InvalidRequest, "1 or more"),
        (
            {"workload": {"requests": [*REQUESTS, *REQUESTS, {"input_text": "word " * 60_000}]}},
            InvalidRequest,
            "requests, 3: at least 37500 tokens of prompt and 128 of answer are more than the context of 32768",
        ),
        (
            {"workload": {"requests": [{"input_text": "a" * 40, "max_tokens": 100_000}]}},
            InvalidRequest,
            "requests, 1: at least 5 tokens of prompt and 100000 of answer",
        ),
        ({"max_memory_mb": 1}, InvalidRequest, r"max_memory_mb: no way of running 'm' .* less than [2-9]\d MB"),
        ({"draft_model_name": "nothing"}, NotFound, "no model"),
        ({"text_dataset": []}, InvalidRequest, "no rows"),
        ({"formats": ["Q3_K"]}, InvalidRequest, "formats"),
        ({"workload": {"requests": [{"input_text": "a\0"}]}}, InvalidRequest, "workload.requests: row 1: .* NUL"),
    ],
)
def test_what_cannot_be_pursued_is_refused(refusing: Client, fields: dict[str, Any], error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        begin(refusing, **fields)


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with faked(tmp_path_factory.mktemp("refusing")) as served, client(served) as asked:
        yield asked


def test_a_goal_is_planned_in_words(refusing: Client) -> None:
    plan = refusing.create_goal("how", {"type": "serving", "model_name": "m"}, dry_run=True).plan
    assert plan is not None
    assert any("Q8_0, Q4_0" in step for step in plan.steps)
    assert plan.seconds > 0
    assert plan.memory_mb > 0
    assert not refusing.list_goals("all")
    twice = {"type": "serving", "model_name": "m", "formats": ["Q8_0", "Q4_0", "Q8_0"]}
    again = refusing.create_goal("how", twice, dry_run=True)
    assert again.objective["formats"] == ["Q8_0", "Q4_0"]
    assert again.plan == plan


# --- with a real engine ---
@pytest.mark.timeout(120)
def test_a_model_is_tuned_by_what_it_gives(tiny: Path, tmp_path: Path) -> None:
    """Which way is the fastest is this machine's; that one is found, and all that was tried is told, is ours."""
    env = {"MODELOPS_GOALS__SAMPLE_S": "0.01"}
    fields: dict[str, Any] = {
        "workload": {"prompt_tokens": 20, "answer_tokens": 2, "concurrency": 1},
        "formats": ["Q8_0"],
        "text_dataset": [{"text": "the rose is red and the lake is blue"}],
        "max_perplexity_increase": 10,
    }
    with serving(tmp_path, links=[("m", tiny)], load=["m"], env=env) as served, client(served) as asked:
        goal_id = begin(asked, **fields)
        notes = tmp_path / "goals" / goal_id / "measured.json"
        wait_until(lambda: notes.exists() and "perplexity" in notes.read_text(), 50, "a file that is judged")
        served.process.kill()  # in the middle of a rewrite
        served.process.wait(10)
        known = json.loads(notes.read_text())
    with serving(tmp_path, load=["m"], env=env) as served, client(served) as asked:
        goal = ended(asked, goal_id)
        assert goal.status == "completed", goal.error_message
        tried = {row["way"]: row for row in goal.result["tried"]}
        assert {"as it is", "weights Q8_0"} <= tried.keys()
        (lost,) = goal.result["perplexity"]
        assert (lost["weights"], lost["kept"]) == ("Q8_0", True)
        assert lost["original"] == pytest.approx(lost["perplexity"], rel=0.2)
        assert lost["original"] == round(known["perplexity/v1//f16"], 4), "it was not judged again"
        assert not list((tmp_path / "formats").glob("*.gguf"))
        model = asked.model("m")
        applied = goal.result["applied"]
        assert model.model_version == applied.get("version", "v1")
        assert model.slots == applied.get("slots", 4)
        assert asked.infer("m", "the rose", max_tokens=2).success


class _Steps:
    """Steps that are done without a decision."""

    def __init__(self, home: House, folder: Path, settings: Settings) -> None:
        machine = ThisMachine()
        engines = OwnEngines(settings, machine, folder)
        self.jobs = _Jobs()
        self.yielding = Yielding(0.0)
        jobs = cast(Any, self.jobs)
        tools = Tools(settings, home.catalog, home.pool, machine, jobs, engines, self.yielding, Metrics())
        self.doer = ServingDoer(tools)
        self._folder = folder
        self._goal = Pursued("g", objective(model_name="tiny", formats=["Q8_0"]))
        self._numbers = 0
        self.told: list[str] = []

    async def do(self, kind: str, again: bool = False, **given: Any) -> dict[str, Any]:
        self._numbers += not again
        step = Step(self._numbers, Action(kind, {"version": "v1", **given}), "", 0.0)
        return dict(await self.doer.perform(self._goal, step, self._folder, self._tell))

    async def _tell(self, kind: Any, message: str, metrics: Any = None) -> None:
        self.told.append(message)


@dataclass
class _Jobs:
    """All that goals of serving know of learning jobs."""

    running: int = 0
    used: dict[tuple[str, str], str] = field(default_factory=dict)

    async def in_use(self) -> dict[tuple[str, str], str]:
        return self.used


async def test_another_format_is_published_served_undone_and_cleared_away(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        await home.load("tiny")
        changes = {"weights": "Q8_0", "slots": 2, "batch_size": 128}
        given: dict[str, Any] = {"changes": changes, "wish": Wish().to_json(), "tuned": ""}
        assert await steps.do("apply", **given) == {"version": "v2"}
        view = home.pool.view("tiny")
        assert (view.version.label, view.slots) == ("v2", 2)
        assert view.version.lineage["weights"] == "Q8_0"
        assert home.catalog.tuned("tiny") == Wish(slots=2, tuning=Tuning(batch_size=128))
        pid = view.engine_pid
        assert await steps.do("apply", again=True, **given) == {"version": "v2"}, "done twice it is done once"
        assert home.pool.view("tiny").engine_pid == pid
        assert len(home.catalog.versions("tiny")) == 2

        back: dict[str, Any] = {"wish": Wish().to_json(), "tuned": "", "applied": "v2", "load": False}
        assert await steps.do("restore", **back) == {"version": "v1"}
        assert (home.pool.view("tiny").version.label, home.pool.view("tiny").slots) == ("v1", 4)
        assert home.catalog.tuned("tiny") is None
        steps.jobs.used = {("tiny", "v2"): "theirs"}
        with pytest.raises(Conflict, match="v2, which the learning job theirs trains or judges"):
            await steps.do("discard", weights=["Q8_0"], versions=["v1"], keep="")
        steps.jobs.used = {}
        assert await steps.do("discard", weights=["Q8_0"], versions=["v1"], keep="") == {"removed": ["v2"]}
        assert [version.label for version in home.catalog.versions("tiny")] == ["v1"]
        assert not list((tmp_path / "formats").glob("*.gguf"))
        assert await steps.do("discard", again=True, weights=["Q8_0"], versions=["v1"], keep="") == {"removed": []}


async def test_what_was_written_of_a_model_that_is_removed_is_cleared_away(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        text = datasets.read([{"text": "the rose is red"}], "evaluate", "text")
        datasets.write(text, tmp_path / TEXT)
        await steps.do("rewrite", weights="Q8_0", cache_type="")
        assert list((tmp_path / "formats").glob("*.gguf"))
        await home.catalog.remove(home.catalog.versions("tiny"))
        assert await steps.do("discard", weights=["Q8_0"], versions=["v1"], keep="") == {"removed": []}
        assert not list((tmp_path / "formats").glob("*.gguf"))


async def test_it_waits_for_memory_that_other_programs_hold(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Shown()
    monkeypatch.setattr("serving.house.ThisMachine", lambda: shown)
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        shown.less = 2**60
        why = await steps.doer.refusal(steps._goal, tmp_path)
        assert "it waits for memory" in why and "other programs: " in why
        shown.less = 0
        assert await steps.doer.refusal(steps._goal, tmp_path) == ""


async def test_an_undoing_that_is_cut_short_is_done_again(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        await home.load("tiny")
        given: dict[str, Any] = {"changes": {"slots": 2}, "wish": Wish().to_json(), "tuned": ""}
        await steps.do("apply", **given)
        unable = Wish(tuning=Tuning(speculation="draft", draft="nothing")).to_json()
        with pytest.raises(NotFound):
            await steps.do("restore", wish=unable, tuned="", applied="v1", load=False)
        assert home.catalog.tuned("tiny") is None, "what is not seen by the version is undone first"
        assert home.pool.view("tiny").slots == 2
        await steps.do("restore", again=True, wish=Wish().to_json(), tuned="", applied="v1", load=False)
        assert home.pool.view("tiny").slots == 4


async def test_what_was_applied_is_undone_also_where_others_have_taken_the_room(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Shown()
    monkeypatch.setattr("serving.house.ThisMachine", lambda: shown)
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        await home.load("tiny")
        given: dict[str, Any] = {"changes": {"slots": 1}, "wish": Wish().to_json(), "tuned": ""}
        await steps.do("apply", **given)
        assert home.pool.view("tiny").slots == 1
        shown.less = 2**60
        back: dict[str, Any] = {"wish": Wish(slots=8).to_json(), "tuned": Wish(slots=8).to_json(), "applied": "v1"}
        assert await steps.do("restore", **back, load=False) == {"version": "v1"}
        assert (home.pool.view("tiny").status, home.catalog.tuned("tiny")) == ("available", Wish(slots=8))
        shown.less = 0
        assert await home.ask("tiny")
        assert home.pool.view("tiny").slots == 8


class _ShortUntilUnloaded(Shown):
    """Others hold all memory until the model of the house runs no more."""

    home: House | None = None

    def devices(self) -> tuple[Device, ...]:
        if self.home and self.home.pool.view("tiny").status == "available":
            self.less = 0
        return super().devices()


async def test_what_is_undone_without_room_is_loaded_where_there_is_some_then(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _ShortUntilUnloaded()
    monkeypatch.setattr("serving.house.ThisMachine", lambda: shown)
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        await home.load("tiny")
        await steps.do("apply", changes={"slots": 1}, wish=Wish().to_json(), tuned="")
        shown.home, shown.less = home, 2**60
        back: dict[str, Any] = {"wish": Wish(slots=8).to_json(), "tuned": "", "applied": "v1"}
        assert await steps.do("restore", **back, load=False) == {"version": "v1"}
        assert (home.pool.view("tiny").status, home.pool.view("tiny").slots) == ("loaded", 8)


async def test_what_was_loaded_before_it_failed_is_loaded_again(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        back: dict[str, Any] = {"wish": Wish(slots=3).to_json(), "tuned": "", "applied": "v1"}
        await steps.do("restore", **back, load=False)
        assert not home.pool.resident("tiny")
        await steps.do("restore", **back, load=True)
        assert (home.pool.view("tiny").status, home.pool.view("tiny").slots) == ("loaded", 3)


async def test_what_was_applied_is_asked_and_needs_no_file(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        await home.load("tiny")
        goal = _applied(steps, changes={}, tuned="")
        assert await steps.doer.facts(goal, tmp_path) == Probed(asking=True)
        while (found := await steps.doer.facts(goal, tmp_path)) == Probed(asking=True):
            await asyncio.sleep(0.005)
        assert found == Probed()
        await home.unload("tiny")
        (tmp_path / "models" / "tiny.gguf").unlink()
        assert await steps.doer.facts(goal, tmp_path) == Probed()
        assert await steps.doer.refusal(goal, tmp_path) == ""
        assert not home.pool.resident("tiny"), "whoever has unloaded it wanted that"
        await steps.doer.close()


async def test_a_load_that_asks_for_it_untuned_is_seen_in_the_watch(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        await home.load("tiny")
        before = Wish(slots=3, tuning=Tuning(threads=1)).to_json()
        given: dict[str, Any] = {"changes": {"slots": 2, "speculation": "ngram"}, "wish": before, "tuned": before}
        await steps.do("apply", **given)
        goal = _applied(steps, **given)
        assert await steps.doer.facts(goal, tmp_path) == Probed(asking=True)
        await home.catalog.set_tuned("tiny", None)
        assert await steps.doer.facts(goal, tmp_path) == Probed(forgotten=True)
        restored = Step(2, Action("restore", given), "", 1.0, 2.0, error="no room")
        goal = replace(goal, steps=(*goal.steps, restored))
        assert await steps.doer.facts(goal, tmp_path) == Probed(), "it may be half undone"
        await steps.doer.close()


def _applied(steps: _Steps, **given: Any) -> Pursued:
    """The goal, after that was applied."""
    step = Step(1, Action("apply", {"version": "v1", **given}), "", 0.0, 1.0, {"version": "v1"})
    return replace(steps._goal, steps=(step,))


async def test_beside_learning_jobs_nothing_is_measured(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home, asyncio.TaskGroup() as group:
        steps = _Steps(home, tmp_path, settings)
        steps._goal = replace(steps._goal, objective=objective(model_name="tiny", workload=_SHORT))
        steps.jobs.running = 1
        ways = [Way(slots=1, batch_size=64, threads=1).to_json()]
        doing = group.create_task(steps.do("measure", ways=ways, pairs=1, requests=1))
        while not steps.told:
            await asyncio.sleep(0.005)
        assert "learning jobs" in steps.told[0]
        assert not home.pool.reserved(), "no memory is held meanwhile"
        steps.jobs.running = 0
        assert (await doing)["measured"][0]["requests"] == 1


async def test_no_idle_model_goes_while_there_is_no_quiet_time(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    given: dict[str, Any] = {"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}}
    async with house(tmp_path, Settings.model_validate(given), tmp_path / "starts") as home:
        build, _ = await home.pool.preview(home.catalog.active("tiny"), Wish())
    given |= {"memory": {"budget_mb": build.estimate.total // MB + 1}, "goals": {"quiet_timeout_s": 0.3}}
    settings = Settings.model_validate(given)
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        steps._goal = replace(steps._goal, objective=objective(model_name="tiny", workload=_SHORT))
        await home.load("tiny")
        ways = [Way(slots=1, batch_size=64, threads=1).to_json()]
        steps.yielding.busy(True)
        with pytest.raises(NoQuietTime, match=r"no quiet time of its length within 0\.3 s"):
            await steps.do("measure", ways=ways, pairs=1, requests=1)
        assert home.pool.view("tiny").status == "loaded"
        steps.yielding.busy(False)
        assert (await steps.do("measure", ways=ways, pairs=1, requests=1))["measured"][0]["requests"] == 1
        assert home.pool.view("tiny").status == "available", "its memory was needed"


async def test_the_wait_for_memory_is_none_for_a_quiet_time(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelops.goals.measuring._PATIENCE_S", 0.1)
    put(tiny, tmp_path / "models" / "tiny.gguf")
    given: dict[str, Any] = {"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}}
    given |= {"memory": {"budget_mb": 1000}, "goals": {"quiet_timeout_s": 2.0}}
    settings, clock = Settings.model_validate(given), asyncio.get_running_loop().time
    async with house(tmp_path, settings, tmp_path / "starts") as home, asyncio.TaskGroup() as group:
        steps = _Steps(home, tmp_path, settings)
        steps._goal = replace(steps._goal, objective=objective(model_name="tiny", workload=_SHORT))
        ways = [Way(slots=1, batch_size=64, threads=1).to_json()]
        async with home.pool.borrow("somebody", 999 * MB):
            doing = group.create_task(steps.do("measure", ways=ways, pairs=1, requests=1))
            await until(lambda: any("it waits for memory" in line for line in steps.told))
            patient = clock() + settings.goals.quiet_timeout_s
            await until(lambda: clock() > patient)
        await until(home.pool.reserved)
        steps.yielding.busy(True)
        await until(lambda: not home.pool.reserved(), seconds=20.0)  # its engine was ended
        steps.yielding.busy(False)
        assert (await doing)["measured"][0]["requests"] == 1


def test_the_present_way_is_measured_at_both_ends_of_a_round() -> None:
    assert turns(1, 1) == [(0, 0)]
    assert turns(1, 3) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert turns(3, 2) == [(0, 0), (0, 1), (1, 1), (1, 0), (2, 0), (2, 1)]


def test_requests_are_kept_with_the_rows_and_their_number_is_told(tmp_path: Path) -> None:
    words = "Nobody else may read this"
    wanted = {"requests": [{"input_text": words, "max_tokens": 4}, {"input_text": words}], "answer_tokens": 6}
    with faked(tmp_path) as served, client(served) as asked:
        goal_id = begin(asked, **{**SMALLER, "workload": wanted})
        told = asked.get_goal(goal_id)
        assert told.objective["workload"]["requests"] == 2
        assert words not in told.model_dump_json()
        assert not [file for file in tmp_path.glob("state.db*") if words.encode() in file.read_bytes()]
        assert requests_of(tmp_path / "goals" / goal_id) == [
            {"input_text": words, "max_tokens": 4},
            {"input_text": words, "max_tokens": 6},
        ]
        asked.cancel_goal(goal_id)
        ended(asked, goal_id)


async def test_what_somebody_else_has_activated_is_not_undone(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        given: dict[str, Any] = {"wish": Wish().to_json(), "tuned": "", "version": "v3", "load": False}
        left = await steps.do("restore", applied="v2", **given)
        assert left == {"version": "v1", "left": True}
        left = await steps.do("restore", applied="", **given)
        assert left == {"version": "v1", "left": True}


async def test_a_version_that_somebody_activates_meanwhile_is_left(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home, asyncio.TaskGroup() as group:
        steps = _Steps(home, tmp_path, settings)
        await home.load("tiny")
        put(tiny, tmp_path / "models" / "other.gguf")
        chosen = await home.catalog.register("tiny", "other.gguf", "llm")

        async def choose(version: Version) -> asyncio.Task[None]:
            """Begin to activate that."""
            deadline = asyncio.get_running_loop().time() + 20
            choosing = group.create_task(home.pool.activate(version, drain_first=False, deadline=deadline))
            await until(lambda: not home.pool.at_rest("tiny"))
            return choosing

        choosing = await choose(chosen)
        with pytest.raises(Conflict, match="v2 is active now, and v1 was measured"):
            await steps.do("apply", changes={"slots": 2}, wish=Wish().to_json(), tuned="")
        await choosing
        assert (home.pool.view("tiny").version.label, home.pool.view("tiny").slots) == ("v2", 4)

        await (await choose(home.catalog.version("tiny", "v1")))
        choosing = await choose(chosen)
        back: dict[str, Any] = {"wish": Wish(slots=2).to_json(), "tuned": "", "applied": "v1", "load": False}
        assert await steps.do("restore", **back) == {"version": "v2", "left": True}
        await choosing
        assert (home.pool.view("tiny").version.label, home.pool.view("tiny").slots) == ("v2", 4)


async def test_one_way_that_does_not_start_is_told_and_the_others_measured(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    put(tiny, tmp_path / "models" / "small.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    present = Way(slots=1, batch_size=64, threads=1)
    unfit = replace(present, cache_type="q8_0", flash_attention="off")
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        ways = [present.to_json(), unfit.to_json()]
        ways += [replace(present, speculation=kind).to_json() for kind in ("ngram", "draft")]
        wanted = objective(model_name="tiny", workload=_SHORT, draft_model_name="small")
        steps._goal = replace(steps._goal, objective=wanted)
        found = (await steps.do("measure", ways=ways, pairs=2, requests=2))["measured"]
        assert "needs flash attention" in found[1]["error"]
        assert [len(each["samples"]) for each in (found[0], found[2], found[3])] == [2, 2, 2], found
        assert found[0]["requests"] == 4
        with pytest.raises(InvalidRequest):
            await steps.do("measure", ways=ways[1::-1], pairs=1, requests=2)
        facts = await steps.doer.facts(steps._goal, tmp_path)
        assert isinstance(facts, ServingFacts)
        assert facts.present == Way(slots=4, batch_size=2048, threads=1)
        assert facts.room_bytes > facts.bytes(facts.present) > 40 << 20
        assert not home.pool.reserved(), "what was lent was given back"


_SHORT = {"prompt_tokens": 10, "answer_tokens": 2, "concurrency": 1}


async def test_adapters_keep_the_file_that_they_were_made_for(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    put(tiny, tmp_path / "models" / "tiny:beside.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        checked = await steps.doer.check(objective(model_name="tiny"), GoalLimits())
        assert checked.objective.formats == []  # type: ignore[union-attr]
        assert "adapters" in checked.warnings[0]


@pytest.mark.parametrize("listed", ["", CUDA], ids=["blind", "sees it"])
async def test_on_a_machine_with_a_gpu_it_is_tuned_where_the_engine_cannot_use_that(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str
) -> None:
    a_gpu(monkeypatch)
    put(tiny, tmp_path / "models" / "tiny.gguf")
    fake = {"executable": engine(tmp_path / "engine", listed), "threads": 1, "probe": False}
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": fake})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        checking = _Steps(home, tmp_path, settings).doer.check(objective(model_name="tiny"), GoalLimits())
        if listed:
            with pytest.raises(InvalidRequest, match="is served on a GPU"):
                await checking
        else:
            assert (await checking).plan.steps


async def test_weights_that_adapters_would_not_fit_are_not_applied(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        base = home.catalog.active("tiny")
        await home.catalog.publish_adapter("tiny:x", base, make_adapter(tmp_path / "x.gguf", base.file))
        given: dict[str, Any] = {"wish": Wish().to_json(), "tuned": ""}
        with pytest.raises(Conflict, match="made for the weights of v1, and would be refused: 'tiny:x'"):
            await steps.do("apply", changes={"weights": "Q8_0"}, **given)
        assert home.catalog.active("tiny").label == "v1"
        assert await steps.do("apply", changes={"slots": 2}, **given) == {"version": "v1"}


async def test_random_words_are_not_guessed(tiny: Path, tmp_path: Path) -> None:
    put(tiny, tmp_path / "models" / "tiny.gguf")
    put(tiny, tmp_path / "models" / "small.gguf")
    settings = Settings.model_validate({"data_dir": tmp_path, "engine": {"threads": 1, "probe": False}})
    async with house(tmp_path, settings, tmp_path / "starts") as home:
        steps = _Steps(home, tmp_path, settings)
        wanted: dict[str, Any] = {"model_name": "tiny", "draft_model_name": "small"}
        checked = await steps.doer.check(objective(**wanted, workload=_SHORT), GoalLimits())
        assert "draft_model_name is tried only with workload.requests" in checked.warnings[0]
        assert any("speculation is not tried" in step for step in checked.plan.steps)
        checked = await steps.doer.check(objective(**wanted, workload={"requests": REQUESTS}), GoalLimits())
        assert not checked.warnings
        assert not any("speculation" in step for step in checked.plan.steps)
        assert REQUESTS_FILE in checked.files
