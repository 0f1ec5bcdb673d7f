"""`fetch`: runs the process that fetches, and watches it. The only asynchronous part, and the only one with a clock."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from modelops.api import errors
from modelops.api.errors import InternalError, ModelOpsError
from modelops.serving.sources.errors import DiskFull, FetchFailed
from modelops.serving.sources.source import Policy, Source

log = logging.getLogger(__name__)

#: Called with (bytes so far, bytes in all; 0 when unknown).
Progress = Callable[[int, int], None]

_START_S = 60.0  # for a process to start and tell a first line, on a machine that has much else to do
_LEAST_RATE = 1024  # bytes per second
_RAISED: dict[str, type[ModelOpsError]] = {
    error.__name__: error for error in (*errors.BY_CODE.values(), FetchFailed, DiskFull)
}


async def fetch(source: Source, target: Path, progress: Progress, policy: Policy | None = None) -> None:
    """Bring the source's file to `target`, and the further files of a split model beside it.

    A file appears under its name when it is whole, has the digest that is known of it, and is safe on the disk. What
    has come of a fetch that fails, is cancelled or killed is kept in `.partial` beside the target, and the next fetch
    of the same source goes on from there. Of several fetches to one target one works; the others wait and take its
    result.

    Raises InvalidRequest for an address that may not be reached, NotFound for an unknown file, DiskFull, Conflict when
    another source was fetched to `target` while this one waited, NotAvailable for hf:// without its extra,
    InternalError for a folder that cannot be written, and FetchFailed for what the other side did.
    """
    policy = policy or Policy()
    source.targets(target)  # a name that cannot be is told before anything starts
    async with _child(source, target, policy) as child:
        assert child.stdout is not None
        watch = _Watch(policy.stall_s)
        while True:
            try:
                async with asyncio.timeout_at(watch.deadline):
                    line = await child.stdout.readline()
            except TimeoutError:
                raise FetchFailed(
                    f"'{source.name}' of '{source.origin}' stalled: {watch.said}; the same call goes on from there"
                ) from None
            if not line:
                status = await child.wait()
                raise FetchFailed(
                    f"the process that fetched '{source.name}' was ended ({status}); the same call goes on from there"
                )
            kind, *values = json.loads(line)
            watch.saw(kind, values)
            if kind in ("begin", "progress", "waiting"):
                progress(values[0], values[1])
            elif kind == "done":
                return
            elif kind == "failed":
                raise _RAISED.get(values[0], FetchFailed)(values[1], details=values[2])
            elif kind == "fault":
                told = {"file": source.name, "origin": source.origin}
                log.error("fetching '%s' failed: %s", source.name, values[0], extra=told)
                raise InternalError(f"'{source.name}' could not be fetched, by a fault of this program; the log has it")


class _Watch:
    """When a fetch has stalled: too few bytes for too long, while bytes are what it waits for."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._mark: int | None = None
        self._done = 0
        self.deadline: float | None = asyncio.get_running_loop().time() + _START_S

    def saw(self, kind: str, values: list[Any]) -> None:
        """The process has told a line."""
        if kind != "progress":
            self._mark = self.deadline = None
        if kind not in ("begin", "progress"):
            return
        self._done = values[0]
        if self._mark is None or not 0 <= self._done - self._mark < _LEAST_RATE * self._stall_s:
            self._mark = self._done
            self.deadline = asyncio.get_running_loop().time() + self._stall_s

    @property
    def said(self) -> str:
        """What there was to see, in words."""
        if self._mark is None:
            return "its process did not start"
        came = self._done - self._mark
        return f"{'no byte' if not came else f'only {came} bytes'} came in {self._stall_s:g} s"


@asynccontextmanager
async def _child(source: Source, target: Path, policy: Policy) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process at work; killed, if need be, when the context ends."""
    job = {"source": source.text, "target": str(target.absolute()), "policy": asdict(policy), "parent": os.getpid()}
    try:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "modelops.serving.sources.child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(os.environ),
            start_new_session=True,  # an interrupt of the terminal is ours to judge
        )
    except OSError as error:
        raise InternalError(f"the process that fetches could not be started: {error.strerror}") from None
    try:
        assert child.stdin is not None
        child.stdin.write(json.dumps(job).encode() + b"\n")  # not an argument: those can be seen by everybody
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        assert child.stdin is not None
        child.stdin.close()
        await child.wait()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """All but our own settings and keys."""
    return {key: value for key, value in ours.items() if not key.startswith("MODELOPS_")}
