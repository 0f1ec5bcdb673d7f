"""What an engine keeps to of a JSON Schema: it makes a grammar of it, and what has no place there it leaves out.

Which keywords those are was read in llama.cpp's `common/json-schema.cpp` and `json-schema-to-grammar.cpp`, and tried
with the engine that we bring. `check` walks a schema as that does: what one keyword wins over, neither looks at. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from modelops.api import pointers
from modelops.api.patterns import Unreadable, backwards, emptiest, read
from modelops.api.shapes import ALL, FORMATS, NUMBERS, Schema, among, closed, is_of, key, meant, named, shape

#: What an answer always keeps to: of values of which type → keyword → what there is to know.
KEPT: Mapping[str, Mapping[str, str]] = {
    "any": {
        "type": "one, or a list of different ones",
        "const": "alone but for `type`",
        "enum": "alone but for `type`",
        "anyOf": "alone",
        "oneOf": "alone; no value may be of two of its schemas: a property that all require tells them apart",
        "allOf": "alone but for `type` and `required`; schemas of objects with different properties, or one `enum`",
        "$ref": "alone; `#/…` only",
    },
    "object": {
        "properties": "they come in this order",
        "required": "of names that are in `properties`",
        "additionalProperties": "where it is absent and `properties` are not, there are none",
    },
    "array": {
        "items": "",
        "prefixItems": "all of them and no more; without `items`",
        "minItems": "up to 2000",
        "maxItems": "",
    },
    "string": {
        "minLength": "up to 2000",
        "maxLength": "",
        "pattern": "of the whole text, `^…$`, without lengths and `format`: characters, `[…]`, `[^…]`, `(…)`, `(?:…)`, "
        "alternatives, `*`, `+`, `?`, `{…}`; no `.`, `\\d`, `\\w`, `\\s`, and nothing that lets quotes, backslashes or "
        "control characters in",
        "format": "`date`, `time`, `date-time`, `uuid`; without lengths. Of the form: there may be a 31st of February",
    },
    "integer": {
        "minimum": "above 99 with a `maximum` only",
        "exclusiveMinimum": "as `minimum`, and not beside it",
        "maximum": "below 0 with a `minimum` only",
        "exclusiveMaximum": "as `maximum`, and not beside it",
    },
}
#: Keywords that JSON Schema knows and engines do not, and of values of which type they speak.
NOT_KEPT: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("not", "if", "then", "else", "$dynamicRef", "$recursiveRef"), ALL),
    **dict.fromkeys(
        (
            *("minProperties", "maxProperties", "patternProperties", "propertyNames", "unevaluatedProperties"),
            *("dependentRequired", "dependentSchemas", "dependencies"),
        ),
        frozenset(("object",)),
    ),
    **dict.fromkeys(
        ("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"), frozenset(("array",))
    ),
    "multipleOf": NUMBERS,
}
_OF: Mapping[str, frozenset[str]] = {
    **NOT_KEPT,
    **{keyword: frozenset((kind,)) for kind in ("object", "array", "string") for keyword in KEPT[kind]},
    **dict.fromkeys(KEPT["integer"], NUMBERS),
    "format": frozenset(("string", "number", "integer")),
    "additionalItems": frozenset(("array",)),
}
#: What says nothing of which values are right.
ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "nullable"),
        *(
            "$schema",
            "$id",
            "id",
            "$anchor",
            "$comment",
            "$defs",
            "definitions",
            "discriminator",
            "externalDocs",
            "xml",
        ),
        *("contentMediaType", "contentEncoding", "contentSchema"),
    )
)
#: Formats that any text, or any number, has.
_LOOSE_FORMATS = frozenset(("password", "path", "binary", "float", "double"))
#: What asks for nothing.
_NEUTRAL: Mapping[str, Any] = {
    "uniqueItems": False,
    "additionalProperties": True,
    "minProperties": 0,
    "minItems": 0,
    "minLength": 0,
}
_CLASHING = frozenset(
    '"\\[]^'
)  # in names, beside properties of any other name: they are put into a class as they stand
_MOST_REPEATED = 2000  # by llama.cpp
_MOST_OPTIONAL = 500  # properties of an object: its grammar takes the third power of that in time
_MOST_EMPTY = 16  # parts of a pattern in a row that may be empty: from 24 on one token takes minutes
_MOST_CHOICES = 1000  # values and schemas to choose from: an engine tries each for each token, with 5000 for seconds
_DEEPEST = 500  # schemas within each other: an engine's stack holds some thousands
_MOST_COMPARED = 32  # schemas of a oneOf
_LONGEST_PATTERN = 5000  # characters: they may be as many alternatives
_LONGEST_PATH = 400
_MOST = 10**15  # digits of an integer that has one bound only

_Path = tuple[Any, str]  # the path of what it is in, and its own name


class Unkept(ValueError):
    """What an engine would not keep to, or would not survive: where, and why."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}" if path else why)
        self.path = path
        self.why = why


def check(schema: Schema, *, strict: bool) -> None:
    """Raise Unkept for what an engine hangs or dies of, and where it is `strict` also for what it would ignore."""
    _Walk(schema, strict).all()


class _Walk:
    def __init__(self, root: Schema, strict: bool) -> None:
        self._root = root
        self._strict = strict
        self._seen: set[str] = set()  # references
        self._meant: dict[str, Any] = {}  # by reference
        self._choices = 0
        self._left: list[tuple[Any, _Path | None, int]] = [(root, None, 0)]

    def all(self) -> None:
        """Not recursive: references make it as deep as anybody likes."""
        while self._left:
            schema, path, depth = self._left.pop()
            if depth > _DEEPEST:
                _fail(None, f"more than {_DEEPEST} schemas within each other, references counted")
            children = list(self._node(schema, path))
            self._left.extend((child, where, depth + 1) for child, where in reversed(children))

    def _refuse(self, path: _Path | None, keyword: str, why: str = "is not kept to by the engine") -> None:
        if self._strict:
            _fail((path, keyword), why)

    def _node(self, schema: Any, path: _Path | None) -> Iterator[tuple[Any, _Path | None]]:
        """What is wrong with a schema itself; the schemas in it."""
        if not isinstance(schema, dict):
            _fail(path, "must be an object, as {} for any value: true and false are no schemas to the engine")
        for winner in ("$ref", "oneOf", "anyOf"):
            if winner in schema:
                self._alone(schema, path, winner)
                yield from self._parts(schema, path, winner)
                return
        types = self._types(schema, path)
        for winner in ("const", "enum"):
            if winner in schema:
                self._alone(schema, path, winner, "type")
                values = [schema[winner]] if winner == "const" else schema[winner]
                if not isinstance(values, list) or not values:
                    self._refuse(path, winner, "must be a list of values")
                    return
                self._choose(len(values), path, winner)
                if "type" in schema and not all(is_of(value, types) for value in values):
                    self._refuse(path, winner, "has values that are not of the 'type'")
                return
        several = isinstance(schema.get("type"), list)
        if "allOf" in schema:
            self._loops(schema["allOf"], path)
            if several:
                _fail((path, "allOf"), "cannot stand beside several types")
            if types == {"string"} or (types <= {"object"} and not closed(schema)):
                self._all_of(schema, path)
                yield from self._parts(schema, path, "allOf")
                return
            self._refuse(path, "allOf", "is ignored by the engine beside this type, or 'properties'")
        if "type" not in schema:
            types = meant(schema)
        for keyword in schema:
            self._keyword(schema, path, keyword, types)
        if "object" in types:
            yield from self._object(schema, path)
        if "array" in types:
            yield from self._array(schema, path)
        if "string" in types:
            self._string(schema, path)
        if "integer" in types:
            self._integer(schema, path)

    def _keyword(self, schema: Schema, path: _Path | None, keyword: str, types: frozenset[str]) -> None:
        if _silent(keyword) or keyword in ("type", "allOf") or _same(schema[keyword], _NEUTRAL.get(keyword)):
            return
        if keyword not in _OF:
            self._refuse(path, keyword, "is no keyword that is known here")
        for kind in _OF.get(keyword, frozenset()) & types:
            if keyword == "format" and among(schema[keyword], _LOOSE_FORMATS):
                continue
            if keyword == "additionalItems" and isinstance(schema.get("items"), list):
                continue
            if keyword not in KEPT.get(kind, {}) or types == ALL:
                self._refuse(
                    path,
                    keyword,
                    f"is not kept to by the engine{'' if types == ALL else f', of type {kind!r}'}: leave it out",
                )

    def _alone(self, schema: Schema, path: _Path | None, winner: str, *others: str) -> None:
        for keyword in schema:
            if keyword != winner and keyword not in others and not _silent(keyword):
                self._refuse(path, keyword, f"is ignored by the engine beside '{winner}'")

    def _types(self, schema: Schema, path: _Path | None) -> frozenset[str]:
        told = schema.get("type", [])
        if isinstance(told, str):
            told = [told]
        if not isinstance(told, list) or not all(isinstance(one, str) and one in ALL for one in told):
            self._refuse(path, "type", f"must be of {', '.join(sorted(ALL))}")
            return frozenset()
        if len(told) > len({*told}):
            _fail((path, "type"), "names a type twice")
        return frozenset(told)

    # --- schemas in schemas ---
    def _parts(self, schema: Schema, path: _Path | None, keyword: str) -> Iterator[tuple[Any, _Path | None]]:
        at: _Path = (path, keyword)
        value = schema[keyword]
        if keyword == "$ref":
            if not isinstance(value, str) or (target := self._target(value)) is None:
                self._refuse(path, keyword, "must lead to a schema in the same document: '#/…'")
            elif value not in self._seen:
                self._seen.add(value)
                yield target, _place(value)
        elif not isinstance(value, list) or not value:
            self._refuse(path, keyword, "must be a list of schemas")
        else:
            if keyword != "allOf":
                self._choose(len(value), path, keyword)
            if keyword == "oneOf" and self._strict:
                self._one_of(value, path)
            yield from ((one, (at, str(index))) for index, one in enumerate(value))

    def _target(self, reference: str) -> Any:
        """What a reference leads to; None: nothing."""
        try:
            return pointers.target(self._root, reference)
        except LookupError:
            return None

    def _resolved(self, schema: Any) -> Any:
        """What a schema is that may be a reference; None where that leads nowhere, or round in a ring."""
        seen: list[str] = []
        while isinstance(schema, dict) and isinstance(reference := schema.get("$ref"), str):
            if reference in self._meant:
                schema = self._meant[reference]
                break
            self._meant[reference] = None  # should it lead here again
            seen.append(reference)
            schema = self._target(reference)
        self._meant.update(dict.fromkeys(seen, schema))
        return schema

    def _choose(self, among: int, path: _Path | None, keyword: str) -> None:
        self._choices += among
        if self._choices > _MOST_CHOICES:
            why = f"makes more than {_MOST_CHOICES} values of enum and schemas of anyOf and oneOf, all taken together"
            _fail((path, keyword), why)

    def _loops(self, parts: Any, path: _Path | None) -> None:
        """References that lead to each other: in an allOf engines follow them for ever."""
        for one in parts if isinstance(parts, list) else ():
            inner = one.get("oneOf", one.get("anyOf")) if isinstance(one, dict) and "$ref" not in one else None
            for part in [one, *(inner if isinstance(inner, list) else ())]:
                if isinstance(part, dict) and "$ref" in part and self._resolved(part) is None:
                    _fail((path, "allOf"), "has a reference that leads nowhere, or to itself")

    def _all_of(self, schema: Schema, path: _Path | None) -> None:
        self._alone(schema, path, "allOf", "type", "required", "additionalProperties")
        parts = schema["allOf"]
        if not self._strict or not isinstance(parts, list):
            return
        found = [self._resolved(one) for one in parts]
        if len(found) == 1 and isinstance(found[0], dict) and _plain_enum(found[0]):
            values = found[0]["enum"]
            if "type" in schema and not all(is_of(value, self._types(schema, path)) for value in values):
                self._refuse(path, "allOf", "has values that are not of the 'type'")
            if "required" in schema:
                self._refuse(path, "required", "is ignored by the engine beside 'allOf'")
            return
        names: list[str] = []
        for one in found:
            if not isinstance(one, dict) or not _plain_object(one) or (len(found) > 1 and _says_of_others(one)):
                self._refuse(path, "allOf", "is kept to only where its schemas are all of objects, or one 'enum'")
            else:
                names += one.get("properties", {})
        if len({*names}) < len(names):
            self._refuse(path, "allOf", "has a property in two of its schemas")
        if "object" not in self._types(schema, path) and "type" in schema:
            self._refuse(path, "allOf", "is of objects, and the 'type' is not")
        if not named(schema.get("required", []), names):
            self._refuse(path, "required", "must be a list of names that are in 'properties'")

    def _one_of(self, parts: list[Any], path: _Path | None) -> None:
        if len(parts) > _MOST_COMPARED:
            self._refuse(path, "oneOf", f"has more than {_MOST_COMPARED} schemas; use anyOf")
        shapes = [shape(self._resolved(one), self._resolved) for one in parts]
        for index, one in enumerate(shapes):
            for other in shapes[:index]:
                if not (one.refuses(other) and other.refuses(one)):
                    self._refuse(
                        path,
                        "oneOf",
                        "has schemas that one value may be of at once; use anyOf, or require what tells them apart",
                    )

    # --- types ---
    def _object(self, schema: Schema, path: _Path | None) -> Iterator[tuple[Any, _Path | None]]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict):
            self._refuse(path, "properties", "must be an object of schemas")
            properties = {}
        if not named(required, properties):
            self._refuse(path, "required", "must be a list of names that are in 'properties'")
        needed = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        if len(properties) - len(needed & properties.keys()) > _MOST_OPTIONAL:
            _fail((path, "properties"), f"has more than {_MOST_OPTIONAL} that are not required")
        others = schema.get("additionalProperties", False)
        if others is not False and any(_CLASHING & {*name} for name in properties):
            self._refuse(path, "additionalProperties", 'is not kept to beside names with any of " \\ [ ] ^')
        at = (path, "properties")
        yield from ((one, (at, name)) for name, one in properties.items())
        if not isinstance(others, bool):
            yield others, (path, "additionalProperties")

    def _array(self, schema: Schema, path: _Path | None) -> Iterator[tuple[Any, _Path | None]]:
        least, most = self._range(schema, path, "minItems", "maxItems")
        if "items" in schema and "prefixItems" in schema:
            self._refuse(path, "prefixItems", "is ignored by the engine beside 'items'")
        keyword = "items" if "items" in schema else "prefixItems"
        items = schema.get(keyword, {})
        if isinstance(items, list):
            if not least <= len(items) <= (len(items) if most is None else most):
                self._refuse(path, keyword, "are not as many as minItems and maxItems say")
            yield from ((one, ((path, keyword), str(index))) for index, one in enumerate(items))
        elif keyword in schema:
            if keyword == "prefixItems":
                self._refuse(path, keyword, "must be a list of schemas")
            yield items, (path, keyword)

    def _string(self, schema: Schema, path: _Path | None) -> None:
        self._range(schema, path, "minLength", "maxLength")
        kind = schema.get("format")
        winner = ""
        if pattern := schema.get("pattern"):
            winner = "pattern"
            if isinstance(pattern, str) and backwards(pattern):
                _fail((path, "pattern"), "has a repetition of which the least is more than the most")
            if isinstance(pattern, str) and len(pattern) > _LONGEST_PATTERN:
                _fail((path, "pattern"), f"has more than {_LONGEST_PATTERN} characters")
            if isinstance(pattern, str) and emptiest(pattern) > _MOST_EMPTY:
                why = f"has more than {_MOST_EMPTY} parts in a row that may be empty, repetitions written out"
                _fail((path, "pattern"), why)
            if self._strict:
                try:
                    read(pattern if isinstance(pattern, str) else "")
                except Unreadable as error:
                    _fail((path, "pattern"), f"is not kept to by the engine: {error}")
        elif among(kind, FORMATS):
            winner = "format"
        elif "format" in schema and not among(kind, _LOOSE_FORMATS):
            known = ", ".join(sorted(FORMATS))
            self._refuse(path, "format", f"is not kept to by the engine, which knows {known}")
        for keyword in ("minLength", "maxLength", "format"):
            if winner and keyword in schema.keys() - {winner} and not _same(schema[keyword], _NEUTRAL.get(keyword)):
                self._refuse(path, keyword, f"is ignored by the engine beside '{winner}'")

    def _range(self, schema: Schema, path: _Path | None, low: str, high: str) -> tuple[int, int | None]:
        for keyword in (low, high):
            if keyword in schema and not _count(schema[keyword]):
                self._refuse(path, keyword, "must be a whole number from 0 on")
        least = schema[low] if _count(schema.get(low)) else 0
        most = schema[high] if _count(schema.get(high)) else None
        if most is not None and least > most:
            _fail((path, low), f"is more than {high}")
        if least > _MOST_REPEATED:
            self._refuse(path, low, f"must be at most {_MOST_REPEATED}")
        return least, most

    def _integer(self, schema: Schema, path: _Path | None) -> None:
        ends: list[int | None] = []
        for bound, exclusive, step in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
            if bound in schema and exclusive in schema:
                self._refuse(path, exclusive, f"is ignored by the engine beside '{bound}'")
            keyword = bound if bound in schema else exclusive
            value = schema.get(keyword)
            if isinstance(value, bool) or not isinstance(value, int | float) or not -(2**63) < value < 2**63:
                if keyword in schema:
                    self._refuse(path, keyword, "must be a number of 64 bits")
                ends.append(None)
                continue
            inward = math.ceil(value) if step > 0 else math.floor(value)
            ends.append(inward + step if keyword == exclusive and inward == value else inward)
        low, high = ends
        if low is not None and high is not None and low > high:
            _fail((path, _first(schema, "minimum", "exclusiveMinimum")), "leaves no number below the maximum")
        if low is not None and high is None and low > 99:
            keyword = _first(schema, "minimum", "exclusiveMinimum")
            if low >= _MOST:
                _fail((path, keyword), "is too large without a maximum")
            self._refuse(path, keyword, "above 99 is kept to only together with a maximum")
        if high is not None and low is None and high < 0:
            keyword = _first(schema, "maximum", "exclusiveMaximum")
            if high <= -_MOST:
                _fail((path, keyword), "is too small without a minimum")
            self._refuse(path, keyword, "below 0 is kept to only together with a minimum")


def _plain_object(schema: Schema) -> bool:
    beside = schema.keys() & {"$ref", "oneOf", "anyOf", "allOf", "const", "enum"}
    return not beside and closed(schema) and schema.get("type", "object") == "object"


def _says_of_others(schema: Schema) -> bool:
    return schema.get("additionalProperties", True) is not True


def _plain_enum(schema: Schema) -> bool:
    values = schema.get("enum")
    if schema.keys() & {"$ref", "oneOf", "anyOf", "const"} or not isinstance(values, list) or not values:
        return False
    return not isinstance(schema.get("type"), list) and len({*map(key, values)}) == len(values)


def _silent(keyword: str) -> bool:
    return keyword in ANNOTATIONS or keyword.startswith("x-")


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other) and other is not None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _first(schema: Schema, *keywords: str) -> str:
    return next(keyword for keyword in keywords if keyword in schema)


def _place(reference: str) -> _Path | None:
    path: _Path | None = None
    for step in reference.split("/")[1:]:
        path = (path, step)
    return path


def _fail(path: _Path | None, why: str) -> None:
    steps: list[str] = []
    while path is not None:
        path, name = path
        steps.append(name[:64])
    told = ".".join(reversed(steps))
    raise Unkept(told if len(told) < _LONGEST_PATH else f"…{told[-_LONGEST_PATH:]}", why)
