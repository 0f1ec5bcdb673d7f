"""What is known of the values that come of a schema, as engines read it: which types, and whether two may share one.

Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]

ALL = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
NUMBERS = frozenset(("number", "integer"))
FORMATS = frozenset(("date", "time", "date-time", "uuid"))


@dataclass(frozen=True)
class Shape:
    """What is known of the values that come of a schema."""

    types: frozenset[str] = ALL
    values: frozenset[str] | None = None  # all there are
    names: frozenset[str] | None = None  # all that an object may have
    required: frozenset[str] = frozenset()
    tags: Mapping[str, frozenset[str]] = field(default_factory=dict)  # properties of which all values are known

    def refuses(self, other: Shape) -> bool:
        """Whether no value that comes of `other` is one of this."""
        if not self.types & other.types:
            return True
        if self.values is not None and other.values is not None:
            return not self.values & other.values
        if not self.types == other.types == {"object"}:
            return False
        if other.names is not None and self.required - other.names:
            return True
        return any(name in self.required and not own & other.tags.get(name, own) for name, own in self.tags.items())


def shape(schema: Any, resolved: Any) -> Shape:
    """What is known of `schema`; `resolved` tells what one is that may be a reference."""
    if not isinstance(schema, dict):
        return Shape()
    values = _values(schema)
    if values is not None:
        return Shape(frozenset(kind for one in values for kind in _kinds(one)), frozenset(map(key, values)))
    if schema.keys() & {"$ref", "oneOf", "anyOf", "allOf"}:
        return Shape()
    told = schema.get("type", [*meant(schema)])
    types = frozenset(one for one in ([told] if isinstance(told, str) else told) if isinstance(one, str))
    types |= {"integer"} if "number" in types else frozenset()
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if types != {"object"} or not isinstance(properties, dict) or not named(required, properties):
        return Shape(types)
    tags = {}
    for name, one in properties.items():
        found = _values(resolved(one))
        if found is not None:
            tags[name] = frozenset(map(key, found))
    return Shape(types, None, frozenset(properties) if _shut(schema) else None, frozenset(required), tags)


def _values(schema: Any) -> list[Any] | None:
    if not isinstance(schema, dict) or schema.keys() & {"$ref", "oneOf", "anyOf"}:
        return None
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def key(value: Any) -> str:
    """The same for values that JSON Schema takes for the same."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def _kinds(value: Any) -> frozenset[str]:
    """The types that a value is of."""
    if isinstance(value, bool):
        return frozenset(("boolean",))
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return NUMBERS
    kinds: Mapping[type, str] = {float: "number", str: "string", list: "array", dict: "object"}
    return frozenset((kinds.get(type(value), "null"),))


def is_of(value: Any, types: frozenset[str]) -> bool:
    """Whether the value is of one of the types."""
    return bool(_kinds(value) & types)


def meant(schema: Schema) -> frozenset[str]:
    """The type that engines give a schema that names none."""
    if closed(schema):
        return frozenset(("object",))
    if "items" in schema or "prefixItems" in schema:
        return frozenset(("array",))
    if schema.keys() & {"pattern", "minLength", "maxLength"} or among(schema.get("format"), FORMATS):
        return frozenset(("string",))
    return ALL


def closed(schema: Schema) -> bool:
    """Whether the schema says what properties an object has."""
    return "properties" in schema or schema.get("additionalProperties", True) is not True


def _shut(schema: Schema) -> bool:
    """Whether an object has its own properties only."""
    return schema.get("additionalProperties", "properties" not in schema) is False


def named(required: Any, names: Any) -> bool:
    """Whether all that is required is among the names."""
    return isinstance(required, list) and all(isinstance(name, str) and name in names for name in required)


def among(value: Any, known: frozenset[str]) -> bool:
    """Whether the value is one of the words."""
    return isinstance(value, str) and value in known
