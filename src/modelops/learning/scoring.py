"""How answers are compared with what they should be. Pure.

Each score of an answer is from 0 to 1. Answers are first made comparable as SQuAD's evaluation does it (Rajpurkar et
al. 2016): case, punctuation and English articles do not count. Where nothing else is left of what is wanted, as of the
"A" of a multiple choice, they do. Ideographs, kana and Hangul, which stand without spaces, are words of one character.
"""

from __future__ import annotations

import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from modelops.api.learning import Metric

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_ALONE = re.compile("([\u1100-\u115f\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff])")
#: Of ROUGE: letters and digits. What its authors' script throws away, letters beyond ASCII, is kept.
_ROUGE_WORDS = re.compile(r"[^\W_]+")
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
#: More, and JSON has no number for the perplexity.
_HIGHEST = 700.0
#: The metrics of which an answer has all or nothing.
_RIGHT_OR_WRONG = ("exact_match", "contains")
#: How often rows are drawn anew, and how many rows in all at most: of many rows, fewer draws tell the same.
_DRAWS, _FEWEST_DRAWS, _MOST_DRAWN = 2000, 200, 2_000_000


class _Punctuation(dict[int, int | None]):
    """What each character becomes: nothing, where it is punctuation."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        goes = character in _ASCII_PUNCTUATION or (code > 127 and unicodedata.category(character)[0] == "P")
        kept = self[code] = None if goes else code
        return kept


_PUNCTUATION = _Punctuation()


def exact_match(answer: str, wanted: str) -> float:
    """Whether they are the same words in the same order."""
    found, expected = _words(answer, wanted)
    return float(found == expected)


def contains(answer: str, wanted: str) -> float:
    """Whether the words that are wanted stand in the answer, next to each other and in their order."""
    found, expected = _words(answer, wanted)
    return float(f" {' '.join(expected)} " in f" {' '.join(found)} ")


def f1(answer: str, wanted: str) -> float:
    """The words that both have, each as often as both have it: the harmonic mean of precision and recall."""
    found, expected = _words(answer, wanted)
    return _harmonic((Counter(found) & Counter(expected)).total(), len(found), len(expected))


def rouge_l(answer: str, wanted: str) -> float:
    """ROUGE-L (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"): as `f1`, for the words that both
    have in the same order, whatever stands between. Without a stemmer; articles count."""
    found, expected = (_ROUGE_WORDS.findall(_spread(text)) for text in (answer, wanted))
    if not expected:  # nothing but punctuation is wanted
        found, expected = (_spread(text).split() for text in (answer, wanted))
    return _harmonic(_common(found, expected), len(found), len(expected))


#: The metrics that compare an answer.
ANSWERS: Mapping[Metric, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "contains": contains,
    "f1": f1,
    "rouge_l": rouge_l,
}


def perplexity(logprob: float, tokens: int) -> float:
    """How surprised a model is by each of so many tokens, from the sum of their natural log-probabilities; 1: not at
    all. The highest that is told is about 1e304. `tokens` is 1 or more."""
    return math.exp(min(max(-logprob / tokens, 0.0), _HIGHEST))


def aggregate(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score over the rows that have it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, score in row.items():
            found.setdefault(name, []).append(score)
    return {name: math.fsum(scores) / len(scores) for name, scores in found.items()}


@dataclass(frozen=True)
class Paired:
    """In how many rows the later score is better, worse, or the same.

    `p_loses` is how probable so bad an outcome would be, by `test`, if the later one were in truth not worse: where it
    is small (below 0.05, by custom), the later one loses.
    """

    wins: int
    losses: int
    ties: int
    p_loses: float
    test: Literal["mcnemar", "bootstrap"]


def paired(metric: Metric, before: Sequence[float], after: Sequence[float]) -> Paired:
    """What became of each row's score, of which more is better: of perplexity, the sum of its log-probabilities.

    Raises ValueError where they are not scores of the same rows.
    """
    gained = [later - earlier for earlier, later in zip(before, after, strict=True)]
    wins, losses = sum(gain > 0 for gain in gained), sum(gain < 0 for gain in gained)
    exact = metric in _RIGHT_OR_WRONG
    p_loses = mcnemar(wins, losses) if exact else bootstrap(gained)
    return Paired(wins, losses, len(gained) - wins - losses, p_loses, "mcnemar" if exact else "bootstrap")


def mcnemar(wins: int, losses: int) -> float:
    """The exact one-sided test of McNemar (1947, "Note on the sampling error of the difference between correlated
    proportions or percentages"): how probable `losses` or more would be if each row that has changed were as likely won
    as lost, which is a binomial with one half. Rows that are as they were tell nothing."""
    return _tail(wins + losses, losses) if losses else 1.0


def bootstrap(gained: Sequence[float], seed: int = 0) -> float:
    """The paired bootstrap of the mean difference (Koehn 2004, "Statistical significance tests for machine translation
    evaluation"): in which part of the draws, of as many rows with replacement, the later one does not lose.

    No smaller than what chance alone gives a few rows: that all `n` which differ go one way has 2**-n. The same rows
    give the same answer.
    """
    differ = sum(gain != 0 for gain in gained)
    if not differ or not all(map(math.isfinite, gained)):
        return 1.0 if not differ else _of_infinite(gained)
    chance = random.Random(seed)  # noqa: S311 - for statistics
    draws = max(_FEWEST_DRAWS, min(_DRAWS, _MOST_DRAWN // len(gained)))
    kept = sum(math.fsum(chance.choices(gained, k=len(gained))) >= 0 for _ in range(draws))
    return max((kept + 1) / (draws + 1), 0.5 ** min(differ, 1000))


def _of_infinite(gained: Sequence[float]) -> float:
    """Where a row became impossible, or is no number, and none became possible, it loses; else nothing is known."""
    lost = any(math.isnan(gain) or gain == -math.inf for gain in gained)
    return 0.0 if lost and math.inf not in gained else 1.0


def _tail(tosses: int, heads: int) -> float:
    """How probable it is that a fair coin falls on its head so often, or oftener."""
    whole = math.lgamma(tosses + 1) - tosses * math.log(2)
    each = (whole - math.lgamma(got + 1) - math.lgamma(tosses - got + 1) for got in range(heads, tosses + 1))
    return min(1.0, math.fsum(map(math.exp, each)))


def _words(answer: str, wanted: str) -> tuple[list[str], list[str]]:
    """The words of both, with as little as possible of `wanted` that is all that there is of it."""
    answer, wanted = _spread(answer), _spread(wanted)
    for words in (_without_articles, _without_punctuation):
        if expected := words(wanted):
            return words(answer), expected
    return answer.split(), wanted.split()


def _spread(text: str) -> str:
    """Without case, and with spaces around what is a word by itself."""
    return _ALONE.sub(r" \1 ", unicodedata.normalize("NFC", text).casefold())


def _without_articles(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.translate(_PUNCTUATION)).split()


def _without_punctuation(text: str) -> list[str]:
    return text.translate(_PUNCTUATION).split()


def _harmonic(same: int, found: int, expected: int) -> float:
    return 2 * same / (found + expected) if same else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at once in the bits of a number.

    After Crochemore, Iliopoulos, Pinzon and Reid, "A fast and practical bit-vector algorithm for the longest common
    subsequence problem" (2001): a bit that is 0 is where the row grows.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        same = row & places.get(word, 0)
        row = ((row + same) | (row - same)) & full
    return len(one) - row.bit_count()
