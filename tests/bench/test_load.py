"""The benchmarks of load run, in their smallest form: that their figures are right is for a quiet machine to show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize(
    ("script", "options", "shown"),
    [
        (
            "overload.py",
            ["--token-s", "0.005", "--seconds", "6", "--capacity-seconds", "3", "--max-tokens", "8", "--greedy", "12"],
            ["goodput:", "| zmq |", "Jain's index:"],
        ),
        (
            "slow_clients.py",
            ["--rounds", "1", "--seconds", "1", "--half-open", "20", "--slow", "5"],
            ["| grpc | zmq |"],
        ),
        ("steady.py", ["--answered", "100", "--refused", "100"], ["answered |", "refused |"]),
    ],
)
def test_it_runs(script: str, options: list[str], shown: list[str]) -> None:
    ended = subprocess.run([sys.executable, BENCH / script, *options], capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stderr
    assert all(part in ended.stdout for part in shown), ended.stdout
