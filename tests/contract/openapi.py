"""The OpenAPI document that the coordinator serves, and whether an answer conforms to it."""

from __future__ import annotations

from functools import cache
from typing import Any

from openapi_schema_validator import OAS30Validator

from contract.wires import Answer
from modelops.api.operations import Route
from modelops.transports.openapi import document


@cache
def whole() -> Any:
    """The document with every reference replaced by what it refers to."""
    return resolved(document(), document())


def resolved(value: Any, root: Any) -> Any:
    """`value` with every "$ref" into `root` replaced; one that leads nowhere stays."""
    if isinstance(value, list):
        return [resolved(item, root) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        target = root
        for part in value["$ref"].removeprefix("#/").split("/"):
            target = target.get(part) if target else None
        return value if target is None else resolved(target, root)
    return {key: resolved(item, root) for key, item in value.items()}


def conforms(route: Route, answer: Answer) -> None:
    """The status is one that the document has for the operation, and the body is as it says."""
    responses = whole()["paths"][route.path][route.method.lower()]["responses"]
    assert answer.status in responses, f"{route.method} {route.path} does not announce {answer.status}"
    schema = responses[answer.status]["content"][answer.headers["content-type"]]["schema"]
    faults = [error.message for error in OAS30Validator(schema).iter_errors(answer.json)]
    assert not faults
    described, told = (schema["items"], answer.json) if schema.get("type") == "array" else (schema, [answer.json])
    assert not {name for one in told for name in one} - set(described["properties"])
