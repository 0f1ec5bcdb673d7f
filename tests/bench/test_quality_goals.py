"""The rows of the benchmark of quality goals. As a whole it takes a quarter of an hour, and is run by hand."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from modelops.api.goals import objective_of

BENCH = Path(__file__).parents[2] / "bench" / "quality_goals.py"


def bench() -> Any:
    spec = importlib.util.spec_from_file_location("quality_goals", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_shuffled_rows_have_the_same_questions_and_answers_but_hardly_one_to_its_own() -> None:
    quality = bench()
    good = quality.rows("train")
    wrong = quality.shuffled(good)
    assert [row["prompt"] for row in wrong] == [row["prompt"] for row in good]
    assert Counter(row["completion"] for row in wrong) == Counter(row["completion"] for row in good)
    assert sum(one == other for one, other in zip(good, wrong, strict=True)) < len(good) / 10


def test_what_is_wished_can_be_asked_for() -> None:
    quality = bench()
    assert objective_of(quality.wished(quality.rows("train"))).type == "quality"
    assert objective_of(quality.wished([], metric="perplexity", target=1.001)).type == "quality"
