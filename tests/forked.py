"""The command `modelops` in a process of its own that need not begin from nothing: it is forked from one that has
imported all of it.

To import it takes a coordinator most of a second, and the tests start hundreds. Each is a process all the same, with
its own arguments, environment, streams, signals and end; only what would be the same each time is done once. With
FRESH_PROCESSES set, each is started as users start it. Tests of the start itself always do so, and so does what runs in
a terminal.

Run as a program this is the process that others are forked from.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

#: What is read when Python itself begins: who wants another than ours gets a fresh process.
_READ_AT_THE_START = ("PYTHON", "LC_", "LANG", "LD_", "TZ")
_WARNINGS = {"PYTHONWARNINGS": "error"}
#: What a coordinator and the commands on its state file import; all else they import as they always do.
_IMPORTED = ("modelops.app", "modelops.cli", "modelops.cli.greeting", "uvloop", "aiosqlite")
_MOST = 1 << 17  # bytes of arguments and environment


class Forked:
    """A process, to whom started it. As subprocess.Popen, as far as it goes."""

    def __init__(self, argv: Sequence[str], env: dict[str, str], streams: Sequence[int]) -> None:
        asked = json.dumps({"argv": argv, "env": env, "cwd": str(Path.cwd())}).encode()
        ours, theirs = os.pipe()
        try:
            socket.send_fds(_template(), [asked], [*streams, theirs])
        finally:
            os.close(theirs)
        self._told = os.fdopen(ours)
        self._lock = threading.Lock()
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, as soon as there is one."""
        with self._lock:
            if self.returncode is None:
                if not select.select([self._told], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("modelops", timeout or 0)
                self.returncode = int(self._told.read())  # to the end of who told it
                self._told.close()
            return self.returncode

    def poll(self) -> int | None:
        """The exit status, or None where it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """A signal, where it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


def start(
    argv: Sequence[str],
    env: dict[str, str],
    *,
    stdin: IO[Any] | int,
    stdout: IO[Any] | int,
    stderr: IO[Any] | int,
    fresh: bool = False,
) -> Forked | subprocess.Popen[bytes]:
    """`modelops` with these arguments and this environment; `fresh`: as users start it."""
    if fresh or "FRESH_PROCESSES" in os.environ or _at_start(env) != _at_start(os.environ | _WARNINGS):
        line = [sys.executable, "-m", "modelops.cli", *argv]
        return subprocess.Popen(line, env=env, stdin=stdin, stdout=stdout, stderr=stderr)
    return Forked(argv, env, [one if isinstance(one, int) else one.fileno() for one in (stdin, stdout, stderr)])


def run(argv: Sequence[str], env: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`modelops` to its end, within a minute."""
    with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        asked.write(stdin.encode())
        asked.seek(0)
        process = start(argv, env, stdin=asked, stdout=said, stderr=complained)
        try:
            status = process.wait(60)
        finally:
            process.kill()
        for stream in (said, complained):
            stream.seek(0)
        return subprocess.CompletedProcess([*argv], status, said.read().decode(), complained.read().decode())


def _at_start(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_AT_THE_START)}


@functools.cache
def _template() -> socket.socket:
    """The way to the process that is forked, which lives as long as we do."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            env=os.environ | _WARNINGS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait(10)

    atexit.register(end)
    return ours


# --- the process that others are forked from ---
def _fork_for_each(asked: socket.socket) -> None:
    """Fork for each who asks, until nobody can any more."""
    del sys.path[0]  # the tests'
    before = set(os.environ)
    for name in _IMPORTED:
        importlib.import_module(name)
    made = {name: os.environ[name] for name in os.environ.keys() - before}
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the keyboard, for everybody's group
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks what became of who keeps a process
    while True:
        message, handles, _, _ = socket.recv_fds(asked, _MOST, 4)
        if not message:
            return
        if os.fork() == 0:
            asked.close()
            *streams, told = handles
            _keep(told, streams)
            call = json.loads(message)
            _become(call["argv"], made | call["env"], call["cwd"], streams)
        for handle in handles:
            os.close(handle)


def _keep(told: int, streams: Sequence[int]) -> None:
    """Fork once more; tell the new process's id, and its status at its end. Only the new process returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(told)
        return
    for stream in streams:
        os.close(stream)
    os.write(told, f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    os.write(told, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(argv: Sequence[str], env: dict[str, str], folder: str, streams: Sequence[int]) -> NoReturn:
    """Be `python -m modelops.cli`."""
    from modelops.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    main(argv, prog_name="modelops")
    raise SystemExit(0)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as way:
        _fork_for_each(way)
