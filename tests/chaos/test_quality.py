"""Goals of quality whose coordinator is killed in every step: they go on, and nothing is done twice.

By a seed (CHAOS_SEED) further kills fall at any time: QUALITY_KILLS says how many goals go through that.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from chaos.callers import kill, programs
from goals.taught import ENV, LONGEST_S, actions, asking, at, ended, nothing_is_left, wished
from modelops.api.errors import ModelOpsError
from modelops.api.goals import Goal
from support import Served, serving, wait_until

KILLS = int(os.environ.get("QUALITY_KILLS", "0"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
STEPS = ("baseline", "train", "promote", "confirm")


class Life:
    """A data folder, and the coordinators that lived on it one after another."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self._folder = folder
        self._tiny = tiny
        self._stack = contextlib.ExitStack()
        self.goal_id = ""
        self.served = self.begin(links=[("tiny", tiny)])

    def begin(self, links: list[tuple[str, Path]]) -> Served:
        """The next coordinator."""
        return self._stack.enter_context(serving(self._folder, links=links, env=ENV))

    def end(self) -> None:
        self._stack.close()

    def kill(self) -> None:
        """SIGKILL to the coordinator; the next one begins."""
        kill(self.served)
        self.served = self.begin([])

    def create(self) -> None:
        with asking(self.served) as asked:
            self.goal_id = wished(asked, watch_seconds=2.0).goal_id

    def goal(self) -> Goal:
        with asking(self.served) as asked:
            return asked.get_goal(self.goal_id)

    def ended(self) -> Goal:
        """The goal as it ended, and what must hold then."""
        wait_until(lambda: self.goal().completed_at, LONGEST_S, "the end of the goal")
        goal = self.goal()
        assert goal.status == "completed", goal.error_message
        assert [step.number for step in goal.steps] == list(range(1, len(goal.steps) + 1))
        done = [step for step in goal.steps if not step.error_message]
        assert [step.action for step in done] == list(STEPS), "each once"
        with asking(self.served) as asked:
            assert sorted(job.job_id for job in asked.list_jobs()) == sorted(goal.learning_job_ids)
            assert len(goal.learning_job_ids) == 3
            versions = {version.model_version: version.active for version in asked.versions("tiny")}
            assert versions == {"v1": False, "v2": True}
            assert asked.infer("tiny", "the colour of 5?", max_tokens=3, temperature=0.0).output_text == "red"
            ends = [event for event in asked.watch_goal(self.goal_id) if event.kind == "state" and event.goal]
            assert len(ends) == 1, "it ends once"
            nothing_is_left(self.served, asked)
        return goal


@pytest.fixture
def life(learning: None, tiny: Path, tmp_path: Path) -> Iterator[Life]:
    life = Life(tmp_path, tiny)
    try:
        yield life
    finally:
        life.end()


def reached(life: Life, action: str) -> Callable[[], bool]:
    def there() -> bool:
        goal = life.goal()
        return bool(goal.completed_at) or action in actions(goal)

    return there


@pytest.mark.timeout(300)
def test_a_goal_whose_coordinator_is_killed_in_every_step_goes_on_and_does_nothing_twice(life: Life) -> None:
    life.create()
    killed = []
    for action in STEPS:
        wait_until(reached(life, action), LONGEST_S, f"the step {action}")
        if not life.goal().completed_at:
            life.kill()
            killed.append(action)
    goal = life.ended()
    assert {"baseline", "train", "promote"} <= set(killed)
    late = killed[-1] == "confirm" and goal.attempts == len(killed)  # it had just ended when it was killed last
    assert late or goal.attempts == len(killed) + 1


if KILLS:  # in the long run only: each takes a minute or two

    @pytest.mark.timeout(600)
    @pytest.mark.parametrize("seed", range(SEED, SEED + KILLS))
    def test_kills_at_any_time(life: Life, seed: int) -> None:
        chance = random.Random(seed)
        life.create()
        for _ in range(chance.randint(2, 8)):
            due = time.monotonic() + chance.uniform(0.05, 8.0)
            wait_until(lambda due=due: time.monotonic() > due, 20.0)  # type: ignore[misc] # bound now
            with contextlib.suppress(ModelOpsError):
                if life.goal().completed_at:
                    break
            life.kill()
        life.ended()

    @pytest.mark.timeout(600)
    def test_a_version_that_dies_once_it_is_served_is_taken_back(life: Life) -> None:
        with asking(life.served) as asked:
            life.goal_id = wished(asked, watch_seconds=300).goal_id
            at(asked, life.goal_id, "promote")
            killed = set[int]()
            for _ in range(3):
                engine = wait_until(lambda: fresh(life.served, killed), 20.0, "its engine")
                killed.add(engine.pid)
                engine.kill()
                engine.wait(10)
            killed_at = time.time()
            goal = ended(asked, life.goal_id)
            assert goal.status == "failed"
            assert "v2 failed" in goal.error_message
            undone = next(step for step in goal.steps if step.action == "roll_back")
            assert undone.started_at.timestamp() - killed_at < 2.0
            assert asked.model("tiny").status == "loaded"
            assert asked.infer("tiny", "the colour of 3?", max_tokens=2).model_version == "v1"
            assert [version.model_version for version in asked.versions("tiny")] == ["v1", "v2"], "the best is kept"


def fresh(served: Served, killed: set[int]) -> psutil.Process | None:
    """An engine that is there, and was not killed yet."""
    return next((program for program in programs(served) if program.pid not in killed), None)
