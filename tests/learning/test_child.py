"""The child program, as it is run: a real process that says what the trainer says."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from modelops.api.errors import DeadlineExceeded, DiskFull, InsufficientMemory, InvalidRequest
from modelops.learning.child import Child, Said, TrainerDied, TrainerFailed


@pytest.fixture
def child(tmp_path: Path) -> Callable[..., tuple[Child, list[Said]]]:
    """A child that runs the lines of Python that it is given, and what was heard of it."""

    def make(code: str, stall_s: float = 20.0) -> tuple[Child, list[Said]]:
        heard: list[Said] = []
        program = tmp_path / "program.py"
        program.write_text(
            f"import json, sys, time\ndef say(**said): print('@' + json.dumps(said), flush=True)\n{code}\n"
        )
        return Child("train", tmp_path, heard.append, stall_s=stall_s, program=(sys.executable, str(program))), heard

    return make


Make = Callable[..., tuple[Child, list[Said]]]


async def test_what_it_says_is_heard(child: Make) -> None:
    run, heard = child(
        "print('a library talks')\n"
        "say(event='progress', done=1, total=3, metrics={'train_loss': 0.5})\n"
        "say(event='log', message='goes on'); say(event='warning', message='two rows dropped')\n"
        "say(event='something else'); print('@not json'); print(sys.argv[1])"
    )
    await run.run({})
    assert heard == [
        Said("progress", done=1, total=3, metrics={"train_loss": 0.5}),
        Said("log", "goes on"),
        Said("warning", "two rows dropped"),
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("invalid_request", InvalidRequest),
        ("unsupported", InvalidRequest),
        ("diverged", InvalidRequest),
        ("disk_full", DiskFull),
        ("no_memory", InsufficientMemory),
        ("internal", TrainerFailed),
        ("what no trainer says", TrainerFailed),
    ],
)
async def test_what_it_says_of_its_failure_is_raised(child: Make, code: str, error: type[Exception]) -> None:
    run, _ = child(f"say(event='failed', code={code!r}, message='step 3: the loss is no number'); sys.exit(3)")
    with pytest.raises(error, match="step 3: the loss is no number"):
        await run.run({})


async def test_an_end_without_a_word_says_how(child: Make) -> None:
    run, _ = child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(TrainerDied, match="the trainer was killed by SIGKILL while it was to train"):
        await run.run({})
    run, _ = child("sys.exit('error: no such thing')")
    with pytest.raises(TrainerFailed, match="ended with status 1: error: no such thing"):
        await run.run({})


async def test_one_that_does_nothing_is_ended_unless_it_is_paused(
    child: Make, begun: Callable[[], list[psutil.Process]]
) -> None:
    run, heard = child("say(event='log', message='here'); time.sleep(3600)", stall_s=1.0)
    with pytest.raises(DeadlineExceeded, match="the trainer did nothing for 1 s while it was to train"):
        await run.run({})
    assert heard and not begun()
    run, heard = child("say(event='log', message='here')\nfor n in range(1000): time.sleep(0.01)", stall_s=0.5)
    running = asyncio.ensure_future(run.run({}))
    while not heard:
        await asyncio.sleep(0.01)
    run.pause()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(running), 1.5)  # three times as long as it may be silent
    run.resume()
    with pytest.raises(DeadlineExceeded):
        await running
    assert not begun()


async def test_cancelling_ends_it_also_where_it_is_paused(
    child: Make, begun: Callable[[], list[psutil.Process]]
) -> None:
    run, heard = child("say(event='log', message='here'); time.sleep(3600)")
    running = asyncio.ensure_future(run.run({}))
    while not heard:
        await asyncio.sleep(0.01)
    assert run.taken_bytes() > 0
    run.pause()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not begun()
