"""Whether the engine computes what the trainer has trained: the gate before anything is published. Pure.

An answer that is still right does not show a wrong conversion: with the rows of q and k in the wrong order, 58 of 60
answers were. The probabilities of tokens do, and most of all of those that are not certain: in a question, or in a text
of something else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Mean difference of the logarithms of the probabilities on F16 weights. What rounding makes of it is 0.001 to 0.0035,
#: on every architecture and with every adapter, and nearly the same without one: at most 1.25 times as much was seen.
#: So an adapter may have twice what its base has, or so little that it says nothing. Of LoRAs that answer with capitals
#: (rank 8 and 16), rows of q and k in the wrong order make 0.08 and 0.23, a twentieth more of alpha 0.02 and 0.09, and
#: one of 210 tensors that is missing 0.006 and 0.03.
MOST_DIFFERENCE = 0.02
_OF_BASE, _NOTHING = 2.0, 0.004
#: The same on Q8_0 weights with an engine that rounds what goes in as well: 0.05 to 0.1 of a good one.
MOST_DIFFERENCE_Q8_0 = 0.25
#: The share of positions at which both hold the same token for the most probable. Near ties may go either way.
LEAST_AGREEMENT = 0.95
#: An adapter that changes less cannot be told from none.
LEAST_CHANGE = 0.01
#: What is measured is at least twice as far from the base as from what was trained: whoever differs by no more than a
#: third of the change is. Rounding to Q8_0 makes 0.02 (two layers) to 0.1 (SmolLM2), whatever the adapter changes. With
#: two layers and changes of 0.1 to 0.8, good models are 5 to 40 times as far, those with half the adapter as far, and
#: those without it an eighth and less.
_NEARER = 2.0
#: Where rounding is more than that, the share of the change that is there tells more than distances do, as most of what
#: rounding does falls out of it: where both are about 0.03, it is 0.9 to 1 of good models, 0.4 of half an adapter, and
#: -0.1 to 0 of none. It has to be nearer to 1 than this, and so have those twice its standard error away; else nobody
#: knows: SmolLM2 shows 1.04 of a change of 0.056, give or take 0.18, and without the adapter -0.6, give or take 0.75.
_MOST_MISSING, _ERRORS = 1 / 3, 2.0
#: Single precision has no smaller probability than that of which this is the logarithm: engines say no less.
_LEAST = -104.0


@dataclass(frozen=True)
class Parity:
    """What the comparison has found, over so many positions; `reason` says why it is not `passed`, and what to do.

    `agreement` is the share at which the most probable token is the same; `mean_difference` and `worst` are of the
    natural logarithms of the probabilities; `change` is the mean of what the adapter makes of them, by the trainer's
    own account, and `base_difference` what they differ by without it (None where that was not measured). `from_base` is
    the mean difference of the engine with it from the trainer without it, and `share` the part of the adapter's change
    that the engine shows, give or take `share_error`, its standard error.
    """

    positions: int
    agreement: float
    mean_difference: float
    worst: float
    change: float
    base_difference: float | None
    from_base: float
    share: float
    share_error: float
    passed: bool
    reason: str

    def figures(self) -> dict[str, float | int | None]:
        """What is kept of it with a version."""
        return {
            "positions": self.positions,
            "agreement": round(self.agreement, 4),
            "mean_difference": round(self.mean_difference, 5),
            "worst": round(self.worst, 5),
            "change": round(self.change, 5),
            "base_difference": None if self.base_difference is None else round(self.base_difference, 5),
            "share": round(self.share, 4),
        }


def compare(
    reference: Mapping[str, Any],
    measured: Mapping[str, Any],
    *,
    most: float = MOST_DIFFERENCE,
    fallen: bool = True,
) -> Parity:
    """Compare what `proving.measure` has found with the trainer's `reference`.

    `most` is the most that the mean difference may be; it is less where the base was measured too, and differs less.
    `fallen`: the loss is less than at first. Probabilities that a training has ruined differ by more than others.
    Raises ValueError or KeyError where the two are not of the same sequences.
    """
    theirs = [*zip(reference["sequences"], measured["sequences"], strict=True)]
    found = _differences([(seen["logprobs"], ours["logprobs"]) for ours, seen in theirs])
    changes = _differences([(ours["logprobs"], ours["base_logprobs"]) for ours, _ in theirs])
    from_base = _differences([(seen["logprobs"], ours["base_logprobs"]) for ours, seen in theirs])
    base = None
    if all("base_logprobs" in seen for _, seen in theirs):
        base = _mean_size(_differences([(ours["base_logprobs"], seen["base_logprobs"]) for ours, seen in theirs]))
    same = [a == b for ours, seen in theirs for a, b in zip(ours["best"], seen["best"], strict=True)]
    share, error = _share(changes, found)
    parity = Parity(
        positions=len(found),
        agreement=sum(same) / len(same),
        mean_difference=_mean_size(found),
        worst=max(map(abs, found)),
        change=_mean_size(changes),
        base_difference=base,
        from_base=_mean_size(from_base),
        share=share,
        share_error=error,
        passed=True,
        reason="",
    )
    reason = _reason(parity, measured.get("other_tokens", 0), most, fallen=fallen)
    return Parity(**{**vars(parity), "passed": not reason, "reason": reason})


def _reason(parity: Parity, other_tokens: int, most: float, *, fallen: bool) -> str:
    if other_tokens:
        return (
            f"the engine makes other tokens of {other_tokens} rows than the trainer did: its chat template or "
            "tokenizer is not the one that was trained with; train on the model that is served"
        )
    if not all(map(math.isfinite, (parity.mean_difference, parity.change, parity.base_difference or 0.0))):
        return "the probabilities are no numbers: the adapter is damaged; train again, with a lower learning_rate"
    if parity.base_difference is not None and parity.base_difference > most:
        return (
            f"even without the adapter, engine and trainer differ by {parity.base_difference:.3g} (at most {most:g}): "
            "they do not have the same base, or read it differently; the job has to be run on the model that is served"
        )
    if parity.change < LEAST_CHANGE:
        return (
            f"the adapter changes hardly anything ({parity.change:.2g} in the mean), so that nothing can be said of "
            "it; train longer, or with a higher learning_rate"
        )
    rounding = most if parity.base_difference is None else max(_NOTHING, _OF_BASE * parity.base_difference)
    limit = min(most, rounding)
    if parity.mean_difference > limit or (parity.agreement < LEAST_AGREEMENT and most <= MOST_DIFFERENCE):
        return (
            f"engine and trainer differ by {parity.mean_difference:.3g} in the mean (at most {limit:.2g}), and agree "
            f"on the most probable token at {parity.agreement:.0%} of {parity.positions} positions (at least "
            f"{LEAST_AGREEMENT:.0%}): {_not_computed(fallen=fallen)}"
        )
    return _hidden(parity, fallen=fallen)


def _not_computed(*, fallen: bool) -> str:
    told = "the engine does not compute what was trained"
    return told if fallen else f"{told}, of which the loss has not fallen: a lower learning_rate may help"


def _hidden(parity: Parity, *, fallen: bool) -> str:
    """What is wrong with an engine that may differ so much, where that is no small part of what the adapter changes."""
    doubt = _ERRORS * parity.share_error
    if abs(parity.share - 1) - doubt > _MOST_MISSING:
        return (
            f"the engine shows {parity.share:.0%} of what the adapter changes ({parity.change:.2g} in the mean): "
            f"{_not_computed(fallen=fallen)}"
        )
    if _NEARER * parity.mean_difference <= parity.from_base or abs(parity.share - 1) + doubt <= _MOST_MISSING:
        return ""
    return (
        f"the adapter changes so little ({parity.change:.2g} in the mean) that rounding, which makes "
        f"{parity.mean_difference:.2g} of difference, hides whether the engine has it; publish F16 weights or an "
        "adapter, train longer, or with a higher learning_rate"
    )


def _share(changes: Sequence[float], off: Sequence[float]) -> tuple[float, float]:
    """The part of the changes that is there where the engine is `off` so much, by least squares, and its error."""
    size = math.fsum(change * change for change in changes)
    if not size:
        return 0.0, math.inf
    more = math.fsum(change * rest for change, rest in zip(changes, off, strict=True)) / size
    rounding = [change * (rest - more * change) for change, rest in zip(changes, off, strict=True)]
    return 1 + more, math.hypot(*rounding) / size


def _differences(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[float]:
    return [max(a, _LEAST) - max(b, _LEAST) for one, other in pairs for a, b in zip(one, other, strict=True)]


def _mean_size(values: Sequence[float]) -> float:
    return math.fsum(map(abs, values)) / len(values)
