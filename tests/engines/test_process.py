"""A supervised tree of processes: how it ends, what is kept of its last words, and that nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from modelops.engines.process import Exit, Process, kill_leftovers
from support import wait_until


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
async def process(lines: list[str]) -> Process:
    """One that has not been started; its lines go to `lines`."""
    return Process("test", lines.append)


async def said(lines: list[str], text: str) -> None:
    """Wait until the program has written `text`."""
    import asyncio

    while text not in lines:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("script", "ended"),
    [
        ("echo 'error: ignored'; exit 0", Exit(0, "ended with status 0")),
        ("echo nothing telling; exit 2", Exit(2, "ended with status 2")),
        ("echo error 1; echo error 2 >&2; echo bye; exit 3", Exit(3, "ended with status 3: error 2")),
        ("kill -SEGV $$", Exit(-11, "was killed by SIGSEGV")),
        ("kill -40 $$", Exit(-40, "was killed by signal 40")),
        ("echo out of memory; kill -ABRT $$", Exit(-6, "was killed by SIGABRT: out of memory")),
        (
            "echo x.cu:9: CUDA error; echo 'b.so(abort+0x1)[0x7f]'; exit 1",
            Exit(1, "ended with status 1: x.cu:9: CUDA error"),
        ),
        ("echo failed 1; echo '#2  0x7f14 in abort ()'; kill -ABRT $$", Exit(-6, "was killed by SIGABRT: failed 1")),
        ("echo '#2  0x7f14 in abort ()'; exit 1", Exit(1, "ended with status 1")),
        ("echo error 1; echo exiting due to an error; exit 1", Exit(1, "ended with status 1: error 1")),
        ("echo exiting due to an error; exit 1", Exit(1, "ended with status 1: exiting due to an error")),
        ("echo 'cannot open /srv/secret/a.gguf'; exit 1", Exit(1, "ended with status 1: cannot open a.gguf")),
        ("echo \"cannot open '$0'\"; exit 1", Exit(1, "ended with status 1: cannot open 'b.gguf'")),
        ("exec /srv/secret/program", None),
    ],
)
async def test_the_reason_is_the_last_telling_line_without_any_path(
    process: Process, script: str, ended: Exit | None
) -> None:
    await process.start(["sh", "-c", script, "/srv/a folder: of mine/b.gguf"], {})
    result = await process.exited()
    if ended:
        assert result == ended
    assert "srv" not in result.reason


async def test_a_program_that_cannot_be_run_is_an_exit_with_its_reason(process: Process) -> None:
    await process.start(["/no/such/program"], {})
    assert await process.exited() == Exit(127, "ended with status 127: cannot run program: No such file or directory")
    assert not process.running


async def test_environment_is_added_and_our_own_settings_are_not_inherited(
    process: Process, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELOPS_API_KEY", "secret")
    monkeypatch.setenv("LLAMA_ARG_PORT", "1234")
    await process.start(["sh", "-c", "echo $ADDED $HOME $MODELOPS_API_KEY $LLAMA_ARG_PORT"], {"ADDED": "yes"})
    await process.exited()
    assert lines == [f"yes {os.environ['HOME']}"]


@pytest.mark.parametrize(
    ("script", "code"),
    [("trap 'exit 5' TERM", 5), ("trap '' TERM", -signal.SIGKILL)],
    ids=["it answers", "it ignores"],
)
async def test_stop_asks_and_then_kills(process: Process, lines: list[str], script: str, code: int) -> None:
    await process.start(["sh", "-c", f"{script}; echo ready; while :; do sleep 0.01; done"], {})
    await said(lines, "ready")
    await process.stop(0.3)
    assert (await process.exited()).code == code
    await process.stop(0.3)  # a second time does no harm


@pytest.mark.parametrize("stopped", ["guard", "program"])
async def test_a_stopped_process_is_killed_with_its_tree(process: Process, lines: list[str], stopped: str) -> None:
    await process.start(["sh", "-c", "setsid sleep 1000 & echo ready; sleep 1000"], {})
    await said(lines, "ready")
    guard = psutil.Process(process.pid)
    family = guard.children(recursive=True)
    (guard if stopped == "guard" else guard.children()[0]).suspend()
    await process.stop(0.1)
    assert not process.running
    assert psutil.wait_procs(family, 0)[1] == []


async def test_huge_and_binary_output_is_survived(process: Process, lines: list[str]) -> None:
    script = (
        "import sys; out = sys.stdout.buffer\n"
        "out.write(b'x' * 3_000_000 + b'\\nbetween\\n' + b'\\xff' * 300_000)\n"
        "out.write(b'\\nerror: \\xff\\0end\\n' + b'y' * 300_000)\n"
        "out.flush(); sys.exit(1)"
    )
    await process.start([sys.executable, "-c", script], {})
    assert await process.exited() == Exit(1, "ended with status 1: error: �\\x00end")
    assert "between" in lines
    assert all(len(line) < 100_000 for line in lines)


async def test_memory_is_that_of_the_whole_tree(process: Process, lines: list[str]) -> None:
    assert process.memory_bytes() == 0
    take = "import sys; held = b'x' * 60_000_000; print('ready', flush=True); sys.stdin.read()"
    await process.start(["sh", "-c", f'sleep 1000 | "{sys.executable}" -c "{take}"; exit'], {})
    await said(lines, "ready")
    assert 60_000_000 < process.memory_bytes() < 160_000_000
    await process.kill()
    assert process.memory_bytes() == 0


def test_leftovers_are_killed_with_their_children() -> None:
    marker = f"modelops-leftover-{os.getpid()}-{time.monotonic_ns()}"
    script = "setsid sleep 1000 & sleep 1000"
    with subprocess.Popen(["sh", "-c", script, f"/tmp/{marker}/1.sock"]) as left:
        wait_until(lambda: len(psutil.Process(left.pid).children()) == 2)
        family = psutil.Process(left.pid).children(recursive=True)
        assert kill_leftovers(marker) == 3
        left.wait(5)
        psutil.wait_procs(family, 5)
        assert not any(member.is_running() and member.status() != psutil.STATUS_ZOMBIE for member in family)
    assert kill_leftovers(marker) == 0
