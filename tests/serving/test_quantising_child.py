"""The process that quantises: how it yields, ends and is ended, and what is left of it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import psutil
import pytest

from gguf_files import llama_gguf, sparse_gguf
from goals.pursued import until
from modelops.api.errors import DeadlineExceeded
from modelops.learning.yielding import Yielding
from modelops.serving import quantising
from modelops.serving.quantising import QuantisingFailed, prune, quantise
from modelops.tasks import Tasks
from serving.copies import copied, left
from support import wait_until

Begun = Callable[[], list[psutil.Process]]
UnderWay = Callable[[Path, Path], AbstractAsyncContextManager[list[psutil.Process]]]


@pytest.fixture(autouse=True)
def no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child treats warnings as errors too."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A source that takes some seconds."""
    return sparse_gguf(tmp_path / "large.gguf", 1 << 29)


@pytest.fixture
def under_way(begun: Begun) -> UnderWay:
    """A copy in the middle of its making, which is cancelled at the end; its guard, and its child."""

    @asynccontextmanager
    async def under_way(source: Path, target: Path) -> AsyncIterator[list[psutil.Process]]:
        plan = await quantising.plan(source, "Q8_0")
        working = asyncio.Event()
        tasks = Tasks("test")
        work = tasks.start("quantise", quantise(plan, target, lambda done, _total: working.set() if done else None))
        try:
            await working.wait()
            yield begun()
        finally:
            await tasks.close()
            assert work.cancelled()

    return under_way


async def test_the_child_yields_to_others_and_takes_one_core(tmp_path: Path, large: Path, under_way: UnderWay) -> None:
    async with under_way(large, tmp_path / "copy.gguf") as (_guard, worker):
        assert (worker.nice(), worker.num_threads()) == (10, 1)


async def test_cancelling_ends_the_child_and_leaves_nothing(tmp_path: Path, large: Path, under_way: UnderWay) -> None:
    async with under_way(large, tmp_path / "cache" / "copy.gguf") as family:
        assert len(family) == 2
        assert [file.parent.name for file in left(tmp_path / "cache")] == [".partial"]
    assert psutil.wait_procs(family, 0)[1] == []
    assert left(tmp_path / "cache") == []


async def test_a_child_that_hangs_is_ended(tmp_path: Path, large: Path, begun: Begun) -> None:
    plan = await quantising.plan(large, "Q8_0")
    clock = asyncio.get_running_loop().time
    family: list[psutil.Process] = []
    last = clock()

    def hang(done: int, _total: int) -> None:
        nonlocal last
        last = clock()
        if done and not family:
            family.extend(begun())
            family[-1].suspend()

    with pytest.raises(DeadlineExceeded, match=r"quantising 'large\.gguf' made no progress in 3 s"):
        await quantise(plan, tmp_path / "cache" / "copy.gguf", hang, stall_s=3.0)
    assert clock() - last >= 2.9  # counted from the last progress, not from the start
    assert psutil.wait_procs(family, 0)[1] == []
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("from_the_start", [True, False])
async def test_a_child_that_gives_way_stands_still_for_as_long_as_it_takes(
    tmp_path: Path, begun: Begun, from_the_start: bool
) -> None:
    yielding, seen, asked = Yielding(0.0), list[int](), from_the_start
    yielding.busy(from_the_start)

    def look(done: int, _total: int) -> None:
        nonlocal asked
        seen.append(done)
        if done and not asked:
            asked = True
            yielding.busy(True)

    plan, stall_s = await quantising.plan(sparse_gguf(tmp_path / "some.gguf", 1 << 27), "Q8_0"), 2.0
    tasks = Tasks("test")
    target = tmp_path / "copy.gguf"
    work = tasks.start("quantise", quantise(plan, target, look, stall_s=stall_s, giving_way=yielding.giving_way))
    try:
        await until(lambda: yielding.paused and len(family := begun()) > 1 and family[-1].status() == "stopped")
        told = len(seen)
        done, _ = await asyncio.wait([work], timeout=1.5 * stall_s)
        assert (done, len(seen)) == (set(), told), "it has not stood still, or was taken for one that hangs"
        yielding.busy(False)
        await work
        assert target.stat().st_size == plan.target_bytes
    finally:
        await tasks.close()


async def test_a_child_that_is_killed_is_told_as_such(tmp_path: Path, large: Path, begun: Begun) -> None:
    def kill(done: int, _total: int) -> None:
        if done:
            begun()[-1].kill()

    plan = await quantising.plan(large, "Q8_0")
    with pytest.raises(
        QuantisingFailed, match=r"'large\.gguf' could not be quantised: the quantiser was killed by SIGKILL"
    ):
        await quantise(plan, tmp_path / "cache" / "copy.gguf", kill)
    assert left(tmp_path / "cache") == []


PROGRAM = """
import asyncio, sys
from pathlib import Path
from modelops.serving import quantising

async def main(source, target):
    plan = await quantising.plan(Path(source), "Q8_0")
    await quantising.quantise(plan, Path(target), lambda done, total: print(done, flush=True))

asyncio.run(main(*sys.argv[1:]))
"""


async def test_kill_9_in_the_middle_leaves_no_orphan_and_nothing_to_be_seen(tmp_path: Path, large: Path) -> None:
    cache = tmp_path / "cache"
    argv = [sys.executable, "-c", PROGRAM, str(large), str(cache / "copy.gguf")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        lines = parent.stdout
        assert lines is not None
        wait_until(lambda: int(lines.readline()) > 0)
        family = psutil.Process(parent.pid).children(recursive=True)
        assert len(family) == 2
        parent.send_signal(signal.SIGKILL)
    assert psutil.wait_procs(family, 2.0)[1] == []
    (partial,) = left(cache)
    assert partial.parent == cache / ".partial"
    assert list(cache.glob("*.gguf")) == []

    # What was left is gone with the next run.
    await copied(llama_gguf(tmp_path / "m.gguf"), cache / "copy.gguf")
    assert left(cache) == [cache / "copy.gguf"]


async def test_only_what_nobody_works_on_is_pruned(tmp_path: Path, large: Path, under_way: UnderWay) -> None:
    prune(tmp_path / "no such folder")
    async with under_way(large, tmp_path / "copy.gguf"):
        (partial,) = (tmp_path / ".partial").iterdir()
        partial.with_name("other.gguf.0123abcd").touch()
        (folder := partial.with_name("of a download")).mkdir()
        prune(tmp_path)
        assert sorted((tmp_path / ".partial").iterdir()) == [partial, folder]
