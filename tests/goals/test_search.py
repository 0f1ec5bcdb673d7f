"""The search for parameters: which way it goes, and that it never goes on for ever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.api.learning import parameters_of
from modelops.goals.search import Outcome, Tried, changed, next_parameters

Parameters = Mapping[str, Any]
outcomes = st.sampled_from(["under", "lost", "failed"])
bases = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.floats(0.01, 1000),
        "learning_rate": st.floats(1e-6, 1.0),
        "rank": st.integers(1, 512),
        "steps": st.integers(0, 100),
        "seed": st.integers(0, 9),
    },
)


def walk(base: Parameters, *found: Outcome) -> list[dict[str, Any] | None]:
    """What is tried one after another, where each has that outcome."""
    tried: list[Tried] = []
    after: list[dict[str, Any] | None] = []
    for outcome in found:
        parameters = next_parameters(base, tried)
        assert parameters is not None
        tried.append(Tried(parameters, outcome))
        after.append(next_parameters(base, tried))
    return after


def test_the_first_is_what_a_job_has_by_itself() -> None:
    assert next_parameters({}, []) == {}
    assert next_parameters({"seed": 7}, []) == {"seed": 7}


def test_below_the_target_more_of_everything_in_turn() -> None:
    assert walk({}, "under", "under", "under", "under", "under") == [
        {"epochs": 6.0},
        {"epochs": 6.0, "learning_rate": 1e-3},
        {"epochs": 6.0, "learning_rate": 1e-3, "rank": 32, "alpha": 64.0},
        {"epochs": 12.0, "learning_rate": 1e-3, "rank": 32, "alpha": 64.0},
        {"epochs": 12.0, "learning_rate": 2e-3, "rank": 32, "alpha": 64.0},
    ]


@pytest.mark.parametrize(
    ("found", "after"),
    [
        (["lost"], {"learning_rate": 2.5e-4}),
        (["failed"], {"learning_rate": 1.25e-4}),
        (["failed", "failed"], {"learning_rate": 3.125e-5}),
        # A lower rate lost nothing and is below the target: the higher one is known, so it is more epochs.
        (["lost", "under"], {"learning_rate": 2.5e-4, "epochs": 6.0}),
        (["under", "lost"], {"learning_rate": 2.5e-4, "epochs": 6.0}),
        (["under", "failed"], {"learning_rate": 1.25e-4, "epochs": 6.0}),
    ],
)
def test_what_was_wrong_says_which_way(found: list[Outcome], after: Parameters) -> None:
    assert walk({}, *found)[-1] == after


def test_what_changes_is_told() -> None:
    assert changed({}, {"epochs": 6.0, "rank": 32, "alpha": 64.0}) == "epochs 6, rank 32"
    assert changed({"learning_rate": 1e-3}, {}) == "learning_rate 0.0005"


def test_what_a_person_has_set_stays() -> None:
    assert walk({"epochs": 2, "learning_rate": 1e-3}, "under") == [
        {"epochs": 2, "learning_rate": 1e-3, "rank": 32, "alpha": 64.0}
    ]
    assert walk({"epochs": 2, "learning_rate": 1e-3, "rank": 8}, "under") == [None]
    assert walk({"steps": 10, "learning_rate": 1e-3}, "lost") == [None]
    assert walk({"alpha": 8}, "under", "under", "under")[-1] == {
        "epochs": 6.0,
        "learning_rate": 1e-3,
        "rank": 32,
        "alpha": 8,
    }


@given(bases, st.lists(outcomes, max_size=40))
def test_nothing_is_tried_twice_and_everything_can_be_trained(base: Parameters, found: list[Outcome]) -> None:
    tried: list[Tried] = []
    for outcome in found:
        parameters = next_parameters(base, tried)
        if parameters is None:
            break
        assert parameters | dict(base) == parameters
        assert parameters not in [each.parameters for each in tried]
        parameters_of("lora", parameters)
        tried.append(Tried(parameters, outcome))


@given(bases, outcomes)
def test_it_ends(base: Parameters, outcome: Outcome) -> None:
    tried: list[Tried] = []
    while (parameters := next_parameters(base, tried)) is not None:
        tried.append(Tried(parameters, outcome))
        assert len(tried) < 200
