"""The tables of the benchmark of serving goals. As a whole it takes minutes, and is run by hand."""

from __future__ import annotations

import importlib.util
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelops.api.goals import Goal
from modelops.goals.space import Measured

BENCH = Path(__file__).parents[2] / "bench" / "serving_goals.py"


def bench() -> Any:
    spec = importlib.util.spec_from_file_location("serving_goals", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


def test_each_arm_is_compared_with_the_default_server_in_the_same_round() -> None:
    def gives(rate: float) -> Measured:
        return Measured(rate, 10 * rate, 100 * rate, 1000 / rate, 64.0, 8, 8 / rate)

    rounds = [[gives(each * fast) for each in (1.0, 2.0, 3.0, 4.5)] for fast in (1.0, 0.5, 2.0)]
    lines = bench().table(rounds).splitlines()
    assert lines[2] == "| default server | 1.000 | 10.0 | 100 | 1000 | 64 | 1.00 (1.00 to 1.00) |"
    assert lines[5] == "| coordinator, applied | 4.500 | 45.0 | 450 | 222 | 64 | 4.50 (4.50 to 4.50) |"


def test_what_was_tried_is_told_the_best_first() -> None:
    result = {
        "tried": [
            {"way": "as it is", "ratio": 1.0, "measured": {"tokens_per_second": 10.0, "p95_latency_ms": 900.0}},
            {"way": "slots 2", "ratio": 1.5, "measured": {"tokens_per_second": 15.0, "p95_latency_ms": 600.0}},
        ],
        "perplexity": [{"weights": "Q4_0", "cache_type": "", "increase": 0.21, "kept": False}],
    }
    goal = Goal(goal_id="g", title="t", status="completed", created_at=datetime.now(UTC), result=result)
    lines = bench().tried(goal).splitlines()
    assert lines[2:4] == ["| slots 2 | 1.50 | 15.0 | 600 |", "| as it is | 1.00 | 10.0 | 900 |"]
    assert lines[-1] == "Perplexity: Q4_0 +21.00% (not kept)."
