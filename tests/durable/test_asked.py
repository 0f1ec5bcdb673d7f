"""What a request is known again by."""

from __future__ import annotations

from modelops.api.learning import CreateJobRequest
from modelops.durable.asked import digest

ROW = {"prompt": "größer", "completion": "🌊"}


def asked(**fields: object) -> str:
    return digest(CreateJobRequest.parse({"job_type": "evaluate", "model_name": "m", **fields}))


def test_the_order_of_fields_is_no_difference_and_what_they_are_is() -> None:
    assert asked(dataset=[ROW]) == asked(dataset=[dict(reversed(ROW.items()))])
    assert asked(dataset=[ROW]) != asked(dataset=[{**ROW, "completion": "wave"}])
    assert asked(dataset=[ROW, {"text": "one"}]) != asked(dataset=[{"text": "one"}, ROW])


def test_a_whole_number_is_the_same_however_it_is_written() -> None:
    assert asked(dataset=[{**ROW, "x": 1.0, "y": [{"z": 2.0}]}]) == asked(dataset=[{**ROW, "x": 1, "y": [{"z": 2}]}])
    assert asked(dataset=[{**ROW, "x": 1.5}]) != asked(dataset=[{**ROW, "x": 1}])
    assert asked(dataset=[{**ROW, "x": True}]) != asked(dataset=[{**ROW, "x": 1}])
