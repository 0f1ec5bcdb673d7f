"""Asks an engine how much memory it would take, without letting it read a weight.

Before it loads a model, llama.cpp lays out model, context and computing without allocating them, to see whether they
fit, and with verbosity 4 it prints the sums for each device. The probe starts the very command that would serve, waits
for that table and ends it. llama.cpp's own `llama-fit-params` prints the same, but as a program that wants the logits
of every token of a batch, which the server does not.

It must not decide anything, and never raises: where an engine cannot be asked, there is no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelops.engines.base import EngineSpec
from modelops.engines.http import request
from modelops.engines.llama_cpp import Engine
from modelops.engines.process import Process
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

HOST = "Host"
_MIB = 2**20
_TABLE = "memory_breakdown_print: |"
#: Behind the name: a device has what it has and is free, then what would be used; a kind of memory only the latter.
_ROW = re.compile(
    r"\|\s+- (?P<name>\S+)[^|]*\|"
    r"(?P<device>\s*\d+ = +\d+ \+ \()?\s*\d+ = +(?P<model>\d+) \+ +(?P<context>\d+) \+ +(?P<compute>\d+)\b"
)
_POLL_S = 0.05
_NICENESS = 10  # a tenth of a core where all are busy


@dataclass(frozen=True)
class Share:
    """What an engine would take of one device, in bytes."""

    model: int = 0
    context: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.model + self.context + self.compute

    def __add__(self, other: Share) -> Share:
        return Share(self.model + other.model, self.context + other.context, self.compute + other.compute)


@dataclass(frozen=True)
class Projection:
    """What an engine would take of each device; `HOST` is RAM. The process itself is not counted.

    `copied` bytes of the weights in RAM are copies in another order, beside the file that is mapped.
    """

    devices: Mapping[str, Share]
    copied: int = 0

    @property
    def total(self) -> int:
        """What it would take of all devices together."""
        return sum(share.total for share in self.devices.values())

    @property
    def on_gpus(self) -> int:
        """What it would take of all GPUs together."""
        return self.total - self.host.total

    @property
    def host(self) -> Share:
        """What it would take of RAM."""
        return self.devices.get(HOST, Share())


async def project(spec: EngineSpec, timeout_s: float = 10.0) -> Projection | None:
    """What the engine of `spec` would take, by its own account, or None where it gives none.

    None for an executable that does not know the flags or prints no table, for a file that it refuses, and after
    `timeout_s`. Nothing is left running.
    """
    rows: list[str] = []
    told = asyncio.Event()

    def on_line(line: str) -> None:
        if _TABLE in line:
            rows.append(line)
        elif rows:
            told.set()

    process = Process(f"probe {spec.model_name}", on_line)
    try:
        with tempfile.TemporaryDirectory(prefix="modelops-probe-") as folder:
            socket = Path(folder) / "e.sock"
            engine = Engine(spec, socket)
            argv, env = [*engine.argv(), "--verbosity", "4", "--fit", "on"], engine.environment()
            try:
                await process.start(argv, env)
                os.setpriority(os.PRIO_PROCESS, process.pid, _NICENESS)
                await _first(
                    timeout_s, told=told.wait(), ended=process.exited(), serving=_serving(socket, env["LLAMA_API_KEY"])
                )
            finally:
                await process.kill()
    except OSError as error:
        name = spec.model_name
        log.debug("the probe of '%s' could not be started: %s", name, error.strerror, extra={"model": name})
    return parse(rows)


async def _serving(socket: Path, key: str) -> None:
    """Wait until the engine serves: it has loaded the model without a word about its memory."""
    while True:
        with contextlib.suppress(OSError, ValueError):
            async with request(socket, "GET", "/health", key) as answer:
                if answer.status == 200:
                    return
        await asyncio.sleep(_POLL_S)


async def _first(timeout_s: float, **works: Coroutine[Any, Any, Any]) -> None:
    """Wait for whichever comes first."""
    tasks = Tasks("probe")
    try:
        waiting = [tasks.start(name, work) for name, work in works.items()]
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await tasks.close()


def parse(lines: Iterable[str]) -> Projection | None:
    """The table that the engine printed. None where it is none."""
    devices: dict[str, Share] = {}
    copied = 0
    for line in lines:
        if found := _ROW.search(line):
            share = Share(*(int(found[part]) * _MIB for part in ("model", "context", "compute")))
            if not found["device"] and found["name"] != HOST:
                copied += share.model
            name = found["name"] if found["device"] else HOST
            devices[name] = devices.get(name, Share()) + share
    return Projection(devices, copied) if HOST in devices else None
