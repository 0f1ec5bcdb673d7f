"""What a caller may wish, and how it is kept in the state file."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.serving.wishes import Tuning, Wish


@given(st.from_type(Wish).filter(lambda wish: wish.keep_alive_s is None or not math.isnan(wish.keep_alive_s)))
def test_what_is_kept_is_what_was_wished(wish: Wish) -> None:
    assert Wish.from_json(wish.to_json()) == wish


def test_only_what_was_wished_is_kept() -> None:
    assert json.loads(Wish().to_json()) == {}
    assert json.loads(Wish(slots=2, keep_alive_s=0, pinned=True).to_json()) == {
        "slots": 2,
        "keep_alive_s": 0,
        "pinned": True,
    }


def test_what_this_release_does_not_know_is_left_out() -> None:
    assert Wish.from_json('{"slots": 3, "of_another_release": [1]}') == Wish(slots=3)


@pytest.mark.parametrize(
    ("first", "later", "both"),
    [
        pytest.param({}, {"pinned": True}, {"pinned": True}, id="who comes later pins it"),
        pytest.param({"pinned": True}, {}, {"pinned": True}, id="who does not does not unpin it"),
        pytest.param({"keep_alive_s": 60}, {"keep_alive_s": 5}, {"keep_alive_s": 5}, id="the last keep-alive holds"),
        pytest.param({"keep_alive_s": 60}, {"keep_alive_s": 0}, {"keep_alive_s": 0}, id="also where it is none"),
        pytest.param({"keep_alive_s": 60}, {}, {"keep_alive_s": 60}, id="of one that says none nothing"),
        pytest.param({"slots": 2}, {"slots": 3, "pinned": True}, {"slots": 2, "pinned": True}, id="nothing else"),
    ],
)
def test_whoever_joins_a_load_says_how_long_it_stays_and_nothing_else(
    first: dict[str, Any], later: dict[str, Any], both: dict[str, Any]
) -> None:
    assert Wish(**first).joined(Wish(**later)) == Wish(**both)


@pytest.mark.parametrize(("asked", "units"), [(0, None), (-1, 0), (1, 1), (99, 99)])
def test_the_units_for_gpus_are_as_the_api_writes_them(asked: int, units: int | None) -> None:
    assert Wish(gpu_layers=asked).offloaded == units


def test_how_it_was_tuned_is_kept_whole_and_only_then() -> None:
    wish = Wish(slots=2, tuning=Tuning(batch_size=256, flash_attention="on", speculation="draft", draft="small"))
    assert Wish.from_json(wish.to_json()) == wish
    assert "tuning" not in json.loads(Wish(slots=2).to_json())
    later = '{"tuning": {"threads": 3, "of_another_release": 1}}'
    assert Wish.from_json(later) == Wish(tuning=Tuning(threads=3))
