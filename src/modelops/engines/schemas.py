"""One JSON Schema as a part of another. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelops.api import pointers

#: Keywords of which the values are schemas by name, of which they are data, and which only hold what is referred to.
_MAPS = frozenset(("properties", "patternProperties", "dependentSchemas"))
_DATA = frozenset(("const", "enum", "default", "examples", "required"))
_STORES = frozenset(("$defs", "definitions"))


class Nowhere(ValueError):
    """A reference that leads nowhere; its text is that reference."""


def embedded(schema: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """`schema` as it stands within another, and what it refers to: for the `$defs` of that other, by names that begin
    with `prefix`.

    A reference counts from the root, and there the root is another's. Each gets a name of its own, of letters and
    digits: some versions of llama.cpp tell rules apart by the end of a reference only, or by its letters and digits.
    Raises Nowhere.
    """
    names: dict[str, str] = {}
    found: list[str] = []  # references that were found, in order
    definitions: dict[str, Any] = {}

    def moved(part: Any) -> Any:
        if isinstance(part, list):
            return [moved(one) for one in part]
        if not isinstance(part, Mapping):
            return part
        made: dict[str, Any] = {}
        for keyword, value in part.items():
            if keyword in _STORES:
                continue
            if keyword == "$ref" and isinstance(value, str) and (value == "#" or value.startswith("#/")):
                if value not in names:
                    names[value] = f"{prefix}r{len(names)}"
                    found.append(value)
                made[keyword] = f"#/$defs/{names[value]}"
            elif keyword in _DATA:
                made[keyword] = value
            elif keyword in _MAPS and isinstance(value, Mapping):
                made[keyword] = {name: moved(one) for name, one in value.items()}
            else:
                made[keyword] = moved(value)
        return made

    whole = moved(schema)
    for reference in found:  # which grows: what is referred to may refer to more, or to itself
        definitions[names[reference]] = moved(_target(schema, reference))
    return whole, definitions


def _target(schema: Any, reference: str) -> Any:
    try:
        found = pointers.target(schema, reference)
    except LookupError:
        raise Nowhere(reference) from None
    if not isinstance(found, Mapping | bool):
        raise Nowhere(reference)
    return found
