"""What the benchmark of GPUs takes for an engine's processes; it needs a GPU itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from support import wait_until

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench import gpu


def test_processes_that_are_over_are_passed_by() -> None:
    sleeper = "import sys; sys.stdin.read()"
    with (
        subprocess.Popen([sys.executable, "-c", ""]) as over,
        subprocess.Popen([sys.executable, "-c", sleeper, "/x/llama-7.gguf"], stdin=subprocess.PIPE) as engine,
    ):
        wait_until(lambda: psutil.Process(over.pid).status() == psutil.STATUS_ZOMBIE, what="a zombie")
        assert list(gpu.engines_of("llama-7")) == [engine.pid]
        assert gpu.engines_of("llama") == {}
