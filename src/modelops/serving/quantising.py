"""Makes the quantised copy of a model, once: plans it, runs the child that writes it, shows it only when it is whole.

Owns the child and the file until then. It must not decide whether a copy is wanted, where it is kept, or who may have
the memory: the plan tells what is needed, and the caller asks for it first.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from modelops.api.errors import DeadlineExceeded, DiskFull, InvalidRequest, ModelOpsError
from modelops.engines.process import Process
from modelops.serving import quantizer
from modelops.serving.quant_plan import Plan, WeightType

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_PARTIAL = ".partial"
_PROGRESS = re.compile(r"progress (\d+) (\d+)")
_ERROR = "error: "
#: Left free on the disk: a full one would stop more than us.
_SPARE_BYTES = 256 << 20
#: NumPy's are the only libraries here that start threads, and nothing that is done needs more than one.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


#: Pauses the child, and lets it go on, while the context is open.
GivingWay = Callable[["Writer"], AbstractContextManager[object]]


class QuantisingFailed(ModelOpsError):
    """The quantiser ended without a copy, and the source is not known to be at fault."""

    code = "engine_failed"


async def plan(source: Path, kind: WeightType, *, again: bool = False) -> Plan:
    """What the copy of `source` will be and will need: see `target_bytes`, `memory_bytes`, and `needless`. With `again`
    weights that are quantised already are written once more.

    A split model is given by its first part. Raises InvalidRequest where the source is no whole GGUF.
    """
    return await asyncio.to_thread(quantizer.read_plan, source, kind, again=again)


async def quantise(
    plan: Plan,
    target: Path,
    progress: Progress,
    *,
    stall_s: float = 120.0,
    giving_way: GivingWay = contextlib.nullcontext,
) -> None:
    """Write the planned copy to `target`, which is there when this returns, whole and on the disk, and not before.

    `progress` is called with the bytes written so far and `plan.target_bytes`. `giving_way` may pause the child while
    it writes. The same plan gives the same bytes. Cancelling the call, or a failure, ends the child and leaves nothing
    behind.
    Raises InvalidRequest where the source cannot be quantised, or changed since it was planned; DiskFull;
    DeadlineExceeded after `stall_s` seconds without progress, in which it was not paused; else QuantisingFailed.
    """
    if plan.needless:
        raise InvalidRequest(f"'{plan.name}' is quantised already; it is served as it is")
    try:
        folder = await asyncio.to_thread(_make_room, plan, target)
        with _partial(folder, target.name) as partial:
            writer = Writer(plan, partial, progress, stall_s)
            with giving_way(writer):
                await writer.run()
            await asyncio.to_thread(_show, plan, partial, target)
    except OSError as error:
        raise QuantisingFailed(f"'{plan.name}' could not be quantised: {error.strerror}") from None


def skeleton(plan: Plan, folder: Path) -> Path:
    """A file in `folder` with the header of the planned copy, and a hole in place of its weights."""
    target = folder / f"{plan.parts[0].file.stem}-{plan.kind}.gguf"
    quantizer.write_skeleton(plan, target)
    return target


def prune(folder: Path) -> None:
    """Remove what killed runs left beside the copies in `folder`, at any time; a run under way is left alone."""
    partials = folder / _PARTIAL
    for left in [file for file in partials.iterdir() if file.is_file()] if partials.is_dir() else []:
        with contextlib.suppress(FileNotFoundError, BlockingIOError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _make_room(plan: Plan, target: Path) -> Path:
    """The folder of partial files, on a disk with room for the copy."""
    prune(target.parent)
    folder = target.parent / _PARTIAL
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < plan.target_bytes + _SPARE_BYTES:
        raise _no_space(plan, free)
    return folder


@contextlib.contextmanager
def _partial(folder: Path, name: str) -> Iterator[Path]:
    """A file to write to, which is gone at the end unless it was renamed. While we live its lock says that it is ours.

    Its name is new each time: the child of a coordinator that was just killed may write one block more to the old one.
    """
    while True:
        path = folder / f"{name}.{secrets.token_hex(4)}"
        with path.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.fstat(file.fileno()).st_nlink:  # pruned before it was locked
                continue
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)
            return


def _show(plan: Plan, partial: Path, target: Path) -> None:
    """Give the whole copy its name."""
    for part in plan.parts:
        if part.file.stat().st_mtime_ns != part.changed_ns:
            raise InvalidRequest(f"'{part.file.name}' changed while it was quantised; try again")
    if (size := partial.stat().st_size) != plan.target_bytes:
        raise QuantisingFailed(f"the quantised '{plan.name}' has {size} bytes instead of {plan.target_bytes}")
    partial.replace(target)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Writer:
    """The child that writes a copy. It can stand still."""

    def __init__(self, plan: Plan, partial: Path, progress: Progress, stall_s: float) -> None:
        self._plan = plan
        self._partial = partial
        self._progress = progress
        self._stall_s = stall_s
        self._child = Process(f"quantise {plan.name}", self._heard)
        self._limit: asyncio.Timeout | None = None  # while it works
        self._paused = False
        self._said = ""

    async def run(self) -> None:
        """The child's life. It ends with this call, however that ends."""
        plan = self._plan
        argv = [sys.executable, "-m", quantizer.__name__, str(plan.parts[0].file), str(self._partial), plan.kind]
        argv += ["again"] if plan.again else []
        try:
            async with asyncio.timeout(None) as self._limit:
                self._alive()
                await self._child.start(argv, _ONE_THREAD)
                ended = await self._child.exited()
        except TimeoutError:
            raise DeadlineExceeded(
                f"quantising '{plan.name}' made no progress in {self._stall_s:.0f} s; the disk may be hanging, or the "
                "machine busy: try again"
            ) from None
        finally:
            self._limit = None  # a line may still come, when nobody waits for it
            await self._child.kill()
        if ended.code == quantizer.NO_SPACE:
            raise _no_space(plan, shutil.disk_usage(self._partial.parent).free)
        if ended.code == quantizer.BAD_SOURCE:
            raise InvalidRequest(self._said)
        if ended.code:
            raise QuantisingFailed(
                f"'{plan.name}' could not be quantised: {self._said or f'the quantiser {ended.reason}'}"
            )

    def pause(self) -> None:
        """Stop it where it stands."""
        self._paused = True
        self._child.pause()
        self._alive()

    def resume(self) -> None:
        """Let it go on."""
        self._paused = False
        self._child.resume()
        self._alive()

    def _alive(self) -> None:
        """It has done something, or may not."""
        if self._limit and not self._limit.expired():
            self._limit.reschedule(None if self._paused else asyncio.get_running_loop().time() + self._stall_s)

    def _heard(self, line: str) -> None:
        log.debug("%s", line, extra={"file": self._plan.name})
        if not self._limit:
            return
        if found := _PROGRESS.fullmatch(line):
            self._alive()
            self._progress(int(found[1]), int(found[2]))
        elif line.startswith(_ERROR):
            self._said = line.removeprefix(_ERROR)
        if self._paused:
            self._child.pause()  # it has begun since: before, there was no program that could stand still


def _no_space(plan: Plan, free: int) -> DiskFull:
    needed = plan.target_bytes + _SPARE_BYTES
    return DiskFull(
        f"there is no room on the disk for '{plan.name}' as {plan.kind}: {needed >> 20} MB are needed, "
        f'{free >> 20} MB are free; make room, or load it with "quantization": false',
        details={"resource": "disk", "needed_bytes": str(needed), "free_bytes": str(free)},
    )
