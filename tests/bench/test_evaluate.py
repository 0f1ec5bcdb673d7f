"""The benchmark of evaluations runs, in its smallest form, and asks both the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "evaluate.py"


@pytest.mark.engine
def test_both_are_asked_the_same(smollm2: Path) -> None:
    small = ["--rows", "4", "--block", "2", "--rounds", "1", "--max-tokens", "4", "--slots", "2", "--threads", "1"]
    argv = [sys.executable, str(BENCH), *small, "--least", "0", "--file", str(smollm2)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for name in ("evaluate", "the engine directly"):
        assert re.search(rf"^\| {name} \| [0-9.]+ \| 16 \|", ended.stdout, re.MULTILINE)
    assert "median of 2 blocks of 2 rows" in ended.stdout
    assert "answers that differ: 0 of 4" in ended.stdout
