"""The benchmark runs, in its smallest form: that its figures are right is for a quiet machine to show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gateway.py"
ARMS = ["engine", "rest", "rest-stream", "grpc", "grpc-stream", "zmq"]


@pytest.mark.engine
def test_every_way_to_the_engine_answers_and_is_measured(smollm2: Path) -> None:
    argv = [
        sys.executable,
        str(BENCH),
        "--quick",
        "--json",
        "--clients",
        "1",
        "2",
        "--threads",
        "1",
        "--file",
        str(smollm2),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["machine"]["engine_threads"] == 1
    assert [result["load"]["clients"] for result in told["results"]] == [1, 2]
    for result in told["results"]:
        assert list(result["samples"]) == ARMS
        for [sample] in result["samples"].values():
            assert 0 < sample["p50"] <= sample["p99"]
            assert sample["tokens_per_second"] > 0
