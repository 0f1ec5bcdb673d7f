"""The child program of learning jobs, as a process of its own that is really killed.

To import PyTorch and what is built on it takes seconds, so each one is forked from a process that has done it already;
with FRESH_PROCESSES set, each is started as a coordinator starts it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from modelops.learning.trainer import __main__ as program
from modelops.learning.trainer.report import MARK

Row = Mapping[str, Any]
#: Read when libraries are imported, which is before the program can set it.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
_WAIT_S = 100
_STOPPED = "waits to be killed"


@dataclass
class Said:
    """What a step has said, and how it ended."""

    status: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    errors: str = ""

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]

    @property
    def failure(self) -> tuple[str, str]:
        """Code and message."""
        assert self.status == 3, (self.status, self.errors)
        (event,) = self.of("failed")
        return event["code"], event["message"]


def job(folder: Path, base: Path, train: Sequence[Row], *, kind: str = "lora", **parameters: Any) -> Path:
    """A job's folder with its task and its rows; what is named `held_out`, `regression`, `context_length` or `threads`
    is no parameter of the training."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "train.jsonl", train)
    if held_out := parameters.pop("held_out", None):
        _write(folder / "eval.jsonl", held_out)
    if regression := parameters.pop("regression", None):
        _write(folder / "regression.jsonl", regression)
    task = {
        "base": str(base),
        "digest": "sha256:" + "0" * 64,
        "job_type": kind,
        "threads": parameters.pop("threads", 1),
        "context_length": parameters.pop("context_length", 0),
        "parameters": parameters,
        "device": "cpu",
        "publish": "adapter",
        "bases": str(folder / "bases"),
    }
    (folder / "task.json").write_text(json.dumps(task))
    return folder


def run(step: str, folder: Path, *, limits: Callable[[], None] | None = None) -> Said:
    """The step to its end."""
    with _started(step, folder, limits=limits) as (process, lines):
        said = Said(events=list(lines))
        said.status = _ended(process)
    said.errors = (folder / "stderr").read_text()
    return said


def good(step: str, folder: Path) -> Said:
    """The step, which has to do what it should."""
    said = run(step, folder)
    assert said.status == 0, said.errors
    return said


def killed(step: str, folder: Path, when: Callable[[dict[str, Any]], bool]) -> bool:
    """The step, killed as soon as it has said something that `when` is true of, which is told the process's id too.
    False if it ended before.
    """
    with _started(step, folder) as (process, lines):
        for event in lines:
            if when(event | {"pid": process.pid}):
                _kill(process)
                return True
        return False


def killed_while_writing(step: str, folder: Path, sync: int) -> bool:
    """The step, killed when it has written a file and is about to sync something for the `sync`-th time."""
    with _started(step, folder, sync=sync) as (process, lines):
        for event in lines:
            if event["event"] == "log" and event["message"] == _STOPPED:
                _kill(process)
                return True
        return False


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.write_text("".join(json.dumps({"line": number + 1, **row}) + "\n" for number, row in enumerate(rows)))


@contextlib.contextmanager
def _started(
    step: str, folder: Path, *, limits: Callable[[], None] | None = None, sync: int = 0
) -> Iterator[tuple[Any, Iterator[dict[str, Any]]]]:
    ours, theirs = os.pipe()
    process: Any
    if "FRESH_PROCESSES" in os.environ and not sync and not limits:
        with (folder / "stderr").open("wb") as errors:
            argv = [sys.executable, "-m", "modelops.learning.trainer", step, str(folder)]
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=theirs, stderr=errors)
    else:
        process = _context().Process(target=_be, args=(step, folder, _Handle(theirs), limits, sync))
        process.start()
    os.close(theirs)
    try:
        with os.fdopen(ours, encoding="utf-8") as stream:
            yield process, (json.loads(line[1:]) for line in stream if line.startswith(MARK))
    finally:
        _kill(process)


def _kill(process: Any) -> None:
    process.kill()
    _ended(process)


def _ended(process: BaseProcess | subprocess.Popen[bytes]) -> int:
    if isinstance(process, subprocess.Popen):
        return process.wait(_WAIT_S)
    process.join(_WAIT_S)
    assert process.exitcode is not None
    return process.exitcode


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["trainers", "modelops.learning.trainer.train", "modelops.learning.trainer.encoding"]
    )
    before = dict(os.environ)
    os.environ.update(_OFFLINE)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)
    return context


class _Handle:
    """An open file that is handed to the process."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _received, (multiprocessing.reduction.DupFd(self.number),)


def _received(handle: Any) -> int:
    number: int = handle.detach()
    return number


def _be(step: str, folder: Path, out: int, limits: Callable[[], None] | None, sync: int) -> None:
    """Be `python -m modelops.learning.trainer`."""
    errors = os.open(folder / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(errors, 2)
    os.close(out)
    os.close(errors)
    sys.stdout = sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    if limits:
        limits()
    if sync:
        _stop_at(sync)
    sys.argv = ["trainer", step, str(folder)]
    program.main()


def _stop_at(sync: int) -> None:
    """Say so and wait for the end when something is to be synced for the `sync`-th time."""
    really, left = os.fsync, sync

    def fsync(handle: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            from modelops.learning.trainer import report

            report.log(_STOPPED)
            _wait()
        really(handle)

    os.fsync = fsync  # type: ignore[assignment]


def _wait() -> NoReturn:
    while True:
        signal.pause()
