"""One supervised tree of processes: started in a session of its own, watched, stopped, and gone with the coordinator.

Owns the child and nothing else: it does not know what the program is for. Its reading of the child is advice; whoever
must be sure waits for `exited`.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from modelops.engines import guard
from modelops.logs import one_line
from modelops.tasks import Tasks

_GUARD = guard.__file__
#: Lines of /proc/PID/status: what is the process's own, or shared memory that it made.
_TAKEN = ("RssAnon:", "RssShmem:")
_LINE_LIMIT = 64 * 1024
_LAST_LINES = 40
#: Variables that a child does not inherit: our settings and keys, and what would set up an engine behind our back.
_KEPT_BACK = ("MODELOPS_", "LLAMA_")
_FOLDERS = re.compile(r"(?:/[^\s/'\":]+)+/")
_TROUBLE = re.compile(r"error|fail|cannot|abort|exception|assert|out of memory|terminate", re.IGNORECASE)

#: What says that it ended, and not why: the last words of llama.cpp; and lines of a stack trace, its own and gdb's.
_VAGUE = re.compile(r"exiting due to|failed to (?:load model|create_context|initialize CUDA)")
_TRACE = re.compile(r"^#\d+\s|\[0x[0-9a-f]+\]")


@dataclass(frozen=True)
class Exit:
    """How a process ended: `code` as in subprocess (negative: the signal), `reason` in words without any path."""

    code: int
    reason: str


class Process:
    """A child and everything below it."""

    def __init__(self, name: str, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._tasks = Tasks(name)
        self._last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._paths: list[str] = []
        self._child: asyncio.subprocess.Process | None = None
        self._exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    async def start(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start `argv` in our own environment and `env`. Raises OSError when it cannot be started."""
        self._paths = [argument for argument in argv if argument.startswith("/")]
        self._child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", _GUARD, str(os.getpid())),
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**{key: value for key, value in os.environ.items() if not key.startswith(_KEPT_BACK)}, **env},
            start_new_session=True,
            limit=_LINE_LIMIT,
        )
        self._tasks.start("watch", self._watch(self._child))

    @property
    def pid(self) -> int:
        """The tree's root; 0 before the start."""
        return self._child.pid if self._child else 0

    def pids(self) -> set[int]:
        """The tree's processes; none before the start and after the end."""
        return {self.pid, *_descendants(self.pid)} if self.running else set()

    @property
    def running(self) -> bool:
        """Whether the child has been started and has not been seen to end."""
        return self._child is not None and not self._exited.done()

    async def exited(self) -> Exit:
        """Wait until the whole tree has ended."""
        return await asyncio.shield(self._exited)

    async def stop(self, grace_s: float) -> None:
        """End the tree: ask (SIGTERM), wait `grace_s`, then kill; returns when it is gone."""
        if not self.running:
            return
        self.resume()  # or it could not act on the signal
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.exited()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """End the tree at once; returns when it is gone."""
        if not self.running:
            return
        self._signal(signal.SIGUSR1)
        self._signal(signal.SIGCONT)  # a guard that was stopped has to act on it
        try:
            async with asyncio.timeout(2.0):
                await self.exited()
        except TimeoutError:
            # The guard itself does not answer: its group goes, and with it the program.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self.exited()

    def pause(self) -> None:
        """Stop the program where it stands; the guard stays awake."""
        self._signal_program(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused program go on."""
        self._signal_program(signal.SIGCONT)

    def memory_bytes(self) -> int:
        """Resident memory of the tree; 0 when it is gone."""
        total = 0
        try:
            root = psutil.Process(self.pid)
            members = [root, *root.children(recursive=True)]
        except psutil.Error:
            return 0
        for member in members:
            with contextlib.suppress(psutil.Error):
                total += int(member.memory_info().rss)
        return total

    def cpu_s(self) -> float:
        """Seconds of CPU that the tree has used so far; 0 when it is gone."""
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system
        return total

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _signal_program(self, number: signal.Signals) -> None:
        if self.running:
            for child in guard.children(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, number)

    def taken_bytes(self) -> int:
        """Memory of the tree that the machine cannot take back: the pages of files, which it can, do not count."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(_TAKEN)) * 1024
        return total

    async def _watch(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        reading = self._tasks.start("read", self._read(child.stdout))
        code = await child.wait()
        # Somebody outside the tree may hold the pipe open; the last lines come at once or not at all.
        await asyncio.wait([reading], timeout=1.0)
        reading.cancel()
        self._exited.set_result(Exit(code, self._reason(code)))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await stream.readline()
            except ValueError:  # a line over the limit: it is dropped
                continue
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                self._last.append(line)
                self._on_line(line)

    def _reason(self, code: int) -> str:
        if code < 0:
            try:
                how = f"was killed by {signal.Signals(-code).name}"
            except ValueError:
                how = f"was killed by signal {-code}"
        else:
            how = f"ended with status {code}"
        lines = [line for line in reversed(self._last) if _TROUBLE.search(line) and not _TRACE.search(line)]
        said = next((line for line in lines if not _VAGUE.search(line)), next(iter(lines), "")) if code else ""
        # The paths that we gave it are known to the letter; any other is known by its looks.
        for path in self._paths:
            said = said.replace(path, Path(path).name)
        return f"{how}: {one_line(_FOLDERS.sub('', said)[:300])}" if said else how  # a terminal may show it


def _descendants(pid: int) -> list[int]:
    return [other for child in guard.children(pid) for other in (child, *_descendants(child))]


def kill_leftovers(marker: str, program: str = "") -> int:
    """Kill every process that has `marker` in its command line, and is of `program` where that is given, with its
    descendants; return how many there were.

    For what a coordinator that was killed may have left: each engine's command line holds the path of its socket.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            ours = process.pid != os.getpid() and (not program or program in line)
            if ours and any(marker in part for part in line):
                found.update([process, *process.children(recursive=True)])
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(found)
