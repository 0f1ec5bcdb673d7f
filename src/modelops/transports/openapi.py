"""The OpenAPI 3.0.3 document, made from the operations table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from modelops.api.messages import Request
from modelops.api.operations import METRICS, OPERATIONS, Operation, Page

#: The table from codes to HTTP statuses, each with what it says in the document.
STATUS: dict[str, tuple[int, str]] = {
    "invalid_request": (400, "Invalid request"),
    "unauthenticated": (401, "No key, or a wrong one"),
    "permission_denied": (403, "The key lacks the scope; or, without keys, the caller is no program of this machine"),
    "not_found": (404, "Model not found, or whatever else was named"),
    "conflict": (409, "Model already loaded, or in a state that does not allow this"),
    "too_large": (413, "Request too large"),
    "rate_limited": (429, "Rate limit exceeded"),
    "internal": (500, "Internal error"),
    "not_implemented": (501, "Not in this release"),
    "engine_failed": (502, "The engine broke"),
    "overloaded": (503, "Service overloaded"),
    "deadline_exceeded": (504, "The deadline passed"),
    "insufficient_memory": (507, "Insufficient VRAM, or insufficient memory on another device"),
}
_SUCCESS = {
    "health": "Service is healthy",
    "infer": "Inference completed successfully",
    "list_models": "List of models",
    "load_model": "Model loaded successfully",
    "unload_model": "Model unloaded successfully",
    "list_jobs": "List of jobs",
    "create_job": "Job created successfully",
    "list_goals": "List of goals",
    "create_goal": "Goal created successfully",
}
#: Either header holds the key.
_KEY: list[dict[str, list[str]]] = [{"ApiKeyAuth": []}, {"BearerAuth": []}]
#: For whoever watches over a coordinator: path → what a 204 says, and when it answers 503 instead.
_PROBES = {
    "/health/live": ("Whether the process lives", ""),
    "/health/ready": ("Whether work may be sent here", "Not now: it is shutting down, or a part of it does not serve"),
}
_NULL = {"type": "object", "nullable": True, "enum": [None]}
_RETRY_AFTER = {"description": "Seconds to wait", "required": True, "schema": {"type": "integer", "minimum": 1}}
#: The headers that come with a status.
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"WWW-Authenticate": {"description": "How to show a key", "required": True, "schema": {"type": "string"}}},
    429: {"Retry-After": _RETRY_AFTER},
    503: {"Retry-After": _RETRY_AFTER},
}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457 problem details. `success` and `error_message` are there for clients that only know "
    "InferenceResponse.",
    "required": ["type", "title", "status", "detail", "code", "request_id", "success", "error_message"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": sorted(STATUS)},
        "request_id": {"type": "string"},
        "retry_after_s": {"type": "number"},
        "details": {"type": "object", "additionalProperties": {"type": "string"}},
        "success": {"type": "boolean", "enum": [False]},
        "error_message": {"type": "string"},
    },
}


def document() -> dict[str, Any]:
    """The whole document, a fresh copy."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.route.path, {})[operation.route.method.lower()] = _operation(operation)
    paths[METRICS.path] = {"get": _page(METRICS)}
    for path, (summary, why_not) in _PROBES.items():
        paths[path] = {"get": _probe(path, summary, why_not)}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "ModelOps Coordinator REST API",
            "version": "1.0.0",
            "description": "Unified model lifecycle, inference, and resource management",
            "contact": {"name": "ModelOps Team", "email": "modelops@company.com"},
        },
        "servers": [
            {"url": "https://moc.company.com:8008", "description": "Production server"},
            {"url": "http://localhost:8008", "description": "Development server"},
        ],
        "security": _KEY,
        "paths": paths,
        "components": {
            "securitySchemes": {
                "ApiKeyAuth": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "BearerAuth": {"type": "http", "scheme": "bearer"},
            },
            "schemas": _schemas(),
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    route = operation.route
    success: dict[str, Any] = {
        "description": _SUCCESS.get(operation.name, "The answer"),
        "content": {"application/json": {"schema": _answer(operation)}},
    }
    if stream := operation.stream:
        told = f"Each event is a{'n' if stream.chunk.__name__[0] in 'AEIOU' else ''} {stream.chunk.__name__}."
        if stream.always:
            success["content"] = {}
        else:
            told = f'With "stream": true. {told}'
        success["content"]["text/event-stream"] = {"schema": {"type": "string", "description": told}}
    responses = {str(route.status): success}
    if "wait" in route.query:
        responses["202"] = {**success, "description": "It has begun (wait=false)"}
    if "dry_run" in route.query:
        responses["200"] = {**success, "description": "What would be done (dry_run=true)"}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "tags": list(operation.tags),
        "parameters": list(_parameters(operation)),
        "responses": responses | _errors((*operation.errors, "invalid_request", *_at_the_door(operation.scope))),
    }
    if operation.scope is None:
        described["security"] = [{}, *_KEY]  # without one it tells less
    if route.method == "POST":
        described["requestBody"] = _body(operation.request)
    return described


def _answer(operation: Operation) -> dict[str, Any]:
    if not (array := operation.route.array):
        return _ref(operation.response)
    (item,) = get_args(operation.response.model_fields[array].annotation)
    return {"type": "array", "items": _ref(item)}


def _page(page: Page) -> dict[str, Any]:
    success = {"description": page.description, "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "operationId": page.name,
        "summary": page.summary,
        "tags": ["system"],
        "responses": {"200": success} | _errors(("not_found", *_at_the_door(page.scope))),
    }


def _probe(path: str, summary: str, why_not: str) -> dict[str, Any]:
    responses: dict[str, Any] = {"204": {"description": "Yes"}}
    if why_not:
        responses["503"] = _error(503, why_not)
    return {
        "operationId": path.strip("/").replace("/", "_"),
        "summary": summary,
        "tags": ["system"],
        "security": [],
        "responses": responses,
    }


def _at_the_door(scope: str | None) -> tuple[str, ...]:
    """What every caller of an operation may meet; where nobody needs a key, a wrong one is still told."""
    return ("unauthenticated", "permission_denied", *(() if scope is None else ("rate_limited",)))


def _body(request: type[Request]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": _ref(request)}}}


def _parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    fields = operation.request.model_fields
    schemas = operation.request.model_json_schema()["properties"] if fields else {}
    for name in fields:
        if f"{{{name}}}" in operation.route.path:
            yield {"name": name, "in": "path", "required": True, "schema": _as_3_0(schemas[name])}
        elif name in operation.route.query:
            schema = {key: value for key, value in _as_3_0(schemas[name]).items() if key != "nullable"}
            described = schema.pop("description", "")
            yield {"name": name, "in": "query", "description": described, "schema": schema}
    if operation.stream and operation.stream.after:
        yield {
            "name": "Last-Event-ID",
            "in": "header",
            "description": f"As `{operation.stream.after}`, before which it goes; sent by who comes back to a stream.",
            "schema": _as_3_0(schemas[operation.stream.after]),
        }
    if operation.creates:
        yield {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Repeated with the same key, it creates nothing more, and gives the first answer again.",
            "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]([ -~]*[!-~])?$"},
            "example": "a4b8c1d6",
        }
    yield {
        "name": "X-Request-Timeout",
        "in": "header",
        "description": "Seconds after which the caller no longer wants the answer.",
        "schema": {"type": "number", "minimum": 0, "exclusiveMinimum": True},
        "example": 30,
    }


def _errors(codes: Iterable[str]) -> dict[str, Any]:
    return {
        str(status): _error(status, title) for status, title in sorted(STATUS[code] for code in {*codes, "internal"})
    }


def _error(status: int, title: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    described = {"description": title, "content": content}
    if headers := _HEADERS.get(status):
        described["headers"] = headers
    return described


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def _schemas() -> dict[str, Any]:
    models: dict[type[BaseModel], None] = {}
    for operation in OPERATIONS:
        if operation.route.method == "POST":
            models[operation.request] = None
        if not operation.route.array:
            models[operation.response] = None
        if operation.stream:
            models[operation.stream.chunk] = None
    _, found = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    schemas = {name: _as_3_0(schema) for name, schema in found["$defs"].items()}
    for operation in OPERATIONS:
        if operation.route.method == "POST":  # what stands in the path and in the query does not stand in the body
            schema = schemas[operation.request.__name__]
            elsewhere = {name for name in schema.get("properties", {}) if f"{{{name}}}" in operation.route.path}
            schema["properties"] = {
                name: value for name, value in schema.get("properties", {}).items() if name not in elsewhere
            }
            if required := [name for name in schema.get("required", []) if name not in elsewhere]:
                schema["required"] = required
            else:
                schema.pop("required", None)
    return {**schemas, "Problem": _PROBLEM}


def _as_3_0(schema: Any) -> Any:
    """JSON Schema as pydantic writes it, in the words of OpenAPI 3.0: `nullable`, `example`, no `const`."""
    if isinstance(schema, list):
        return [_as_3_0(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result: dict[str, Any] = {}
    for key, value in schema.items():
        match key:
            case "anyOf":
                options = [_as_3_0(option) for option in value if option != {"type": "null"}]
                if len(options) < len(value) and any("$ref" in option for option in options):
                    options.append(_NULL)  # "nullable" beside a reference has no effect
                elif len(options) < len(value):
                    result["nullable"] = True
                result.update(options[0] if len(options) == 1 else {"anyOf": options})
            case "examples":
                result["example"] = value[0]
            case "const":
                result["enum"] = [value]
            case "title":
                if not isinstance(value, str):  # a property of that name, not the schema's own title
                    result[key] = _as_3_0(value)
            case "default" if value is None:
                continue
            case "default":
                result[key] = value
            case _:
                result[key] = _as_3_0(value)
    if "$ref" in result and len(result) > 1:
        result = {"allOf": [{"$ref": result.pop("$ref")}], **result}
    return result
