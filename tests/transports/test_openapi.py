"""The document is made from the operations table, and speaks OpenAPI 3.0 rather than JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openapi_schema_validator import OAS30Validator

from modelops.api.operations import OPERATIONS, Operation
from modelops.api.planned import PLANNED
from modelops.transports import rest
from modelops.transports.openapi import document


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object within `value`."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from parts(item)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_is_described_with_its_errors_and_parameters(operation: Operation) -> None:
    route = operation.route
    described = document()["paths"][route.path][route.method.lower()]
    assert described["operationId"] == operation.name
    errors = {str(rest.STATUS[code]) for code in (*operation.errors, "internal")}
    assert errors == {status for status in described["responses"] if int(status) >= 400}
    assert str(route.status) in described["responses"]
    assert ("202" in described["responses"]) is ("wait" in route.query)
    assert ("200" in described["responses"]) is (route.status == 200 or "dry_run" in route.query)
    assert {item["name"] for item in described["parameters"] if item["in"] == "query"} == set(route.query)
    assert ("requestBody" in described) is (route.method == "POST")
    for status in ("429", "503"):
        assert "Retry-After" in described["responses"].get(status, {"headers": ["Retry-After"]})["headers"]


def test_every_route_is_described_and_no_other() -> None:
    routes = {(operation.route.path, operation.route.method.lower()) for operation in OPERATIONS}
    planned = {(item.path, item.method.lower()) for item in PLANNED}
    assert {(path, method) for path, item in document()["paths"].items() for method in item} == routes | planned


def test_no_word_of_json_schema_is_left_that_openapi_3_0_does_not_know() -> None:
    for part in parts(document()["components"]["schemas"]):
        if part.get("type") == "object" and "properties" in part:
            continue  # its properties may have any name
        assert not {"const", "examples", "$defs", "prefixItems"} & set(part)
        assert not isinstance(part.get("type"), list)
        assert part.get("type") != "null"
        assert not ("$ref" in part and len(part) > 1)


def test_what_may_be_null_says_so() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["ModelInfo"]["properties"]["loaded_at"]["nullable"] is True
    assert schemas["InferenceRequest"]["properties"]["seed"]["nullable"] is True
    assert "nullable" not in schemas["InferenceRequest"]["properties"]["max_tokens"]
    plan = schemas["ModelLoadReply"]["properties"]["plan"]
    for value, faults in (({"needed_mb": 1}, 0), (None, 0), (1, 1)):
        resolved = {"anyOf": [schemas["LoadPlan"] if "$ref" in way else way for way in plan["anyOf"]]}
        # What a plan holds is told by reference too, and is left out here.
        assert len(list(OAS30Validator(resolved).iter_errors(value))) == faults


def test_requests_are_closed_and_answers_are_not() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["InferenceRequest"]["additionalProperties"] is False
    assert "additionalProperties" not in schemas["InferenceResponse"]


def test_each_copy_is_the_callers_own() -> None:
    document()["paths"].clear()
    assert document()["paths"]
