"""The gate's judgement, of figures that are made up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from modelops.learning import parity
from modelops.learning.parity import compare

COUNT = 40


def reference(change: float = 1.0) -> dict[str, Any]:
    """What a trainer may have said; the adapter changes every logarithm by `change`."""
    half = COUNT // 2
    one = {
        "prompt": [1],
        "answer": [2] * half,
        "logprobs": [-2.0] * half,
        "best": [7] * half,
        "base_logprobs": [-2.0 - change] * half,
    }
    return {"sequences": [one, one], "positions": COUNT, "rows": []}


def measured(off: float = 0.002, *, others: int = 0, base_off: float | None = 0.002, change: float = 1.0) -> Any:
    """What an engine may say that is `off`, and sees another token as the best at `others` positions."""
    best = [*([9] * others), *([7] * (COUNT - others))]
    half = COUNT // 2
    found = []
    for part in (best[:half], best[half:]):
        one: dict[str, Any] = {"logprobs": [-2.0 + off] * half, "best": part}
        if base_off is not None:
            one["base_logprobs"] = [-2.0 - change - base_off] * half
        found.append(one)
    return {"sequences": found, "other_tokens": 0}


def test_what_only_rounding_tells_apart_passes() -> None:
    found = compare(reference(), measured(others=2))
    assert (found.passed, found.reason) == (True, "")
    assert found.figures() == {
        "positions": COUNT,
        "agreement": 0.95,
        "mean_difference": 0.002,
        "worst": 0.002,
        "change": 1.0,
        "base_difference": 0.002,
        "share": 1.002,
    }


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (measured(0.03), "differ by 0.03 in the mean (at most 0.004)"),
        (measured(0.03, base_off=0.018), "differ by 0.03 in the mean (at most 0.02)"),
        (measured(0.03, base_off=None), "differ by 0.03 in the mean (at most 0.02)"),
        (measured(others=3), "agree on the most probable token at 92% of 40 positions (at least 95%)"),
        (measured(base_off=0.03), "even without the adapter, engine and trainer differ by 0.03"),
        (measured(math.nan), "the adapter is damaged"),
        (measured(base_off=math.nan), "the adapter is damaged"),
        ({**measured(), "other_tokens": 2}, "the engine makes other tokens of 2 rows"),
    ],
)
def test_what_is_refused_says_why(seen: Any, reason: str) -> None:
    found = compare(reference(), seen)
    assert not found.passed
    assert reason in found.reason


@pytest.mark.parametrize(("off", "most"), [(0.03, parity.MOST_DIFFERENCE), (0.7, 1.0)])
def test_a_training_that_has_ruined_the_model_is_blamed_for_it(off: float, most: float) -> None:
    hint = "of which the loss has not fallen: a lower learning_rate may help"
    seen = measured(off, base_off=None)
    assert hint in compare(reference(), seen, most=most, fallen=False).reason
    assert hint not in compare(reference(), seen, most=most).reason
    assert hint not in compare(reference(0.009), measured(change=0.009), fallen=False).reason, "that needs more"
    assert compare(reference(), measured(), fallen=False).passed


def test_an_adapter_may_differ_by_what_its_base_does() -> None:
    assert compare(reference(), measured(0.0059, base_off=0.003)).passed
    assert not compare(reference(), measured(0.0061, base_off=0.003)).passed
    assert compare(reference(), measured(0.0039, base_off=0.0)).passed
    assert not compare(reference(), measured(0.0041, base_off=0.0)).passed
    assert compare(reference(), measured(0.0199, base_off=0.015)).passed


def test_an_adapter_that_changes_nothing_is_refused() -> None:
    found = compare(reference(0.009), measured(change=0.009))
    assert "changes hardly anything (0.009 in the mean)" in found.reason


def test_a_merged_model_has_no_base_to_compare() -> None:
    found = compare(reference(), measured(base_off=None))
    assert (found.passed, found.base_difference) == (True, None)


def test_rounded_weights_may_differ_more() -> None:
    rough = measured(0.1, others=4, base_off=None)
    assert not compare(reference(), rough).passed
    assert compare(reference(), rough, most=parity.MOST_DIFFERENCE_Q8_0).passed
    assert not compare(reference(), measured(0.3, base_off=None), most=parity.MOST_DIFFERENCE_Q8_0).passed


def rounded(change: float, share: float, rounding: float) -> tuple[dict[str, Any], Any]:
    """A trainer's account and a merged model's that has a share of the change: both of either sign, as rounding is."""
    half = COUNT // 2
    changes = [change if number % 2 else -change for number in range(half)]
    rounds = [rounding if number // 2 % 2 else -rounding for number in range(half)]
    ours = {"logprobs": [-2.0 + each for each in changes], "base_logprobs": [-2.0] * half, "best": [7] * half}
    seen = [-2.0 + share * each + off for each, off in zip(changes, rounds, strict=True)]
    found = {"sequences": [{"logprobs": seen, "best": [7] * half}] * 2, "other_tokens": 0}
    return {"sequences": [ours] * 2}, found


@pytest.mark.parametrize("change", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.6])
def test_a_merged_model_without_the_adapter_is_refused_however_little_that_changes(change: float, share: float) -> None:
    ours, seen = rounded(change, share, 0.02)
    found = compare(ours, seen, most=parity.MOST_DIFFERENCE_Q8_0)
    assert found.mean_difference < parity.MOST_DIFFERENCE_Q8_0
    assert f"the engine shows {share:.0%} of what the adapter changes ({change:.2g} in the mean)" in found.reason


@pytest.mark.parametrize("change", [0.1, 0.2, 1.0])
def test_a_merged_model_with_the_adapter_passes_where_rounding_is_as_much(change: float) -> None:
    ours, seen = rounded(change, 1.0, 0.1)
    assert compare(ours, seen, most=parity.MOST_DIFFERENCE_Q8_0).passed


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_change_that_rounding_hides_is_refused(share: float) -> None:
    ours, seen = rounded(0.012, share, 0.1)
    found = compare(ours, seen, most=parity.MOST_DIFFERENCE_Q8_0)
    assert "changes so little (0.012 in the mean) that rounding, which makes 0.1 of difference, hides" in found.reason
    assert "publish F16 weights" in found.reason


def test_sixteen_bits_may_not_hide_it_either() -> None:
    ours, seen = rounded(0.015, 0.0, 0.002)
    assert "the engine shows 0% of what the adapter changes" in compare(ours, seen).reason


def test_what_is_hardly_possible_is_the_same_to_both() -> None:
    ours, seen = reference(), measured(base_off=0.0)
    ours["sequences"][0]["logprobs"][0] = -150.0
    ours["sequences"][0]["base_logprobs"][1] = -math.inf
    for sequence in seen["sequences"]:
        sequence["logprobs"][0] = sequence["base_logprobs"][1] = -104.0
    found = compare(ours, seen)
    assert (found.passed, round(found.worst, 6)) == (True, 0.002)


@pytest.mark.parametrize("sequences", [[], [{"logprobs": [-1.0], "best": [7]}] * 2])
def test_figures_of_other_sequences_are_no_figures(sequences: Sequence[Any]) -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        compare(reference(), {"sequences": sequences, "other_tokens": 0})
