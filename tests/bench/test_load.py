"""The benchmarks of load run, in their smallest form: that their figures are right is for a quiet machine to show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"

Run = Future[subprocess.CompletedProcess[str]]

#: What each is told, and what it shows.
SCRIPTS = {
    "overload.py": (
        ["--token-s", "0.005", "--seconds", "6", "--capacity-seconds", "3", "--max-tokens", "8", "--greedy", "12"],
        ["goodput:", "| zmq |", "Jain's index:"],
    ),
    "slow_clients.py": (
        ["--rounds", "1", "--seconds", "1", "--half-open", "20", "--slow", "5"],
        ["| grpc | zmq |"],
    ),
    "steady.py": (["--answered", "100", "--refused", "100"], ["answered |", "refused |"]),
}


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[str, Run]]:
    """All at once, as most of their time is waiting."""

    def run(script: str, options: list[str]) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(BENCH / script), *options]
        return subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False)

    with ThreadPoolExecutor(len(SCRIPTS)) as threads:
        yield {script: threads.submit(run, script, options) for script, (options, _) in SCRIPTS.items()}


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_runs(script: str, runs: dict[str, Run]) -> None:
    ended = runs[script].result()
    assert ended.returncode == 0, ended.stderr
    assert all(part in ended.stdout for part in SCRIPTS[script][1]), ended.stdout
