"""Scores: against SQuAD's own evaluation and ROUGE's own words, rewritten here as simply as they are described."""

from __future__ import annotations

import math
import random
import re
import statistics
import string
from collections import Counter
from functools import lru_cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelops.learning import scoring
from modelops.learning.scoring import (
    ANSWERS,
    aggregate,
    bootstrap,
    contains,
    exact_match,
    f1,
    mcnemar,
    paired,
    perplexity,
    rouge_l,
)

WORDS = ["Paris", "paris", "the", "The", "a", "an", "France.", "is", "in", "U.S.", "x-ray", "'tis", "42", "4,2", "--"]
texts = st.lists(st.sampled_from(WORDS), max_size=7).map(" ".join)
anything = st.text(max_size=30)


# --- the oracles ---
def squad_words(text: str) -> list[str]:
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def squad_f1(answer: str, wanted: str) -> float:
    found, expected = squad_words(answer), squad_words(wanted)
    same = sum((Counter(found) & Counter(expected)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(found), same / len(expected)
    return 2 * precision * recall / (precision + recall)


def longest(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    @lru_cache(None)
    def upto(first: int, second: int) -> int:
        if first == 0 or second == 0:
            return 0
        if one[first - 1] == other[second - 1]:
            return upto(first - 1, second - 1) + 1
        return max(upto(first - 1, second), upto(first, second - 1))

    return upto(len(one), len(other))


# --- what is always so ---
@given(texts, texts)
def test_words_are_compared_as_squad_does_it(answer: str, wanted: str) -> None:
    if not squad_words(wanted):
        return
    assert exact_match(answer, wanted) == (squad_words(answer) == squad_words(wanted))
    assert math.isclose(f1(answer, wanted), squad_f1(answer, wanted))


@given(st.lists(st.sampled_from("abcd"), max_size=40), st.lists(st.sampled_from("abcd"), max_size=40))
def test_the_longest_common_subsequence_is_the_tables(one: list[str], other: list[str]) -> None:
    assert scoring._common(one, other) == longest(tuple(one), tuple(other))


@given(texts, texts)
def test_rouge_l_is_the_harmonic_mean_of_its_two_parts(answer: str, wanted: str) -> None:
    found, expected = (re.sub(r"[^a-z0-9]+", " ", text.lower()).split() for text in (answer, wanted))
    if not expected:
        return
    same = longest(tuple(found), tuple(expected))
    harmonic = 0.0
    if same:
        precision, recall = same / len(found), same / len(expected)
        harmonic = 2 * precision * recall / (precision + recall)
    assert math.isclose(rouge_l(answer, wanted), harmonic)


@given(anything, anything)
@example("", "a")
@example("", "...")
@example("東京", "京東")
def test_scores_are_from_0_to_1_and_agree(answer: str, wanted: str) -> None:
    scores = {name: score(answer, wanted) for name, score in ANSWERS.items()}
    assert all(0.0 <= score <= 1.0 for score in scores.values())
    if wanted.strip():
        assert scores["exact_match"] <= scores["contains"]
        assert scores["exact_match"] <= scores["f1"]


@given(anything.filter(str.strip))
def test_what_is_wanted_is_right_in_any_case_and_with_any_spaces(wanted: str) -> None:
    for score in ANSWERS.values():
        assert score(wanted, wanted) == 1.0
        assert score(f"\n {wanted}  ", wanted) == 1.0


@given(anything.filter(str.strip))
def test_an_empty_answer_is_wrong(wanted: str) -> None:
    assert {score("", wanted) for score in ANSWERS.values()} == {0.0}


@given(anything, anything)
def test_f1_and_rouge_are_the_same_from_both_sides(one: str, other: str) -> None:
    if squad_words(one) and squad_words(other):
        assert f1(one, other) == f1(other, one)
    if one.isalnum() and other.isalnum():
        assert math.isclose(rouge_l(one, other), rouge_l(other, one))


# --- cases ---
@pytest.mark.parametrize(
    ("answer", "wanted", "right"),
    [
        ("The  capital is Paris.", "capital is paris", True),
        ("Paris", "Paris, France", False),
        ("Caf\u00e9", "CAFE\u0301", True),
        ("«Łódź»", "łódź", True),
        ("A", "a.", True),  # of a multiple choice
        ("The", "A", False),
        ("B", "A", False),
        ("?!", "?!", True),
        ("?", "!", False),
        ("東 京。", "東京", True),
        ("C++", "C", True),  # as SQuAD has it
    ],
)
def test_exact_match(answer: str, wanted: str, right: bool) -> None:
    assert exact_match(answer, wanted) == right


@pytest.mark.parametrize(
    ("answer", "wanted", "right"),
    [
        ("The capital of France is Paris.", "Paris", True),
        ("The Parisian", "Paris", False),
        ("15", "5", False),
        ("The answer is A.", "A", True),
        ("答案是东京。", "东京", True),
        ("New old York", "New York", False),
        ("", "Paris", False),
    ],
)
def test_contains(answer: str, wanted: str, right: bool) -> None:
    assert contains(answer, wanted) == right


def test_rouge_l_as_its_author_shows_it() -> None:
    # Lin 2004, section 3.1: the reference, and two answers with the same words.
    wanted = "police killed the gunman"
    assert rouge_l("police kill the gunman", wanted) == 0.75
    assert rouge_l("the gunman kill police", wanted) == 0.5


def test_perplexity_is_what_each_token_is_like_one_of_so_many() -> None:
    assert math.isclose(perplexity(5 * math.log(1 / 8), 5), 8.0)
    assert perplexity(0.0, 3) == 1.0
    assert math.isfinite(perplexity(-math.inf, 1))


def test_long_answers_take_no_time() -> None:
    assert rouge_l("w " * 20_000, "w " * 20_000 + "x") < 1.0


def test_means_are_over_the_rows_that_have_the_score() -> None:
    rows = [{"f1": 1.0, "contains": 0.0}, {"f1": 0.5}, {}]
    assert aggregate(rows) == {"f1": 0.75, "contains": 0.0}
    assert aggregate([]) == {}


def test_rows_are_compared_one_by_one() -> None:
    found = paired("f1", [0.0, 1.0, 0.5, 0.2], [1.0, 0.0, 0.5, 0.3])
    assert (found.wins, found.losses, found.ties, found.test) == (2, 1, 1, "bootstrap")
    with pytest.raises(ValueError, match="shorter"):
        paired("f1", [0.0, 1.0], [0.0])


# --- whether the later one loses ---
@pytest.mark.parametrize(
    ("wins", "losses", "p_loses"),
    [
        (0, 0, 1.0),
        (5, 0, 1.0),
        (0, 1, 0.5),
        (0, 4, 1 / 16),
        (0, 5, 1 / 32),
        (1, 5, 7 / 64),  # 6 and 1 of the 64 ways
        (3, 9, 299 / 4096),
    ],
)
def test_mcnemar_by_the_table(wins: int, losses: int, p_loses: float) -> None:
    assert mcnemar(wins, losses) == pytest.approx(p_loses, abs=5e-7)
    before, after = [0.0] * wins + [1.0] * (losses + 3), [1.0] * wins + [0.0] * losses + [1.0] * 3
    found = paired("exact_match", before, after)
    assert (found.wins, found.losses, found.ties, found.test) == (wins, losses, 3, "mcnemar")
    assert found.p_loses == mcnemar(wins, losses)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_counts_the_ways(wins: int, losses: int) -> None:
    changed = wins + losses
    ways = sum(math.comb(changed, got) for got in range(losses, changed + 1)) / 2**changed
    found = mcnemar(wins, losses)
    assert 0.0 < found <= 1.0
    assert found == pytest.approx(ways, rel=1e-9)
    assert mcnemar(wins, losses + 1) <= found + 1e-12


def test_mcnemar_of_very_many_rows_takes_no_time() -> None:
    assert mcnemar(49_000, 51_000) < 1e-6
    assert mcnemar(50_000, 50_000) >= 0.5


@given(st.lists(st.floats(-1, 1), max_size=30))
def test_the_bootstrap_is_the_same_each_time_and_sees_no_loss_where_there_is_none(gained: list[float]) -> None:
    found = bootstrap(gained)
    assert found == bootstrap(gained)
    assert 0.0 < found <= 1.0
    if all(gain >= 0 for gain in gained):
        assert found == 1.0
    if gained and all(gain < 0 for gain in gained):
        assert found == max(1 / 2001, 0.5 ** len(gained))


def test_the_bootstrap_tells_what_a_t_test_tells_of_many_rows() -> None:
    chance = random.Random(3)
    for mean in (-0.05, -0.03, 0.0):
        gained = [chance.gauss(mean, 0.2) for _ in range(150)]
        t = statistics.mean(gained) / (statistics.stdev(gained) / math.sqrt(len(gained)))
        assert bootstrap(gained) == pytest.approx(statistics.NormalDist().cdf(t), abs=0.03)


def test_a_row_that_has_become_impossible_loses() -> None:
    assert bootstrap([0.1] * 20 + [-math.inf]) == 0.0
    assert bootstrap([0.1, math.nan]) == 0.0
    assert bootstrap([-math.inf, math.inf]) == 1.0
