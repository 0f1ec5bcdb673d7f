"""Learning jobs whose trainer, coordinator, or both are killed at every step, and while a checkpoint is written.

Whatever is killed, the job ends once, and what it publishes is, byte for byte, what it would have been. By a seed
(CHAOS_SEED) further kills fall at any time: LEARNING_KILLS says how many jobs go through that; the long run is
`make soak`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from chaos.callers import alive, client
from modelops.api.errors import ModelOpsError
from modelops.api.learning import LearningJob
from modelops.client import Client
from support import Served, serving, wait_until

KILLS = int(os.environ.get("LEARNING_KILLS", "0"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
STEPS = ("validate", "prepare", "train", "convert", "parity", "evaluate", "publish")
WORDS = ["red", "green", "blue", "white", "black", "grey", "pink", "gold"]
ROWS = [{"prompt": f"the colour of {n}?", "completion": WORDS[n % len(WORDS)]} for n in range(24)]
HELD_OUT = [{"prompt": f"colour of {n}", "completion": WORDS[n % len(WORDS)]} for n in range(4)]
PARAMETERS = {"steps": 24, "batch_size": 4, "rank": 4, "checkpoint_steps": 3, "learning_rate": 0.01, "max_length": 64}
LONGEST_S = 110.0

Kill = Callable[[Served], None]


class Life:
    """A data folder, and the coordinators that lived on it one after another."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        self._folder = folder
        self._tiny = tiny
        self._stack = contextlib.ExitStack()
        self.served: Served | None = None
        self.job_id = ""

    def begin(self) -> Served:
        """The next coordinator."""
        links = [] if self.served else [("tiny", self._tiny)]
        running = serving(self._folder, links=links, env={"MODELOPS_LEARNING__THREADS": "1"})
        self.served = self._stack.enter_context(running)
        return self.served

    def end(self) -> None:
        self._stack.close()

    def create(self) -> None:
        with self.asked() as asked:
            job = asked.create_job(
                "lora",
                "tiny",
                dataset=ROWS,
                eval_dataset=HELD_OUT,
                parameters=PARAMETERS,
                output_model_name="tiny:colours",
                idempotency_key="the one",
            )
        self.job_id = job.job_id

    @contextlib.contextmanager
    def asked(self) -> Iterator[Client]:
        assert self.served
        with client(self.served) as asked:
            yield asked

    def job(self) -> LearningJob:
        with self.asked() as asked:
            return asked.get_job(self.job_id)

    def kill(self, *who: str) -> None:
        """SIGKILL to the programs of the job, to the coordinator, or to both, in this order."""
        assert self.served
        tree = self.served.engines()
        if "trainer" in who:
            for process in programs_of_jobs(self.served):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        if "coordinator" in who:
            self.served.process.kill()
            self.served.process.wait()
            wait_until(lambda: not any(map(alive, tree)), 5.0, "the end of all that it had started")
            self.begin()

    def ended(self) -> LearningJob:
        """The job as it ended, and what must hold then."""
        wait_until(lambda: self.job().status not in ("pending", "running"), LONGEST_S, "the end of the job")
        with self.asked() as asked:
            assert [job.job_id for job in asked.list_jobs()] == [self.job_id]
            ends = [event for event in asked.watch_job(self.job_id) if event.kind == "state"]
            assert [event.done for event in ends] == [True], "it ends once"
            versions = asked.versions("tiny:colours")
            assert [version.model_version for version in versions] == ["v1"], "it is published once"
        assert not list((self._folder / "learning" / "jobs").iterdir()), "nothing is left of it"
        return self.job()

    def published(self) -> str:
        """Digest of what was published."""
        (file,) = (self._folder / "models" / "published").iterdir()
        return hashlib.sha256(file.read_bytes()).hexdigest()


def programs_of_jobs(served: Served) -> list[psutil.Process]:
    """The trainer that runs now, or the engine that a job has started for itself; not their guards."""
    found = []
    for process in served.engines():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if not any("guard.py" in part for part in line):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def undisturbed(learning: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of what the job publishes when nobody disturbs it."""
    life = Life(tmp_path_factory.mktemp("undisturbed"), tiny)
    life.begin()
    try:
        life.create()
        job = life.ended()
        assert job.status == "completed", job.error_message
        return life.published()
    finally:
        life.end()


@pytest.fixture
def life(learning: None, tiny: Path, tmp_path: Path) -> Iterator[Life]:
    life = Life(tmp_path, tiny)
    life.begin()
    try:
        yield life
    finally:
        life.end()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", [("trainer",), ("coordinator",), ("trainer", "coordinator")], ids="+".join)
def test_a_job_that_is_killed_at_every_step_ends_once_with_the_same_weights(
    life: Life, undisturbed: str, who: tuple[str, ...]
) -> None:
    life.create()
    killed = []
    for step in STEPS:
        wait_until(partial(reached, life, step), LONGEST_S, f"the step {step}")
        job = life.job()
        if job.step == step:  # the shortest steps may be over before they are seen
            life.kill(*who)
            killed.append(step)
    job = life.ended()
    assert job.status == "completed", job.error_message
    assert {"prepare", "train", "parity"} <= set(killed)
    assert life.published() == undisturbed


@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", [("trainer",), ("trainer", "coordinator")], ids="+".join)
def test_a_kill_while_a_checkpoint_is_written_costs_nothing_that_was_written_before(
    life: Life, undisturbed: str, who: tuple[str, ...]
) -> None:
    life.create()
    checkpoints = life._folder / "learning" / "jobs" / life.job_id / "checkpoints"

    def writing() -> bool:
        """The second checkpoint has been begun, and is not there yet."""
        names = [folder.name for folder in checkpoints.iterdir()] if checkpoints.is_dir() else []
        whole = [name for name in names if name.startswith("step-") and name[5:].isdigit()]
        return len(whole) >= 1 and len(names) > len(whole)

    wait_until(writing, LONGEST_S, "a checkpoint that is being written")
    life.kill(*who)
    job = life.ended()
    assert job.status == "completed", job.error_message
    assert life.published() == undisturbed


if KILLS:  # in the long run only: each takes a minute or two

    @pytest.mark.timeout(600)
    @pytest.mark.parametrize("seed", range(SEED, SEED + KILLS))
    def test_kills_at_any_time(life: Life, undisturbed: str, seed: int) -> None:
        chance = random.Random(seed)
        life.create()
        for _ in range(chance.randint(2, 6)):
            due = time.monotonic() + chance.uniform(0.1, 12.0)
            wait_until(partial(is_past, due), 20.0)
            with contextlib.suppress(ModelOpsError):
                if life.job().status in ("completed", "failed"):
                    break
            life.kill(*chance.choice([("trainer",), ("coordinator",), ("trainer", "coordinator")]))
        job = life.ended()
        assert job.status == "completed", job.error_message
        assert life.published() == undisturbed


def is_past(due: float) -> bool:
    return time.monotonic() > due


def reached(life: Life, step: str) -> bool:
    """Whether the job is at the step, or behind it."""
    job = life.job()
    if job.status not in ("pending", "running"):
        return True
    return job.step in STEPS and STEPS.index(job.step) >= STEPS.index(step)
