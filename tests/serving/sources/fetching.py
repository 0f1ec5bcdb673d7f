"""What the tests of fetches share: a models folder, and fetches into it, in this process or in one of their own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from modelops.serving import sources
from modelops.serving.sources import PARTIAL, Policy

#: 300,000 bytes without a pattern, the same in every run.
CONTENT = random.Random(7).randbytes(300_000)
#: What tests allow: this machine, and hardly any waiting.
LOCAL = Policy(allow_private=True, backoff_s=0.01, stall_s=20, retries=3, reserve_bytes=0)

_PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from modelops.api.errors import ModelOpsError
import psutil

from modelops.serving import sources
text, target, policy = json.loads(sys.argv[1])
try:
    asyncio.run(sources.fetch(sources.parse(text), Path(target), lambda *_: None, sources.Policy(**policy)))
except ModelOpsError as error:
    print(error.code, error.message)
else:
    print("fetched")
"""


@dataclass
class Fetching:
    """A models folder, and fetches into it."""

    root: Path
    seen: list[tuple[int, int]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """The models that can be seen."""
        return {file.name: file.read_bytes() for file in self.root.glob("*") if file.is_file()}

    @property
    def target(self) -> Path:
        """Where fetches go unless said otherwise."""
        return self.root / "m.gguf"

    @property
    def partial(self) -> Path:
        """Where what is not whole lies."""
        return self.root / PARTIAL / "m.gguf"

    @property
    def kept(self) -> int:
        """Bytes that the next fetch need not bring."""
        file = self.partial / "0.data"
        return file.stat().st_size if file.is_file() else 0

    async def fetch(self, text: str, policy: Policy = LOCAL, name: str = "m.gguf") -> None:
        """A fetch in this process; `seen` is what progress told."""
        target = self.root / name
        await sources.fetch(sources.parse(text), target, lambda *told: self.seen.append(told), policy)

    def start(self, text: str, policy: Policy = LOCAL, prefix: Sequence[str] = ()) -> subprocess.Popen[str]:
        """A fetch in a process of its own, which prints how it ended."""
        job = json.dumps([text, str(self.target), asdict(policy)])
        return subprocess.Popen([*prefix, sys.executable, "-c", _PROGRAM, job], stdout=subprocess.PIPE, text=True)


def ended(process: psutil.Process) -> bool:
    """Whether it runs no more; nobody may have asked for its status yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def is_root() -> bool:
    """Whether permissions do not hold us."""
    return os.geteuid() == 0
