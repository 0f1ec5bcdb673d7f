"""The guard, run as the coordinator runs it: a process of its own around another program."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from modelops.engines import guard
from support import wait_until

GUARD = [sys.executable, "-I", "-S", str(Path(guard.__file__))]
#: A child, one in a session of its own, and one whose parent has ended: their ids come on standard output.
FAMILY = "sleep 1000 & echo $!; setsid sleep 1000 & echo $!; (setsid sleep 1000 & echo $!);"


@contextlib.contextmanager
def guarded(*argv: str, parent: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """A guard around `argv`; a failed test leaves nothing behind."""
    process = subprocess.Popen(
        [*GUARD, str(os.getpid() if parent is None else parent), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def alive(pid: int) -> bool:
    """Whether `pid` runs; one that only waits for its parent to take notice does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read_pids(process: subprocess.Popen[str], count: int = 3) -> list[int]:
    assert process.stdout is not None
    found = [int(process.stdout.readline()) for _ in range(count)]
    assert all(alive(pid) for pid in found)
    return found


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -TERM $$", -signal.SIGTERM),
        ("kill -KILL $$", -signal.SIGKILL),
        ("kill -ABRT $$", -signal.SIGABRT),
        ("kill -USR1 $$", -signal.SIGUSR1),
    ],
)
def test_it_ends_as_its_program_did(script: str, code: int) -> None:
    with guarded("sh", "-c", script) as process:
        assert process.wait(10) == code


def test_nothing_of_the_tree_outlives_the_program() -> None:
    with guarded("sh", "-c", f"{FAMILY} read line; exit 3") as process:
        pids = read_pids(process)
        assert process.stdin is not None
        process.stdin.write("end\n")
        process.stdin.flush()
        assert process.wait(10) == 3
        assert not any(alive(pid) for pid in pids)


def test_a_tree_that_grows_while_it_is_killed_is_killed_whole() -> None:
    seconds = f"1000.{os.getpid()}"  # tells these from any other sleep
    grow = f"i=0; while [ $i -lt 400 ]; do setsid sleep {seconds} & i=$((i+1)); done; sleep {seconds}"
    with guarded("sh", "-c", f"({grow}) & ({grow}) & sleep 0.05") as process:
        assert process.wait(20) == 0
    assert not [found for found in psutil.process_iter(["cmdline"]) if seconds in (found.info["cmdline"] or ())]


def test_everything_ends_when_the_parent_is_killed() -> None:
    start = (
        "import os, subprocess, sys; "
        "subprocess.run([*sys.argv[2:], str(os.getpid()), 'sh', '-c', sys.argv[1]], start_new_session=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start, f"{FAMILY} sleep 1000", *GUARD], stdout=subprocess.PIPE, text=True
    ) as parent:
        pids = read_pids(parent)
        pids += [process.pid for process in psutil.Process(parent.pid).children(recursive=True)]
        parent.kill()
        parent.wait()
        wait_until(lambda: not any(alive(pid) for pid in pids), 2.0, "the end of the tree")


def test_sigterm_is_the_programs_own_to_answer() -> None:
    script = "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
    with guarded("sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(10) == 5
        assert process.stdout.read() == "bye\n"


def test_sigusr1_kills_the_tree() -> None:
    with guarded("sh", "-c", f"trap '' TERM USR1; {FAMILY} while :; do sleep 0.01; done") as process:
        pids = read_pids(process)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == -signal.SIGKILL
        assert not any(alive(pid) for pid in pids)


@pytest.mark.parametrize(
    ("program", "why"),
    [("/no/such/program", "No such file or directory"), ("/etc/passwd", "Permission denied")],
)
def test_a_program_that_cannot_be_run_is_named(program: str, why: str) -> None:
    with guarded(program) as process:
        output, errors = process.communicate(timeout=10)
        assert (process.returncode, output, errors) == (127, "", f"cannot run {program}: {why}\n")


def test_nothing_is_started_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    started = tmp_path / "started"
    with guarded("touch", str(started), parent=1 << 22) as process:
        assert process.wait(10) == 1
    assert not started.exists()
