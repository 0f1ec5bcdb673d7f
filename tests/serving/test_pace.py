"""What is learnt of a model's requests, and when whoever is refused is told to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.serving.pace import LEAST_S, Pace


def after(*requests: tuple[int, int, int, float]) -> Pace:
    pace = Pace()
    for size, prompt, answer, seconds in requests:
        pace = pace.after(prompt_bytes=size, prompt_tokens=prompt, answer_tokens=answer, seconds=seconds)
    return pace


# --- tokens ---
@pytest.mark.parametrize(("size", "tokens"), [(0, 0), (1, 1), (4, 1), (400, 100), (4_000_000, 1_000_000)])
def test_four_bytes_are_a_token_until_it_is_known_better(size: int, tokens: int) -> None:
    assert Pace().prompt_tokens(size) == tokens


def test_the_ratio_is_learnt() -> None:
    pace = after(*[(30_000, 15_000, 10, 1.0)] * 20)
    assert 1900 < pace.prompt_tokens(4000) <= 2000
    pace = after(*[(30_000, 15_000, 10, 1.0)] * 20, *[(60_000, 10_000, 10, 1.0)] * 40)
    assert 4000 / 6 <= pace.prompt_tokens(4000) < 900, "the latest count most"


def test_what_a_chat_template_adds_to_short_texts_is_not_held_against_long_ones() -> None:
    pace = after(*[(5, 40, 10, 1.0)] * 100_000)
    assert pace.prompt_tokens(1000) <= 1000


def test_what_is_not_known_teaches_nothing() -> None:
    assert after((0, 10, 0, 1.0), (10, 0, 0, 1.0)).prompt_tokens(400) == 100


def test_an_answer_is_expected_to_be_as_long_as_they_are_and_no_longer_than_it_may_be() -> None:
    assert Pace().cost(100, 50) == 150
    pace = after((400, 100, 20, 1.0), (400, 100, 40, 1.0))
    assert pace.cost(100, 50) == 130
    assert pace.cost(100, 10) == 110
    assert pace.cost(0, 0) == 1, "nothing is for free"


# --- when to come back ---
def test_the_time_that_a_request_holds_its_slot_is_learnt() -> None:
    assert after((4, 1, 1, 3.0)).service_s == 3.0
    assert after((4, 1, 1, 3.0), (4, 1, 1, 5.0)).service_s == 4.0
    assert 7 < after(*[(4, 1, 1, 3.0)] * 10, *[(4, 1, 1, 9.0)] * 20).service_s < 9


def test_each_who_is_refused_is_told_a_later_time_until_all_who_wait_are_served() -> None:
    pace, now, told = after((4, 1, 1, 4.0)), 100.0, [0.0]
    for _ in range(8):
        told.append(pace.appointment(now, told[-1], slots=2, waiting=4, load_s=0.0))
    assert [when - now for when in told[1:]] == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 12.0, 12.0]


def test_while_it_loads_the_rest_of_the_load_comes_before() -> None:
    assert Pace().appointment(100.0, 0.0, slots=1, waiting=3, load_s=7.0) == 108.0


def test_appointments_that_are_over_are_forgotten() -> None:
    assert Pace().appointment(100.0, 90.0, slots=4, waiting=0, load_s=0.0) == 100.25


@given(
    st.floats(0, 1e6),
    st.floats(0, 2e6),
    st.integers(1, 64),
    st.integers(0, 500),
    st.floats(0, 600),
    st.floats(0.001, 600),
)
def test_nobody_is_told_the_past_or_later_than_the_plan(
    now: float, last: float, slots: int, waiting: int, load_s: float, service_s: float
) -> None:
    pace = Pace(1, service_s)
    told = pace.appointment(now, last, slots=slots, waiting=waiting, load_s=load_s)
    assert now + load_s < told
    assert told <= now + load_s + (waiting + slots) * max(LEAST_S, service_s / slots) + 1e-6
