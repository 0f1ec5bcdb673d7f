"""`kill -9` of the coordinator in each step of goals that serve: they go on, and nothing is done twice.

Goals of quality are killed in `test_quality`, measurements in `goals/test_tuning`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos.callers import client, kill, model_of, programs, until_noted
from chaos.halting import REMOVING, Point, begun, done, ended, halted, halting
from goals import tuned
from goals.tuned import Tuned
from kept_goals import keep_goal, memo, request
from modelops.api.goals import Goal
from modelops.client import Client
from modelops.goals.values import Act, Step
from modelops.store.goals import GoalRow
from support import Served, serving, tiny_gguf, wait_until

PATIENCE_S = 30.0
WHY = "it was better before"


@dataclass
class Scene:
    """A coordinator that is to be killed, and the goal that it pursues. Engines that are started wait for `ready`."""

    served: Served
    asked: Client
    ready: Path
    goal_id: str = ""

    def goal(self) -> Goal:
        return self.asked.get_goal(self.goal_id)

    def until(self, condition: Callable[[Goal], Any], what: str) -> Goal:
        """The goal, when that is true of it."""

        def there() -> Goal | None:
            goal = self.goal()
            return goal if condition(goal) else None

        found: Goal = wait_until(there, PATIENCE_S, what)
        return found

    def until_it_says(self, words: str) -> None:
        self.until(lambda goal: words in goal.message, f"'{words}'")

    def until_halted(self) -> None:
        wait_until(lambda: halted(self.served.log), PATIENCE_S, "that it stands where it is to be killed")

    def cancelled(self) -> Goal:
        """The goal, when it has ended as somebody wanted, and once."""
        goal = self.until(lambda goal: goal.completed_at, "the end of the goal")
        assert (goal.status, goal.error_message) == ("cancelled", WHY)
        states = [event.message for event in self.asked.watch_goal(self.goal_id) if event.kind == "state"]
        assert states == ["active", f"cancelled: {WHY}"]
        return goal


def check(goal: Goal, steps: Sequence[str]) -> None:
    """These steps were done, each once, and the goal has gone on after the kill."""
    assert [step.action for step in goal.steps] == list(steps)
    assert [step.number for step in goal.steps] == list(range(1, len(steps) + 1))
    assert all(step.completed_at and not step.error_message for step in goal.steps)
    assert goal.attempts == 2


def starts(folder: Path) -> int:
    """How many engines were started."""
    file = folder / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


# --- serving ---
def chosen(folder: Path) -> GoalRow:
    """A goal that has found another format to be the best, by figures that were made up, and is to apply it."""
    rates = {tuned.PRESENT: 1.0, replace(tuned.PRESENT, weights="Q8_0"): 2.0}
    wanted = tuned.objective(formats=["Q8_0"], watch_seconds=3600)
    found = Tuned(wanted, tuned.facts(folder), lambda way: rates.get(way, 0.5))
    while isinstance(act := found.decide(), Act) and act.action.kind != "apply":
        found.do(act)
    assert isinstance(act, Act)
    assert act.action.arguments["changes"] == {"weights": "Q8_0"}
    steps = (*found.steps, Step(len(found.steps) + 1, act.action, act.why, found.elapsed))
    asked = request(wanted.model_dump(mode="json", exclude={"text_dataset"}))
    return GoalRow("g", "the fastest", "serving", created_at=1.7e9, request=asked, memo=memo(*steps))


@dataclass(frozen=True)
class Kill:
    """In which step it comes, and `at` which point: None, while another engine is started. So many are started after
    it: each is one that was not, or that the kill has ended."""

    action: str
    at: Point | None
    starts: int


SERVING = {
    "applied": Kill("apply", done("apply"), 2),
    "begun to restore": Kill("restore", begun("restore"), 2),
    "restoring": Kill("restore", None, 2),
    "restored": Kill("restore", done("restore"), 1),
    "begun to discard": Kill("discard", begun("discard"), 1),
    "discarding": Kill("discard", REMOVING, 1),
    "discarded": Kill("discard", done("discard"), 1),
}


@pytest.mark.parametrize("name", SERVING)
def test_what_was_applied_is_undone_and_cleared_away_once(tiny: Path, tmp_path: Path, name: str) -> None:
    wanted, folder, ready = SERVING[name], tmp_path / "data", tmp_path / "ready"
    goal = chosen(tmp_path)
    keep_goal(folder, goal, ())
    ready.touch()
    fake = {"ready_file": str(ready), "count_file": str(folder / "starts")}
    with (
        halting(folder, wanted.at) if wanted.at else contextlib.nullcontext(),
        serving(folder, links=[("m", tiny)], load=["m"], fake=fake) as served,
        client(served) as asked,
    ):
        scene = Scene(served, asked, ready, goal.id)
        if wanted.action != "apply":
            undo(scene, wanted)
        if wanted.at:
            scene.until_halted()
        kill(served)
    before = starts(folder)
    ready.touch()
    with serving(folder, fake=fake) as served, client(served) as asked:
        scene = Scene(served, asked, ready, goal.id)
        if wanted.action == "apply":
            undo(scene, wanted)
        found = scene.cancelled()
        check(found, [*(step["action"] for step in goal.memo.values()), "restore", "discard"])
        assert [version.model_version for version in asked.versions("m")] == ["v1"]
        assert not list((folder / "formats").glob("*.gguf"))
        wait_until(lambda: asked.model("m").status == "loaded", what="the model as it was")
        assert asked.model("m").slots == tuned.PRESENT.slots
        assert asked.infer("m", "Hello", max_tokens=2).model_version == "v1"
        assert not tuned_to(folder, "m")
        assert starts(folder) == before + wanted.starts
        assert len(programs(served)) == 1


def undo(scene: Scene, wanted: Kill) -> None:
    """What was applied is watched, and somebody does not want it any more."""
    scene.until_it_says("is watched")
    assert [version.active for version in scene.asked.versions("m")] == [False, True], "what was made is published once"
    if wanted.at is None:
        scene.ready.unlink()
    scene.asked.cancel_goal(scene.goal_id, WHY)
    if wanted.at is None:
        wait_until(lambda: len(programs(scene.served)) == 2, what="another engine")
        assert scene.goal().steps[-1].action == wanted.action
        assert not scene.goal().steps[-1].completed_at


def tuned_to(folder: Path, model: str) -> str:
    """How a goal has found the model to run best, whenever it is loaded; empty: it is run as it is."""
    with contextlib.closing(sqlite3.connect(folder / "state.db")) as state:
        ((tuned,),) = state.execute("SELECT tuned FROM models WHERE model_name = ?", [model]).fetchall()
    return str(tuned)


# --- availability ---
KEPT = ("a", "b")
#: Room for all models, and for two.
ROOM_MB, TWO_MB = "500", "110"
F16 = 1  # of the tensors of a file, which is quantised where that is wished


def until_they_load(scene: Scene, *names: str) -> None:
    scene.until_it_says("; ".join(f"'{name}' is on its way (loading)" for name in names))
    for name in names:
        until_noted(scene.served, name, wanted=True)


def preparing(scene: Scene) -> None:
    wait_until(lambda: suspended(scene.served, "modelops.serving.quantizer"), what="a copy that is made")
    scene.until_it_says("'b' is on its way (its file is prepared)")


def suspended(served: Served, module: str) -> bool:
    """Whether there is a child program of that name, which stands still from then on."""
    for process in served.engines():
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[1:3] == ["-m", module]:
                process.suspend()
                return True
    return False


def loading(scene: Scene) -> None:
    wait_until(lambda: len(programs(scene.served)) == len(KEPT), what="an engine of each")
    until_they_load(scene, *KEPT)


def probing(scene: Scene) -> None:
    wait_until(lambda: all(scene.asked.model(name).active_requests for name in KEPT), PATIENCE_S, "a probe of each")


def answering(scene: Scene) -> None:
    scene.until(lambda goal: goal.metrics.get("answered", 0) >= len(KEPT), "answers")


def recovering(scene: Scene) -> None:
    answering(scene)
    scene.ready.unlink()
    (engine,) = (program for program in programs(scene.served) if model_of(program) == "b")
    engine.kill()
    until_they_load(scene, "b")


def loading_again(scene: Scene) -> None:
    answering(scene)
    scene.ready.unlink()
    scene.asked.unload("b", force=True)
    until_they_load(scene, "b")


def pausing(scene: Scene) -> None:
    scene.until_it_says("'b' is loaded again after a pause: ")
    until_noted(scene.served, "b", wanted=False)


def without_a_place(scene: Scene) -> None:
    scene.until_it_says("'b' cannot be held: ")


def ending(scene: Scene) -> None:
    answering(scene)
    scene.asked.cancel_goal(scene.goal_id, WHY)
    scene.until_halted()


def counted_on(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether each model may have answered once more."""
    for name in ("probes", "answered", "recoveries"):
        assert now.get(name, 0) >= before.get(name, 0), "what was counted survives"
    return bool(now.get("answered", 0) >= before.get("answered", 0) + len(KEPT))


@dataclass(frozen=True)
class State:
    """`reach` it, or be halted `at` a point, kill, and these are the loads that were begun in the end. `fake` and the
    rest is how it is before the kill: how engines behave, and whether they are `ready`; which other model is `pinned`;
    whether the file of `b` is `copied`, quantised, before it is loaded."""

    reach: Callable[[Scene], None]
    at: Point | None = None
    loads: tuple[str, ...] = KEPT
    fake: Mapping[str, Any] = field(default_factory=dict)
    ready: bool = True
    room_mb: str = ROOM_MB
    pinned: str = ""
    copied: bool = False


AVAILABILITY = {
    "begun to load": State(Scene.until_halted, begun("load")),
    "load begun": State(Scene.until_halted, done("load")),
    "preparing": State(preparing, loads=("a", "b", "b"), copied=True),
    "loading": State(loading, ready=False),
    "probing": State(probing, fake={"prompt_s": 3600}),
    "answering": State(answering),
    "recovering": State(recovering),
    "loading again": State(loading_again, loads=("a", "b", "b")),
    "pausing": State(pausing, loads=("a", "b", "b"), fake={"models": {"b": {"load_fails": "error: out of luck"}}}),
    "without a place": State(without_a_place, loads=("a", "b", "b"), room_mb=TWO_MB, pinned="other"),
    "ending": State(ending, ended("cancelled")),
}


@pytest.mark.parametrize("name", AVAILABILITY)
def test_what_is_kept_is_kept_on_and_each_load_is_begun_once(tmp_path: Path, name: str) -> None:
    state, folder, ready = AVAILABILITY[name], tmp_path / "data", tmp_path / "ready"
    catalogue = tmp_path / "models.toml"
    env = {"MODELOPS_MODELS__CATALOGUE": str(catalogue), "MODELOPS_MEMORY__BUDGET_MB": ROOM_MB}
    for model in (*KEPT, "other"):
        tiny_gguf(folder / "models" / f"{model}.gguf", tensor_type=F16)
    if state.ready:
        ready.touch()
    catalogue.write_text("[b]\nquantization = true" if state.copied else "")
    fake = {"ready_file": str(ready), "count_file": str(folder / "starts")}
    room = {"MODELOPS_MEMORY__BUDGET_MB": state.room_mb}
    with serving(folder, fake={**fake, **state.fake}, env=env | room) as served, client(served) as asked:
        if state.pinned:
            asked.load(state.pinned, pin=True)
        with halting(folder, state.at) if state.at else contextlib.nullcontext():
            objective = {
                "type": "availability",
                "models": list(KEPT),
                "probe_seconds": 0.5,
                "probe_timeout_seconds": 60,
            }
            scene = Scene(served, asked, ready, asked.create_goal("kept", objective).goal_id)
            state.reach(scene)
            noted = scene.goal().metrics
            kill(served)
    before = starts(folder)
    ready.touch()
    with serving(folder, fake=fake, env=env) as served, client(served) as asked:
        scene = Scene(served, asked, ready, scene.goal_id)
        if state.reach is not ending:
            scene.until(lambda goal: counted_on(noted, goal.metrics), "more answers")
            scene.until_it_says("all 2 models are loaded and answer")
            asked.cancel_goal(scene.goal_id, WHY)
        found = scene.cancelled()
        assert [step.arguments["model_name"] for step in found.steps] == list(state.loads)
        check(found, ["load"] * len(state.loads))
        for model in KEPT:
            assert asked.infer(model, "Hello", max_tokens=2).success
        assert starts(folder) == before + len(KEPT) + bool(state.pinned)
