"""Schemas, made of what engines keep to only."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Schemas = st.SearchStrategy[dict[str, Any]]

NAMES = st.sampled_from(["a", "b", "name", "größe", "x y", "1", "type", "$ref"])
_NOTES = st.fixed_dictionaries(
    {},
    optional={
        "title": st.just("T"),
        "description": st.text(max_size=3),
        "default": st.none(),
        "examples": st.just([1, {"pattern": "x"}]),
        "x-order": st.just(1),
        "deprecated": st.booleans(),
    },
)
_VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.just(1.5) | st.text('ab"\\é\n', max_size=3)
PATTERNS = st.sampled_from(
    [
        "^[0-9]{5}$",
        "^a|b$",
        '^[^"\\\\\\x00-\\x1f]{1,5}$',
        "^(?:ab|c)+d?$",
        "^v[0-9]+\\.[0-9]+$",
        "^#[a-fA-F0-9]{6}$",
        "^[a-z\\-_]*$",
        "^é[é-ü]+$",
        "^\\(x{2,}y*\\)$",
        "^$",
    ]
)


@st.composite
def _range(draw: st.DrawFn, low: str, high: str, most: int = 4) -> dict[str, Any]:
    least, more = draw(st.none() | st.integers(0, most)), draw(st.none() | st.integers(0, most))
    made = {} if least is None else {low: least}
    return made if more is None else made | {high: (least or 0) + more}


@st.composite
def _integer(draw: st.DrawFn) -> dict[str, Any]:
    low = draw(st.integers(-2000, 2000) | st.sampled_from([-(2**53) + 1, 0, 100]) | st.floats(-200, 200))
    lower: dict[str, Any] = {draw(st.sampled_from(["minimum", "exclusiveMinimum"])): low}
    upper: dict[str, Any] = {draw(st.sampled_from(["maximum", "exclusiveMaximum"])): low + draw(st.integers(2, 2**53))}
    either: list[dict[str, Any]] = [lower | upper]
    if low <= 99:
        either.append(lower)
    if low >= 1:
        either.append({draw(st.sampled_from(["maximum", "exclusiveMaximum"])): low})
    bounds: dict[str, Any] = draw(st.sampled_from([{}, *either]))
    return {"type": "integer"} | bounds


_LEAVES: Schemas = st.one_of(
    st.sampled_from(["null", "boolean", "number", "integer", "string"]).map(lambda one: {"type": one}),
    st.just({}),
    _integer(),
    _range("minLength", "maxLength").map(lambda one: {"type": "string"} | one),
    PATTERNS.map(lambda one: {"type": "string", "pattern": one}),
    st.sampled_from(["date", "time", "date-time", "uuid"]).map(lambda one: {"type": "string", "format": one}),
    st.lists(_VALUES, min_size=1, max_size=3).map(lambda one: {"enum": one}),
    _VALUES.map(lambda one: {"const": one}),
    st.just({"type": ["string", "null"], "maxLength": 3}),
    st.just({"type": ["integer", "string"], "minimum": 3, "minLength": 1}),
    st.just({"type": "string", "enum": ["a", "b"]}),
    st.just({"type": ["string", "null"], "const": None}),
)


@st.composite
def _object(draw: st.DrawFn, inner: Schemas) -> dict[str, Any]:
    properties = draw(st.dictionaries(NAMES, inner, max_size=3))
    required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
    beside: list[dict[str, Any]] = [{}, {"additionalProperties": False}, {"additionalProperties": {"type": "null"}}]
    others: dict[str, Any] = draw(st.sampled_from(beside))
    return {"type": "object", "properties": properties, "required": required} | others


@st.composite
def _tuple(draw: st.DrawFn, inner: Schemas) -> dict[str, Any]:
    items = draw(st.lists(inner, min_size=1, max_size=3))
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


@st.composite
def _all_of(draw: st.DrawFn, inner: Schemas) -> dict[str, Any]:
    first, second = draw(inner), draw(inner)
    parts: list[dict[str, Any]] = [{"type": "object", "properties": {"a": first}}, {"properties": {"b": second}}]
    return draw(
        st.sampled_from([{"allOf": parts[:1]}, {"allOf": parts, "required": ["b"]}, {"allOf": [{"enum": [1]}]}])
    )


@st.composite
def _one_of(draw: st.DrawFn, inner: Schemas) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {"type": "object", "properties": {"kind": {"const": kind}, "value": draw(inner)}, "required": ["kind"]}
        for kind in ("a", "b")
    ]
    others: list[dict[str, Any]] = [{"type": "null"}, {"type": "object", "properties": {"z": {}}, "required": ["z"]}]
    return {"oneOf": draw(st.permutations([*kinds, *others]))}


def _more(inner: Schemas) -> Schemas:
    return st.one_of(
        _object(inner),
        _tuple(inner),
        _all_of(inner),
        _one_of(inner),
        st.lists(inner, min_size=1, max_size=3).map(lambda one: {"anyOf": one}),
        st.tuples(inner, _range("minItems", "maxItems")).map(lambda one: {"type": "array", "items": one[0]} | one[1]),
        inner.map(lambda one: {"type": "object", "additionalProperties": one}),
        st.just({"$ref": "#/$defs/List"}),
    )


_NODE = st.recursive(_LEAVES, _more, max_leaves=6)
LIST = {
    "type": "object",
    "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/List"}]}},
    "required": ["next"],
}
#: With notes that say nothing of the values, and a definition that refers to itself.
KEPT: Schemas = st.tuples(_NODE, _NOTES).map(lambda one: one[0] | one[1] | {"$defs": {"List": LIST}})
