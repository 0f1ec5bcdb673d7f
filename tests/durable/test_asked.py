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
