"""The document is made from the operations table, and speaks OpenAPI 3.0 rather than JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openapi_schema_validator import OAS30Validator

from modelops.api.operations import OPERATIONS, Operation
from modelops.transports import problems
from modelops.transports.openai import PREFIX
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
    door = ("unauthenticated", "permission_denied", *(["rate_limited"] if operation.scope else []))
    errors = {str(problems.STATUS[code]) for code in (*operation.errors, *door, "invalid_request", "internal")}
    assert errors == {status for status in described["responses"] if int(status) >= 400}
    assert str(route.status) in described["responses"]
    assert ("202" in described["responses"]) is ("wait" in route.query)
    assert ("200" in described["responses"]) is (route.status == 200 or "dry_run" in route.query)
    assert {item["name"] for item in described["parameters"] if item["in"] == "query"} == set(route.query)
    assert ("requestBody" in described) is (route.method == "POST")
    for status, header in (("401", "WWW-Authenticate"), ("429", "Retry-After"), ("503", "Retry-After")):
        assert status not in described["responses"] or described["responses"][status]["headers"][header]["required"]


def test_every_route_is_described_and_no_other() -> None:
    routes = {(operation.route.path, operation.route.method.lower()) for operation in OPERATIONS}
    others = {("/health/live", "get"), ("/health/ready", "get"), ("/metrics", "get")}
    assert {(path, method) for path, item in document()["paths"].items() for method in item} == routes | others


def test_what_is_described_elsewhere_is_kept_out() -> None:
    assert not [path for path in document()["paths"] if path.startswith(PREFIX)]  # their own document has their forms


def test_a_key_is_wanted_in_either_header_wherever_one_is_needed() -> None:
    told = document()
    either: list[dict[str, list[str]]] = [{"ApiKeyAuth": []}, {"BearerAuth": []}]
    assert told["security"] == either
    assert {name for wanted in either for name in wanted} == set(told["components"]["securitySchemes"])
    others = {
        path: described["security"]
        for path, item in told["paths"].items()
        for described in item.values()
        if "security" in described
    }
    # Without a key health tells less; the probes know no keys.
    assert others == {"/health": [{}, *either], "/health/live": [], "/health/ready": []}


def test_what_a_stream_brings_is_described() -> None:
    assert {"InferenceChunk", "ModelEvent", "JobEvent", "GoalEvent"} <= set(document()["components"]["schemas"])


def test_texts_and_times_are_described_as_they_are_checked() -> None:
    schemas = document()["components"]["schemas"]
    for schema, right, wrong in (
        (schemas["InferenceRequest"]["properties"]["input_text"], "a\nb", "a\0b"),
        (schemas["InferenceRequest"]["properties"]["stop_sequences"]["items"], "\n", "\0"),
        (schemas["ModelLoadRequest"]["properties"]["model_name"], "a:b", "a b"),
        (schemas["EmbedRequest"]["properties"]["keep_alive"], "1h30m", "soon"),
    ):
        assert OAS30Validator(schema).is_valid(right)
        assert not OAS30Validator(schema).is_valid(wrong)


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
