"""The benchmark of forced answers runs, in its smallest form, and each of its answers is of the schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "forms.py"


@pytest.mark.engine
def test_every_answer_is_of_the_schema(smollm2: Path) -> None:
    argv = [sys.executable, str(BENCH), "--answers", "4", "--fields", "8", "--seldom", "0", "--file", str(smollm2)]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=110)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "valid: 4 of 4; cut by length: 0" in ended.stdout
    for way in ("grpc", "rest", "rest-stream", "zmq-stream"):
        assert f"| {way} | 1 | 1 |" in ended.stdout
