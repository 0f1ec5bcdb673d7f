"""What a goal of the type `serving` is judged by: its model as it is seen, its targets, what was measured. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from modelops.api.goals import ServingObjective, Workload
from modelops.goals.space import Measured, Way
from modelops.goals.values import Pursued, Step
from modelops.serving import memory
from modelops.serving.gguf import Header


@dataclass(frozen=True)
class ServingFacts:
    """What is seen of the model and the machine, and nothing of it changed.

    `version` is the label of the version that answers, and `present` how it is run, by the wish `wish` (JSON); `tuned`
    is what was tuned before (JSON, "" for nothing). `context_length` is that of each slot. `sizes` has the bytes of its
    file in each format that it may be rewritten in. `cache_ram_mb` and `checkpoints` are what an engine keeps beside,
    `draft_bytes` what a model that guesses ahead takes. `room_bytes` can be had for an engine beside the one that
    serves. A measurement is to take about `sample_s`. `real`: the requests themselves were given.
    """

    version: str
    present: Way
    wish: str
    tuned: str
    header: Header
    context_length: int
    cores: int
    room_bytes: int
    sample_s: float = 4.0
    sizes: Mapping[str, int] = field(default_factory=dict)
    cache_ram_mb: int = 0
    checkpoints: int = 0
    draft_bytes: int = 0
    real: bool = False

    def bytes(self, way: Way) -> int:
        """What our formula gives an engine that runs the model so."""
        need = memory.need(
            self.header,
            slots=way.slots,
            context_length=self.context_length,
            batch_size=way.batch_size,
            cache_ram_mb=self.cache_ram_mb,
            cache_type=way.cache_type,
            checkpoints=self.checkpoints,
        )
        other = self.sizes.get(way.weights, self.header.file_bytes) - self.header.file_bytes
        return need.total + other + (self.draft_bytes if way.speculation == "draft" else 0)


@dataclass(frozen=True)
class Probed:
    """What has become of a way that was applied: how many probes in a row, up to now, were not answered; whether an
    answer is waited for; and whether the way is `forgotten`, as a load that asks for the model untuned has it."""

    unanswered: int = 0
    asking: bool = False
    forgotten: bool = False


def guessed_tokens(text: str) -> int:
    """About how many tokens a text has: four bytes are one."""
    return len(text.encode()) // 4


def workload_of(objective: ServingObjective) -> Workload:
    """The workload by lengths. Those of real requests are guessed, where they are not given."""
    described = objective.described
    if not described.requests:
        return described
    prompts = [guessed_tokens(str(each.get("input_text", ""))) for each in described.requests]
    answers = [int(each.get("max_tokens") or described.answer_tokens) for each in described.requests]
    return described.model_copy(
        update={
            "prompt_tokens": min(max(1, round(median(prompts))), 131_072),
            "answer_tokens": min(max(1, round(median(answers))), 32_768),
        }
    )


# --- the target ---
def hurried(objective: ServingObjective) -> bool:
    """Whether there is a target of speed; else the fastest way is looked for."""
    return objective.p95_latency_ms is not None or objective.min_tokens_per_second is not None


def missed(objective: ServingObjective, measured: Measured) -> list[str]:
    """The targets that are missed, each with how far; none: all are met."""
    found = []
    if objective.p95_latency_ms is not None and not measured.p95_latency_ms <= objective.p95_latency_ms:
        found.append(f"p95 {measured.p95_latency_ms:.0f} ms of at most {objective.p95_latency_ms:g}")
    least = objective.min_tokens_per_second
    if least is not None and not measured.tokens_per_second >= least:
        found.append(f"{measured.tokens_per_second:.1f} tokens per second of at least {least:g}")
    if objective.max_memory_mb is not None and not measured.memory_mb <= objective.max_memory_mb:
        found.append(f"{measured.memory_mb:.0f} MB of at most {objective.max_memory_mb}")
    return found


def score(objective: ServingObjective, measured: Measured) -> float:
    """How good it is, the more the better: how near to the target of speed that is farthest, else requests per second;
    0 for what is no number."""
    found = []
    if objective.p95_latency_ms is not None:
        found.append(objective.p95_latency_ms / max(measured.p95_latency_ms, 1e-6))
    if objective.min_tokens_per_second is not None:
        found.append(measured.tokens_per_second / objective.min_tokens_per_second)
    value = min(found, default=measured.requests_per_second)
    return value if math.isfinite(value) and value > 0 else 0.0


# --- what was reached ---
def result(goal: Pursued) -> dict[str, Any]:
    """What is told at the end: what was applied, the present and the best way with their figures, and all that was
    tried."""
    objective = goal.objective
    assert isinstance(objective, ServingObjective)
    steps = [step for step in goal.all("measure") if step.done and not step.error]
    if not steps:
        return {"applied": {}, "tried": []}
    version = steps[-1].action.arguments["version"]
    steps = [step for step in steps if step.action.arguments["version"] == version]
    present = ways_of(steps[0])[0]
    finals = [step for step in steps if step.action.arguments["stage"] == "final"]
    applied = goal.last("apply")
    rows = _table(objective, steps, present)
    told: dict[str, Any] = {
        "applied": {"version": applied.result.get("version", ""), **applied.action.arguments["changes"]}
        if applied
        else {},
        "present": {"way": present.to_json(), "measured": steps[0].result["measured"][0]},
        "tried": list(rows.values()),
        "perplexity": [
            {**step.action.arguments, **step.result, **({"error": step.error} if step.error else {})}
            for step in goal.all("rewrite")
            if step.done
        ],
    }
    if applied:
        finals = [step for step in finals if ways_of(step)[1].to_json() == applied.action.arguments["way"]]
    final = max(finals, key=lambda step: gain(objective, step), default=None)
    if final and gain(objective, final):
        best, better = ways_of(final)[1], gain(objective, final)
        told["present"]["measured"], measured = map(_figures, _told(final))
    else:  # it has ended before the last pairs
        best = max(rows, key=lambda way: rows[way]["ratio"])
        better, measured = rows[best]["ratio"], rows[best]["measured"]
    told["best"] = {"way": best.to_json(), "measured": measured}
    told["gain"], told["changes"] = round(better, 4), best.words(present)
    return told


def _table(objective: ServingObjective, steps: Sequence[Step], present: Way) -> dict[Way, dict[str, Any]]:
    """A row for each way, as it was measured for longest."""
    rows: dict[Way, dict[str, Any]] = {}
    for step in steps:
        found = [score(objective, each) if each else 0.0 for each in map(measured_of, _told(step))]
        for way, each, told in zip(ways_of(step), found, _told(step), strict=True):
            ratio = round(each / found[0], 4) if found[0] else 0.0
            stage = step.action.arguments["stage"]
            rows[way] = {"way": way.words(present), "stage": stage, "ratio": ratio, "measured": _figures(told)}
    return rows


def _figures(told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key != "samples"}


def _told(step: Step) -> list[Mapping[str, Any]]:
    return list(step.result["measured"])


def weights_of(goal: Pursued) -> list[str]:
    """The formats that files were made of for the goal, or may have been."""
    named = [step.action.arguments["weights"] for step in goal.all("rewrite")]
    named += [way.weights for step in goal.all("measure") for way in ways_of(step)]  # as it is served, quantised
    return [*dict.fromkeys(filter(None, named))]


def versions_of(goal: Pursued) -> list[str]:
    """The versions that were measured, or rewritten, for the goal."""
    return [*dict.fromkeys(step.action.arguments["version"] for step in goal.all("rewrite", "measure"))]


def ways_of(step: Step) -> list[Way]:
    """The ways that a step measures, the present one first."""
    return [Way.from_json(each) for each in step.action.arguments["ways"]]


def measured_of(told: Mapping[str, Any]) -> Measured | None:
    """None where that way could not be measured."""
    return None if told.get("error") else Measured.from_json(told)


def gain(objective: ServingObjective, final: Step) -> float:
    """How much better the best was than the present way: the median of the pairs."""
    present, best = (each.get("samples", [each]) if not each.get("error") else [] for each in _told(final))
    pairs = [
        score(objective, Measured.from_json(other)) / (score(objective, Measured.from_json(one)) or 1e-9)
        for one, other in zip(present, best, strict=False)
    ]
    return median(pairs) if pairs else 0.0
