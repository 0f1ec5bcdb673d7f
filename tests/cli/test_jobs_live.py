"""`modelops jobs watch` in a terminal: drawn while the job goes on, left without ending it."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cli.terminal import CURSOR, Terminal, terminal
from kept_jobs import CREATED, JOB, keep, written
from modelops.client import Client
from modelops.store.jobs import JobQueries
from support import Served, serving, tiny_gguf, wait_until

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A coordinator with the job `training`, which another one works on; it works on none itself."""
    claimed = replace(
        JOB,
        id="training",
        job_type="lora",
        model_name="m",
        output_model_name="m:capitals",
        status="running",
        step="train",
        progress=0.0,
        metrics={},
        result={},
        started_at=CREATED,
        completed_at=None,
        lease_owner="another",
        lease_until=time.time() + 3600,
        fence=1,
    )
    keep(tmp_path / "data", claimed, [])
    env = {"MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0"}
    with serving(tmp_path / "data", links=[("m", tiny_gguf(tmp_path / "m.gguf"))], fake={}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def progress(served: Served, *steps: int) -> None:
    """Whoever works on the job has done these steps of 40."""

    async def write(queries: JobQueries) -> None:
        for step in steps:
            loss = 3 * math.exp(-step / 10)
            metrics = {"step": step, "total_steps": 40, "train_loss": loss, "tokens_per_second": 250.4}
            metrics |= {"eta_seconds": float(3 * (40 - step))} | ({"eval_loss": loss + 0.5} if step % 10 == 0 else {})
            await queries.note("training", 1, progress=step / 40, metrics=metrics)
            await queries.tell("training", time.time(), "progress", step="train", metrics=metrics)

    asyncio.run(written(served.data_dir, write))


def ended(served: Served, status: str, error: str = "") -> None:
    async def write(queries: JobQueries) -> None:
        result = {"model_name": "m:capitals", "model_version": "v1", "active": True, "scores": {}}
        await queries.end("training", 1, status, time.time(), result=result, error=error)
        await queries.tell("training", time.time(), "state", message=status)

    asyncio.run(written(served.data_dir, write))


def shows(watching: Terminal, pattern: str) -> str:
    """Wait until it has been drawn; all that was drawn so far, in plain text."""
    return str(
        wait_until(
            lambda: re.search(pattern, told := _ESCAPES.sub("", watching.output).replace("\r", "\n")) and told,
            seconds=20,
            what=pattern,
        )
    )


def test_a_job_is_drawn_until_it_has_ended(served: Served) -> None:
    with terminal("jobs", "watch", "training", url=served.rest, size=(100, 30)) as watching:
        shows(watching, r"job training  lora of m, as m:capitals")
        progress(served, 1, 5, 10, 20)
        told = shows(watching, r"step 20 of 40, loss 0\.406, held-out loss 0\.906, 250 tokens/s, 1 min 0 s left")
        assert re.search(r"█+░+  train 50%", told)
        told = shows(watching, r"2\.71 ┤[^\n]*[\u2801-\u28ff]")
        assert "held-out loss" in told
        ended(served, "completed")
        assert watching.ended() == 0
        assert "job training is completed: it is 'm:capitals' v1" in watching.output
        assert watching.output.rfind(CURSOR) > watching.output.rfind("\x1b[?25l")


def test_who_leaves_does_not_end_the_job(served: Served) -> None:
    with terminal("jobs", "watch", "training", url=served.rest, size=(60, 20)) as watching:
        progress(served, 3)
        shows(watching, "step 3 of 40")
        watching.type("\x03")
        assert watching.ended() == 130
        assert "the job goes on" in watching.output
        assert watching.restored()
    with Client(served.rest) as client:
        assert client.get_job("training").status == "running"


def test_a_job_that_fails_says_why_and_so_does_the_status(served: Served) -> None:
    with terminal("jobs", "watch", "training", url=served.rest) as watching:
        shows(watching, "job training")
        ended(served, "failed", "the loss is no number")
        assert watching.ended() == 1
        assert "job training failed: the loss is no number" in watching.output
        assert "failed in train 0%" in _ESCAPES.sub("", watching.output)


@pytest.mark.parametrize("happened", [True, False], ids=["with events", "without"])
def test_a_coordinator_that_is_restarted_is_waited_for(served: Served, happened: bool) -> None:
    port = served.rest.rpartition(":")[2]
    with terminal("jobs", "watch", "training", url=served.rest) as watching:
        shows(watching, "job training")
        if happened:
            progress(served, 7)
            shows(watching, "step 7 of 40")
        served.stop()
        shows(watching, "trying again")
        env = {"MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0", "MODELOPS_SERVER__REST_PORT": port}
        with serving(served.data_dir, fake={}, env=env) as again:
            progress(again, 9)
            shows(watching, "step 9 of 40")
            ended(again, "completed")
            assert watching.ended() == 0
