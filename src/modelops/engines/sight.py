"""Which GPUs an engine can use, by its own account.

A driver shows the GPUs of a machine; an engine that was built for the CPU uses none of them. It must not decide what
follows from that, and never raises: a program that cannot be asked has not told.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from modelops.engines.process import Process
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: CUDA takes seconds to begin on a machine with many GPUs.
PATIENCE_S = 15.0
#: Without memory a device holds no layers: so is a library for the CPU listed that computes for it.
_LISTED = re.compile(r"^\s+(?P<name>[A-Za-z]+\d*): .*\([1-9]\d* MiB", re.MULTILINE)
#: What the package says of itself, in a process of its own: a library for another processor ends the one that loads it.
_ASK = """
import json, xllamacpp
ask = getattr(xllamacpp, "get_device_info", None)
gpus = ask and [each["name"] for each in ask() if each["type"].name.endswith("GPU")]
built = getattr(xllamacpp, "get_system_info", str)()
print(json.dumps({"gpus": gpus, "built": built}))
"""
_TOLD = re.compile(r'^{"gpus": .*}$', re.MULTILINE)


@dataclass(frozen=True)
class Said:
    """What a program said before it ended; `status`, as in subprocess, is None where it did not end in time."""

    status: int | None
    text: str = ""

    @property
    def whole(self) -> bool:
        """Whether it ended by itself."""
        return self.status is not None and self.status >= 0

    @property
    def last(self) -> str:
        """Its last line, for a reason."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return lines[-1].strip()[:200] if lines else "it says nothing"


@dataclass(frozen=True)
class Account:
    """What an engine says of itself: the GPUs that it can use, None where it does not tell; how it was `built`, in
    llama.cpp's words, which only the package tells here."""

    said: Said
    gpus: tuple[str, ...] | None = None
    built: str = ""


async def account(executable: str) -> Account:
    """Ask a llama-server, or with "" the package xllamacpp. Nothing is left running."""
    if executable:
        said = await _said(executable, "--list-devices")
        known = said.status == 0 and "Available devices" in said.text
        return Account(said, tuple(_LISTED.findall(said.text)) if known else None)
    said = await _said(sys.executable, "-c", _ASK)
    found = _TOLD.search(said.text)
    told = json.loads(found[0]) if found and said.status == 0 else {}
    gpus = told.get("gpus")
    return Account(said, None if gpus is None else tuple(gpus), told.get("built", ""))


async def _said(*argv: str) -> Said:
    lines: list[str] = []
    process = Process(f"ask {Path(argv[0]).name}", lines.append)
    try:
        await process.start(argv, {})
        async with asyncio.timeout(PATIENCE_S):
            ended = await process.exited()
        return Said(ended.code, "\n".join(lines))
    except TimeoutError:
        return Said(None, "\n".join(lines))
    except OSError as error:
        return Said(None, error.strerror or "")
    finally:
        await process.kill()


class Sight:
    """What engines have said of GPUs, on a machine that has some: each is asked once, and again when its file has
    changed. `tasks` are of whoever owns it."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._asked: dict[tuple[str, int], asyncio.Task[Account]] = {}

    async def blind(self, executable: str) -> bool:
        """Whether the engine says that it can use no GPU at all. One that does not tell may be able to."""
        key = executable, await asyncio.to_thread(_written_at, executable)
        if key not in self._asked:
            self._asked[key] = self._tasks.start("ask for GPUs", _asked(executable))
        asked = self._asked[key]
        await asyncio.wait({asked})  # which goes on where its first caller does not wait any more
        if asked.cancelled() or asked.exception() or not asked.result().said.whole:
            self._asked.pop(key, None)  # it was stopped, or too slow: whoever wants to know next asks again
            return False
        return asked.result().gpus == ()


async def _asked(executable: str) -> Account:
    found = await account(executable)
    if found.gpus == ():
        log.warning(
            "there is a GPU, and the engine was built for the CPU: models run in RAM; name one that was built for CUDA "
            "in engine.executable ('modelops doctor' says more)"
        )
    return found


def _written_at(executable: str) -> int:
    """When the engine's file was written, in nanoseconds; 0 where nobody knows."""
    spec = None if executable else importlib.util.find_spec("xllamacpp")
    file = executable or (spec.origin if spec else None)
    try:
        return Path(file).stat().st_mtime_ns if file else 0
    except OSError:
        return 0
