"""Requests for goals: what is filled in, what is refused and how that is told."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.api.errors import InvalidRequest
from modelops.api.goals import (
    AvailabilityObjective,
    CreateGoalRequest,
    ListGoalsRequest,
    QualityObjective,
    ServingObjective,
    objective_of,
)

QUALITY: dict[str, Any] = {"type": "quality", "model_name": "m", "target": 0.9}
zones = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(
    lambda offset: timezone(timedelta(minutes=offset // timedelta(minutes=1)))
)
moments = st.datetimes(datetime(1970, 1, 2), datetime(9998, 12, 30), timezones=zones)


def request(**fields: Any) -> CreateGoalRequest:
    return CreateGoalRequest.parse({"title": "x", "objective": QUALITY, **fields})


def test_what_was_not_given_is_filled_in() -> None:
    quality = objective_of(QUALITY)
    assert isinstance(quality, QualityObjective)
    assert (quality.metric, quality.regression_tolerance, quality.watch_seconds) == ("exact_match", 0.02, 60)
    serving = objective_of({"type": "serving", "model_name": "m", "workload": {"concurrency": 2}})
    assert isinstance(serving, ServingObjective)
    assert (serving.formats, serving.described.concurrency, serving.described.prompt_tokens) == (
        ["Q8_0", "Q4_0"],
        2,
        512,
    )
    kept = objective_of({"type": "availability", "models": ["m"]})
    assert isinstance(kept, AvailabilityObjective)
    assert (kept.until, kept.probe_seconds) == (None, 5)


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        ({}, "objective.type: one of quality, serving, availability"),
        ({"type": 5}, "objective.type: "),
        ({"type": ["quality"]}, "objective.type: "),
        ({**QUALITY, "target": 0}, "objective: target: "),
        ({**QUALITY, "target": 1.01}, "objective: target: of exact_match it is above 0 and at most 1"),
        ({**QUALITY, "metric": "perplexity", "target": 1}, "objective: target: of perplexity it is above 1"),
        ({**QUALITY, "parameters": {"rank": 0}}, "objective: parameters: rank: "),
        ({**QUALITY, "parameters": {"ranks": 8}}, "did you mean 'rank'"),
        ({**QUALITY, "models": ["m"]}, "objective: unknown field 'models'"),
        ({"type": "serving"}, "objective: model_name: "),
        ({"type": "serving", "model_name": "m", "workload": {"prompt_token": 5}}, "did you mean 'prompt_tokens'"),
        ({"type": "serving", "model_name": "m", "workload": {"requests": []}}, "objective: workload: requests: "),
        ({"type": "serving", "model_name": "m", "workload": {"prompt_tokens": 0}}, "workload: prompt_tokens: "),
        ({"type": "availability", "models": []}, "objective: models: "),
        ({"type": "availability", "models": ["m"], "until": "tomorrow"}, "objective: until: is a time with its offset"),
    ],
)
def test_what_is_wrong_is_named(objective: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        objective_of(objective)
    assert told in refused.value.message


@pytest.mark.parametrize(("metric", "target"), [("exact_match", 1), ("f1", 0.001), ("perplexity", 1.001)])
def test_targets_are_within_what_their_metric_can_be(metric: str, target: float) -> None:
    objective = objective_of({**QUALITY, "metric": metric, "target": target})
    assert isinstance(objective, QualityObjective)
    assert objective.target == target


# --- times ---
@given(moments)
def test_a_time_is_the_same_however_it_is_written(at: datetime) -> None:
    for written in (at, at.isoformat(), at.isoformat().lower(), at.isoformat(" ")):
        found = request(target_completion=written).target_completion
        assert found == at
        assert found is not None
        assert found.tzinfo is UTC
        assert datetime.fromtimestamp(found.timestamp(), UTC).year == found.year
    assert json.loads(request(target_completion=at).model_dump_json())["target_completion"].endswith("Z")


@pytest.mark.parametrize(
    "written",
    [
        *("2030-01-31", "2030-01-31T12:00:00", "2030-02-31T12:00:00Z", "soon", "", "12:00Z", "1893456000"),
        *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "9999-01-01T00:00:00Z", "1969-12-31T23:59:59Z"),
        *(5, 5.5, True, [], {}, datetime(2030, 1, 31), datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))),
    ],
    ids=str,
)
def test_what_is_no_time_is_refused(written: object) -> None:
    with pytest.raises(InvalidRequest, match='target_completion: is a time with its offset, such as "2030-'):
        request(target_completion=written)


def test_a_status_that_there_is_not_is_told_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest) as refused:
        ListGoalsRequest.parse({"status": "bogus"})
    assert refused.value.message.lower() == (
        "status: input should be 'pending', 'active', 'completed', 'failed', 'cancelled' or 'all'"
    )
