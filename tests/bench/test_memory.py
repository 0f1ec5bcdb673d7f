"""The benchmark runs, in its smallest form, and its figures hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "memory.py"


@pytest.mark.engine
def test_what_is_foretold_is_measured() -> None:
    run = subprocess.run([sys.executable, str(BENCH), "--only", "mamba"], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "2 configurations." in run.stdout
    for figure in ("probe, first sight", "formula", "corrected"):
        line = next(line for line in run.stdout.splitlines() if line.startswith(f"| {figure} |"))
        assert line.endswith("| 100% |"), run.stdout
