"""What an engine would leave out of a schema is refused, by its path; what it keeps to is not."""

from __future__ import annotations

import enum
import json
import time
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, TypeAdapter

from api import formed
from modelops.api import forms
from modelops.api.chat import LOOSE, ChatRequest
from modelops.api.errors import InvalidRequest
from modelops.api.forms import Unkept, check

TEXT, INT, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
OBJECT: dict[str, Any] = {"type": "object", "properties": {"a": INT, "b": TEXT}}
ONE = {"type": "object", "properties": {"kind": {"const": "one"}}, "required": ["kind"]}
TWO = {"type": "object", "properties": {"kind": {"enum": ["two", "three"]}}, "required": ["kind"]}


def pattern(text: str) -> dict[str, Any]:
    return {"type": "string", "pattern": text}


def fault(schema: Any, *, strict: bool = True) -> str:
    """The path of what is refused; empty where nothing is."""
    try:
        check(schema, strict=strict)
    except Unkept as error:
        assert error.why
        return error.path or "the whole"
    return ""


@given(formed.KEPT)
def test_what_is_kept_to_is_never_refused(schema: dict[str, Any]) -> None:
    check(schema, strict=True)
    check(schema, strict=False)


REFUSED: list[tuple[dict[str, Any], str]] = [
    # keywords that no grammar is made of
    (OBJECT | {"minProperties": 1}, "minProperties"),
    (OBJECT | {"maxProperties": 1}, "maxProperties"),
    ({"type": "object", "patternProperties": {"^a$": INT}}, "patternProperties"),
    ({"type": "object", "additionalProperties": INT, "propertyNames": {"enum": ["a"]}}, "propertyNames"),
    (OBJECT | {"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    (OBJECT | {"unevaluatedProperties": False}, "unevaluatedProperties"),
    ({"type": "array", "items": INT, "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": INT}, "contains"),
    (INT | {"multipleOf": 5}, "multipleOf"),
    (NUMBER | {"maximum": 1}, "maximum"),
    (NUMBER | {"exclusiveMinimum": 0}, "exclusiveMinimum"),
    (INT | {"not": {"const": 1}}, "not"),
    (OBJECT | {"if": {"required": ["a"]}, "then": {"required": ["b"]}}, "if"),
    ({"$dynamicRef": "#a"}, "$dynamicRef"),
    (TEXT | {"maxLenght": 5}, "maxLenght"),
    # of no type: an engine lets any value be
    ({"minimum": 3}, "minimum"),
    ({"required": ["a"]}, "required"),
    ({"uniqueItems": True}, "uniqueItems"),
    # formats and patterns
    (TEXT | {"format": "email"}, "format"),
    (TEXT | {"format": "uuid4"}, "format"),
    (TEXT | {"format": ["date"]}, "format"),
    (INT | {"format": "int32"}, "format"),
    (TEXT | {"format": "date", "maxLength": 5}, "maxLength"),
    (pattern("^a+$") | {"maxLength": 5}, "maxLength"),
    (pattern("^a+$") | {"format": "date"}, "format"),
    # bounds of integers that the engine's grammar has wrong
    (INT | {"minimum": 100}, "minimum"),
    (INT | {"exclusiveMinimum": 99}, "exclusiveMinimum"),
    (INT | {"maximum": -1}, "maximum"),
    (INT | {"minimum": 1, "exclusiveMinimum": 5}, "exclusiveMinimum"),
    (INT | {"minimum": "1"}, "minimum"),
    (INT | {"minimum": 0, "maximum": 10**30}, "maximum"),
    # what one keyword wins over
    ({"$ref": "#/$defs/a", "maxLength": 5, "$defs": {"a": TEXT}}, "maxLength"),
    ({"anyOf": [TEXT], "type": "string"}, "type"),
    ({"oneOf": [TEXT], "anyOf": [TEXT]}, "anyOf"),
    ({"enum": ["a"], "maxLength": 5}, "maxLength"),
    ({"const": "a", "enum": ["a"]}, "enum"),
    ({"type": "integer", "enum": [1, "a"]}, "enum"),
    ({"type": ["string", "null"], "const": 5}, "const"),
    (OBJECT | {"allOf": [OBJECT]}, "allOf"),
    ({"type": "array", "items": INT, "prefixItems": [TEXT]}, "prefixItems"),
    ({"type": "array", "prefixItems": [TEXT], "minItems": 2}, "prefixItems"),
    ({"type": "array", "prefixItems": [TEXT, TEXT], "maxItems": 1}, "prefixItems"),
    # several schemas
    ({"allOf": [INT]}, "allOf"),
    ({"allOf": [{"enum": [1, 1]}]}, "allOf"),
    ({"allOf": [{"enum": [1]}, {"enum": [1, 2]}]}, "allOf"),
    ({"allOf": [OBJECT, OBJECT]}, "allOf"),
    ({"allOf": [OBJECT | {"additionalProperties": False}, {"properties": {"c": INT}}]}, "allOf"),
    ({"allOf": [{"anyOf": [OBJECT]}]}, "allOf"),
    ({"allOf": [OBJECT], "required": ["c"]}, "required"),
    ({"allOf": [OBJECT], "minProperties": 1}, "minProperties"),
    ({"type": "string", "allOf": [OBJECT]}, "allOf"),
    ({"type": "string", "allOf": [{"enum": [1]}]}, "allOf"),
    ({"type": "array", "allOf": [OBJECT]}, "allOf"),
    ({"oneOf": [TEXT, {"type": ["string", "null"]}]}, "oneOf"),
    ({"oneOf": [INT, NUMBER]}, "oneOf"),
    ({"oneOf": [{"const": 1}, {"enum": [1.0]}]}, "oneOf"),
    ({"oneOf": [ONE, TWO, ONE]}, "oneOf"),
    ({"oneOf": [ONE, {"type": "object"}]}, "oneOf"),
    ({"oneOf": [ONE | {"required": []}, TWO | {"required": []}]}, "oneOf"),
    ({"oneOf": [{"const": one} for one in range(33)]}, "oneOf"),
    # where it is
    (OBJECT | {"required": ["c"]}, "required"),
    ({"type": "object", "properties": {"a]": INT}, "additionalProperties": True}, "additionalProperties"),
    ({"properties": {"a": {"type": "array", "items": {"not": {}}}}}, "properties.a.items.not"),
    ({"anyOf": [TEXT, {"type": "array", "prefixItems": [{"not": {}}]}]}, "anyOf.1.prefixItems.0.not"),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"additionalProperties": {"not": {}}}}}, "$defs.a.additionalProperties.not"),
    # no schemas, or none that an engine takes
    ({"type": "banana"}, "type"),
    ({"type": None}, "type"),
    ({"properties": []}, "properties"),
    ({"anyOf": []}, "anyOf"),
    ({"enum": []}, "enum"),
    ({"$ref": "#/$defs/none"}, "$ref"),
    ({"$ref": "https://example.com/schema"}, "$ref"),
    (TEXT | {"minLength": -1}, "minLength"),
    (TEXT | {"minLength": 2001}, "minLength"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "path"), REFUSED, ids=str)
def test_what_an_engine_would_ignore_is_refused_by_its_path(schema: dict[str, Any], path: str) -> None:
    assert fault(schema) == path
    assert fault(schema, strict=False) == ""


@pytest.mark.parametrize(
    ("schema", "instead"),
    [
        (NUMBER | {"maximum": 1}, "of type 'number': leave it out"),
        (pattern("^\\d+$"), "'\\d' is no escape that it takes: write [0-9]"),
    ],
)
def test_what_to_do_instead_is_told(schema: dict[str, Any], instead: str) -> None:
    with pytest.raises(Unkept) as error:
        check(schema, strict=True)
    assert error.value.why.endswith(instead)


def test_every_keyword_that_is_not_kept_to_is_refused_of_its_type_and_of_any() -> None:
    for keyword, types in forms.NOT_KEPT.items():
        for kind in (None, *types):
            assert fault(({} if kind is None else {"type": kind}) | {keyword: {"a": 1}}) == keyword


KEPT: list[dict[str, Any]] = [
    {},
    OBJECT | {"required": ["a"], "additionalProperties": False, "title": "T", "x-order": 1, "$schema": "…"},
    {"type": ["string", "null"], "maxLength": 5},
    {"type": ["integer", "array", "null"], "minimum": 0, "items": TEXT},
    {"type": "integer", "maxLength": 5, "pattern": "x", "minProperties": 1},  # which is said of other types
    {"type": "array", "items": INT, "uniqueItems": False},
    {"type": "object", "additionalProperties": True, "minProperties": 0},
    {"type": "array", "items": [INT, TEXT], "additionalItems": False, "minItems": 2},
    {"type": "array", "minItems": 1, "maxItems": 3},
    {"maxLength": 3},
    TEXT | {"format": "password"},
    NUMBER | {"format": "double"},
    INT | {"minimum": -(2**53) + 1, "maximum": 2**53 - 1},
    INT | {"minimum": 100, "maximum": 200},
    INT | {"exclusiveMinimum": -0.5},
    INT | {"minimum": -10, "exclusiveMaximum": -1.5},
    {"type": "number", "enum": [1, 1.5]},
    {"type": "integer", "const": 1.0},
    {"oneOf": [ONE, TWO, TEXT, {"type": "null"}]},
    {"oneOf": [{"$ref": "#/$defs/one"}, TWO], "$defs": {"one": ONE}, "discriminator": {"propertyName": "kind"}},
    {"oneOf": [OBJECT | {"required": ["a"]}, {"type": "object", "properties": {"c": INT}, "required": ["c"]}]},
    {"allOf": [{"$ref": "#/$defs/a"}], "description": "…", "required": ["a"], "$defs": {"a": OBJECT}},
    {"type": "string", "allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"enum": ["x"], "type": "string"}}},
    {"$ref": "#/$defs/a", "description": "…", "default": None, "$defs": {"a": OBJECT, "unused": {"not": {}}}},
]


@pytest.mark.parametrize("schema", KEPT, ids=str)
def test_what_an_engine_keeps_to_is_accepted(schema: dict[str, Any]) -> None:
    assert fault(schema) == ""


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("^$", True),
        ("^[0-9]{5}(?:-[0-9]{4})?$", True),
        ("^[^\"\\\\\\x00-\\x1F]+$", True),
        ("^a\\.b$", True),
        ("^[a-z][\\-_a-z]{0,30}$", True),
        ("^[0-9]+\\.?[0-9]*$", True),
        ("^ab{2,}|c{3}$", True),
        ("^" + "(" * 50 + "a" + ")" * 50 + "$", True),
        ("[0-9]{5}", False),
        ("^a", False),
        ("a$", False),
        ("^", False),
        ("^\\d{5}$", False),
        ("^\\w+$", False),
        ("^[\\d]$", False),
        ("^[\\.]$", False),
        ("^.*$", False),
        ("^[^a]$", False),
        ('^[ -~]$', False),
        ("^[A-z]$", False),
        ('^a"c$', False),
        ("^a\\\\b$", False),
        ("^a\tb$", False),
        ("^\\n$", False),
        ("^(?=a)a$", False),
        ("^(?i:a)$", False),
        ("^(?<n>a)$", False),
        ("^a$b$", False),
        ("^a^b$", False),
        ("^a*?b$", False),
        ("^a{2}{3}$", False),
        ("^a{2, 3}$", False),
        ("^a{,3}$", False),
        ("^a{2001}$", False),
        ("^(a*)*$", False),
        ("^()+$", False),
        ("^v\\.?$", False),  # which would repeat the v too
        ("^é+$", False),
        ("^[z-a]$", False),
        ("^[]$", False),
        ("^[a$", False),
        ("^(a$", False),
        ("^a)$", False),
        ("^*a$", False),
        ("^a]$", False),
        ("^a\\$", False),
        ("^" + "(" * 51 + "a" + ")" * 51 + "$", False),
    ],
)  # fmt: skip
def test_patterns(text: str, kept: bool) -> None:
    assert fault(pattern(text)) == ("" if kept else "pattern")
    assert fault(pattern(text), strict=False) == ""


# --- what an engine hangs or dies of ---
def chain(length: int) -> dict[str, Any]:
    links = {f"a{at}": {"$ref": f"#/$defs/a{at + 1}"} for at in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": links | {f"a{length}": INT}}


RING = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
DEADLY: list[tuple[dict[str, Any], str]] = [
    (TEXT | {"minLength": 5, "maxLength": 2}, "minLength"),
    ({"type": "array", "items": INT, "minItems": 5, "maxItems": 2}, "minItems"),
    (pattern("^a{3,1}$"), "pattern"),
    (pattern("^\\d{ 3,1}$"), "pattern"),
    (INT | {"minimum": 10**17}, "minimum"),
    (INT | {"maximum": -(10**17)}, "maximum"),
    (INT | {"minimum": 5, "maximum": 3}, "minimum"),
    (RING | {"allOf": [{"$ref": "#/$defs/a"}]}, "allOf"),
    (RING | {"allOf": [{"anyOf": [INT, {"$ref": "#/$defs/b"}]}]}, "allOf"),
    ({"type": ["object", "object"], "properties": {"a": INT}}, "type"),
    ({"type": ["object", "string"], "allOf": [OBJECT]}, "allOf"),
    ({"type": "object", "properties": {f"p{at}": INT for at in range(501)}}, "properties"),
    (chain(10_000), "the whole"),
    # which an engine takes for no schemas
    ({"type": "array", "items": True}, "items"),
    ({"type": "array", "prefixItems": [INT, None]}, "prefixItems.1"),
    ({"properties": {"a": False}}, "properties.a"),
    # too much to try for each token
    ({"enum": [*range(1001)]}, "enum"),
    ({"anyOf": [{"const": one} for one in range(1001)]}, "anyOf"),
    (
        {"properties": {"a": {"enum": [*range(600)]}, "b": {"anyOf": [{"enum": [*range(400)]}]}}},
        "properties.b.anyOf.0.enum",
    ),
    (pattern("^" + "a" * 5000 + "$"), "pattern"),
    *(
        (pattern(f"^{text}$"), "pattern")
        for text in (
            "(a?){1000}",
            "(?:a?){17}",
            "(.?){0,1000}",
            "(a|){17}",
            "(b(" + "a?" * 17,
            "(a?b*){9}",
            "[a-z ]?" * 17,
            "(a?|b){17}",
            "(a?){ +17}",
            "(b" + "a?" * 9 + "){2}" + "a?" * 9,
            "(" + "[a-z ]?" * 8 + ")*",
        )
    ),
]


@pytest.mark.parametrize(("schema", "path"), DEADLY, ids=[str(path) for _, path in DEADLY])
def test_what_an_engine_does_not_survive_is_refused_of_functions_too(schema: dict[str, Any], path: str) -> None:
    assert fault(schema) == fault(schema, strict=False) == path
    inner = {"type": "object", "properties": {"x": {k: v for k, v in schema.items() if k != "$defs"}}}
    inner |= {"$defs": schema.get("$defs", {})}
    with pytest.raises(InvalidRequest, match=r"tools\.0\.parameters: .+"):
        ChatRequest.parse(REQUEST | {"tools": [{"name": "f", "parameters": json.dumps(inner)}]})


@pytest.mark.parametrize(
    "text",
    ["(a?){16}", "a?" * 16, "(a?b){1000}", "(\\w*\\s?)*", "a{0,2000}", "(" + "a?" * 9 + "b){20}", "[?*]" * 40,
     "\\?" * 40, "(a?|b?|c?){9}", "(colou?r|" * 30 + "x" + ")" * 30],
)  # fmt: skip
def test_parts_that_may_be_empty_are_no_trouble_where_they_are_few_in_a_row(text: str) -> None:
    assert fault(pattern(f"^{text}$"), strict=False) == ""


def test_large_schemas_cost_little() -> None:
    wide = {f"p{at}": {"enum": [at], "type": "integer"} for at in range(10_000)}
    large: list[dict[str, Any]] = [
        {"type": "object", "properties": wide, "required": [*wide]},
        {"anyOf": [{"allOf": [{"$ref": "#/$defs/a0"}]}] * 5000, "$defs": chain(400)["$defs"]},
        pattern("{" + "1" * 100_000),
        pattern("^" + "(" * 100_000 + "$"),
        *(pattern(one * (4990 // len(one))) for one in ("(", "[", "{1,", "(?<", "a?", "(a?|", "\\", "{ ")),
    ]
    began = time.process_time()
    for schema in large:
        fault(schema)
        fault(schema, strict=False)
    assert time.process_time() - began < 2


WORDS = st.sampled_from([*(word for words in forms.KEPT.values() for word in words), *forms.NOT_KEPT])


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda one: st.lists(one, max_size=3) | st.dictionaries(WORDS, one, max_size=4),
    )
)
def test_what_is_no_schema_breaks_nothing(schema: Any) -> None:
    fault(schema)
    fault(schema, strict=False)


# --- what pydantic makes of types, which is what most clients send ---
class Colour(enum.Enum):
    RED = "red"


class Inner(BaseModel):
    count: Annotated[int, Field(ge=0, le=10)]
    part: float = 0.5


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Tree(BaseModel):
    inner: Inner = Field(description="…")
    colour: Colour | None = None
    at: datetime
    children: list[Tree] = []
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pair: tuple[int, str]
    names: dict[str, int] = {}
    anything: Any = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: UUID
    name: Annotated[str, Field(min_length=1, max_length=20, pattern="^[a-z]+$")] | Literal[5] = 5


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        (Tree, ""),
        (Open, "properties.name.anyOf.0.minLength"),
        (Annotated[float, Field(ge=0)], "minimum"),
        (set[int], "uniqueItems"),
        (AnyUrl, "format"),
        (dict[Literal["a"], int], "propertyNames"),
    ],
    ids=str,
)
def test_what_pydantic_makes(kind: Any, path: str) -> None:
    assert fault(TypeAdapter(kind).json_schema()) == path


# --- requests ---
REQUEST: dict[str, Any] = {"model_name": "m", "messages": [{"role": "user", "content": "Hello"}]}


def test_a_request_says_which_field_and_where() -> None:
    schema = json.dumps({"type": "object", "properties": {"zip": pattern("[0-9]{5}")}})
    with pytest.raises(InvalidRequest, match=r"^json_schema: properties\.zip\.pattern: .*begin with '\^'"):
        ChatRequest.parse(REQUEST | {"json_schema": schema})
    found = ChatRequest.parse(REQUEST | {"json_schema": schema}, LOOSE)
    assert found.json_schema == schema
    assert found.json_schema.read == json.loads(schema)


def test_functions_may_say_more_than_is_kept_to() -> None:
    parameters = json.dumps({"type": "object", "properties": {"mail": TEXT | {"format": "email"}}})
    found = ChatRequest.parse(REQUEST | {"tools": [{"name": "f", "parameters": parameters}, {"name": "g"}]})
    assert found.tools[0].parameters.read == json.loads(parameters)
    assert found.tools[1].parameters.read == {}
    assert found.model_copy(update={"seed": 5}).tools[0].parameters.read is found.tools[0].parameters.read
