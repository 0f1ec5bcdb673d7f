"""The goals that are shown: requests that are taken as they stand, about files that are there."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from modelops.api.goals import CreateGoalRequest, GoalLimits, GoalType, QualityObjective, objective_of
from modelops.goals import asked
from modelops.learning import datasets
from modelops.settings import Settings

HERE = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("file", sorted((HERE / "goals").glob("*.json")), ids=lambda file: file.name)
def test_each_is_a_whole_request(file: Path) -> None:
    request = CreateGoalRequest.model_validate_json(file.read_bytes())
    assert objective_of(request.objective).type == file.stem.partition("-")[0]
    GoalLimits.parse(request.limits)


def test_there_is_one_of_each_type() -> None:
    assert {file.stem for file in (HERE / "goals").glob("*.json")} == set(get_args(GoalType))


def test_the_rows_of_the_capitals_can_be_learnt_and_judged(tmp_path: Path) -> None:
    request = CreateGoalRequest.model_validate_json((HERE / "goals" / "quality.json").read_bytes())
    objective = objective_of(request.objective)
    assert isinstance(objective, QualityObjective)
    settings = Settings.model_validate({"data_dir": tmp_path, "learning": {"roots": [str(HERE)]}})
    files = asked.read(objective, settings)
    train, held_out = (datasets.read((HERE / "capitals" / name).read_bytes(), "lora", name) for name in NAMES)
    assert [files[name].digest for name in ("train.jsonl", "eval.jsonl")] == [train.digest, held_out.digest]
    assert not asked.warnings(files)


NAMES = ("train.jsonl", "heldout.jsonl")
