"""A schema within another: what it refers to is found there too."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.engines.schemas import Nowhere, embedded

ITEM = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
ORDER: dict[str, Any] = {
    "$defs": {"Item": ITEM, "Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
    "type": "object",
    "properties": {
        "item": {"$ref": "#/$defs/Item"},
        "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
        "node": {"$ref": "#/$defs/Node"},
        "self": {"$ref": "#"},
        "either": {"anyOf": [{"type": "null"}, {"$ref": "#/properties/items"}]},
    },
    "additionalProperties": False,
}


def nested(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` as one of two that are in another."""
    first, more = embedded(schema, "a")
    second, others = embedded({"$defs": {"Item": {"type": "null"}}, "properties": {"x": {"$ref": "#/$defs/Item"}}}, "b")
    return {"properties": {"ours": first, "theirs": second}, "$defs": more | others}


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["item", "items", "node", "next", "self", "either", "n"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(VALUES)
def test_it_takes_the_same_values(value: Any) -> None:
    alone = jsonschema.Draft202012Validator(ORDER)
    within = jsonschema.Draft202012Validator(nested(ORDER))
    assert alone.is_valid(value) == within.is_valid({"ours": value, "theirs": {"x": None}})
    assert not within.is_valid({"ours": {}, "theirs": {"x": 1}}), "the other's of the same name is another"


def test_each_has_a_name_of_its_own_in_letters_and_digits() -> None:
    whole, found = embedded(ORDER, "f3")
    assert all(name.startswith("f3r") and name.isalnum() for name in found)
    assert whole["properties"]["item"] == whole["properties"]["items"]["items"] == {"$ref": "#/$defs/f3r0"}
    assert found["f3r0"] == ITEM
    assert "$defs" not in whole


def test_what_is_no_reference_stays() -> None:
    data: dict[str, Any] = {
        "properties": {"$ref": {"type": "string"}, "default": {"default": {"$ref": "#/none"}}, "$defs": {}},
        "enum": [{"$ref": "#/none"}],
        "const": {"$defs": {}},
        "anyOf": [True, {"$ref": "https://example.org/schema"}, {"$ref": "#anchor"}],
    }
    assert embedded(data, "f") == (data, {})


def test_a_pointer_is_read_as_its_rules_say() -> None:
    schema = {"$defs": {"a/b~c d": {"const": 1}, "list": [False, {"const": 2}]}}
    refs = [{"$ref": "#/$defs/a~1b~0c%20d"}, {"$ref": "#/$defs/list/1"}, {"$ref": "#/$defs/list/0"}]
    assert [*embedded({**schema, "anyOf": refs}, "f")[1].values()] == [{"const": 1}, {"const": 2}, False]


@pytest.mark.parametrize("ref", ["#/$defs/None", "#/anyOf/7", "#/anyOf/x", "#/title", "#/title/0", "#/anyOf"])
def test_one_that_leads_nowhere_is_told(ref: str) -> None:
    with pytest.raises(Nowhere, match=ref.replace("$", r"\$")):
        embedded({"title": "text", "anyOf": [{}], "properties": {"a": {"$ref": ref}}}, "f")


def test_a_long_chain_is_no_deep_one() -> None:
    definitions = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(3000)} | {"d3000": {}}
    assert len(embedded({"$defs": definitions, "$ref": "#/$defs/d0"}, "f")[1]) == 3001
