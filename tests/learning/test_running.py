"""Jobs that run: what they give way to, how they are ended, what becomes of them when the coordinator ends in order."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from chaos.callers import client
from modelops.client import Client
from support import Served, serving, wait_until

ROWS = [{"prompt": f"the colour of {n}?", "completion": "red"} for n in range(16)]
ENV = {"MODELOPS_LEARNING__THREADS": "1", "MODELOPS_LEARNING__RESUME_AFTER_S": "0.2"}
LONG = {"steps": 100_000, "batch_size": 4, "rank": 2, "max_length": 64, "checkpoint_steps": 1000}


@pytest.fixture
def served(learning: None, tiny: Path, tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, links=[("tiny", tiny)], env=ENV) as served:
        yield served


def trainer(served: Served) -> psutil.Process:
    """The child program that works on a job, not its guard."""
    found = [process for process in served.engines() if "modelops.learning.trainer" in process.cmdline()]
    return next(process for process in found if not any("guard.py" in part for part in process.cmdline()))


@contextlib.contextmanager
def requests(served: Served) -> Iterator[None]:
    """One request after another, as long as the context is open."""
    ended = threading.Event()

    def ask() -> None:
        with client(served) as asked:
            while not ended.is_set():
                asked.infer("tiny", "Hello", max_tokens=200, temperature=0.0)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_training_stands_still_while_requests_are_answered_and_ends_when_somebody_says_so(served: Served) -> None:
    with client(served) as asked:
        job_id = asked.create_job("lora", "tiny", dataset=ROWS, parameters=LONG, output_model_name="tiny:x").job_id
        steps(asked, job_id, more_than=0)
        child = trainer(served)
        assert child.nice() == 19
        with requests(served):
            wait_until(lambda: asked.get_job(job_id).paused, 20.0, "a pause")
            wait_until(lambda: child.status() == psutil.STATUS_STOPPED, 5.0, "a trainer that stands still")
        wait_until(lambda: not asked.get_job(job_id).paused, 20.0, "the end of the pause")
        steps(asked, job_id, more_than=int(asked.get_job(job_id).metrics["step"]))
        asked.cancel_job(job_id, "enough")
        wait_until(lambda: asked.get_job(job_id).status == "cancelled", 20.0, "the end of the job")
        job = asked.get_job(job_id)
        assert job.error_message == "enough"
        assert job.metrics["step"] > 0
        assert not child.is_running()
        wait_until(lambda: asked.status().learning_jobs_running == 0, 5.0, "nobody who works on it")
    assert not list((served.data_dir / "learning" / "jobs").iterdir())


def test_a_coordinator_that_is_asked_to_end_does_not_wait_for_jobs_and_they_go_on(served: Served, tiny: Path) -> None:
    with client(served) as asked:
        job_id = asked.create_job("lora", "tiny", dataset=ROWS, parameters=LONG, output_model_name="tiny:x").job_id
        steps(asked, job_id, more_than=0)
        child = trainer(served)
    assert served.stop() == 0
    assert not child.is_running()
    with serving(served.data_dir, env=ENV) as again, client(again) as asked:
        wait_until(lambda: asked.get_job(job_id).status == "running", 20.0, "the job to go on")
        assert asked.get_job(job_id).attempts == 2
        wait_until(lambda: asked.get_job(job_id).step != "prepare", 60.0, "a step that was done before")
        asked.cancel_job(job_id)
        wait_until(lambda: asked.get_job(job_id).status == "cancelled", 20.0, "the end of the job")


def steps(asked: Client, job_id: str, *, more_than: int) -> None:
    """Wait until the job has trained so many steps."""

    def trained() -> bool:
        job = asked.get_job(job_id)
        assert job.status in ("pending", "running"), job.error_message
        return job.step == "train" and int(job.metrics.get("step", 0)) > more_than

    wait_until(trained, 90.0, f"more than {more_than} steps")
