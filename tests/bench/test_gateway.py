"""The benchmark runs, in its smallest form: that its figures are right is for a quiet machine to show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.gateway import quantile

BENCH = Path(__file__).parents[2] / "bench" / "gateway.py"
ARMS = ["engine", "rest", "rest-stream", "grpc", "grpc-stream", "zmq"]


def test_quantiles_are_of_values_in_any_order() -> None:
    values = [7.0, 1.0, 9.0, 3.0]
    assert [quantile(values, share) for share in (0.0, 0.25, 0.5, 0.95, 1.0)] == [1.0, 1.0, 3.0, 9.0, 9.0]
    assert values == [7.0, 1.0, 9.0, 3.0]


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
