"""A serving goal pursued without a machine: what each way gives is made up, and steps are done by writing that down."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modelops.api.goals import ServingObjective
from modelops.goals import serving
from modelops.goals.sampling import together, turns
from modelops.goals.space import MB, Measured, Way
from modelops.goals.targets import ServingFacts
from modelops.goals.values import Act, End, Ending, ModelSeen, Pursued, Seen, Step, Wait
from modelops.serving.gguf import read_header
from support import tiny_gguf

PRESENT = Way(slots=4, batch_size=64, threads=2)
WORKLOAD = {"prompt_tokens": 64, "answer_tokens": 256, "concurrency": 4}


def objective(**fields: Any) -> ServingObjective:
    return ServingObjective.parse({"type": "serving", "model_name": "m", "workload": WORKLOAD, **fields})


def facts(folder: Path, **fields: Any) -> ServingFacts:
    header = read_header(tiny_gguf(folder / "m.gguf"))
    known: dict[str, Any] = {
        "version": "v1",
        "present": PRESENT,
        "wish": "{}",
        "tuned": "",
        "header": header,
        "context_length": 2048,
        "cores": 2,
        "room_bytes": 4096 * MB,
        "real": True,
        "sizes": {"Q8_0": header.file_bytes + MB, "Q4_0": header.file_bytes - 10},
    }
    return ServingFacts(**{**known, **fields})


def gives(rate: float) -> Measured:
    """What a way gives that answers so many requests per second."""
    return Measured(rate, 256 * rate, 64 * rate, 4000 / rate if rate else 1e9, 100.0, 8, 8 / rate if rate else 1.0)


@dataclass
class Tuned:
    """A goal; `rate` says how many requests per second a way answers, 0 for one that cannot be measured; `loses` what
    a format does; `breaks` what step cannot be done, and why; `sways` how often the rate the present way answers at the
    beginning of a round it answers at its end."""

    objective: ServingObjective
    facts: ServingFacts
    rate: Callable[[Way], float]
    loses: Mapping[str, float] = field(default_factory=dict)
    breaks: Callable[[Act], str] = lambda act: ""
    sways: Callable[[Act], float] = lambda act: 1.0
    model: ModelSeen = field(default_factory=lambda: ModelSeen("m", version="v1", status="loaded"))
    steps: list[Step] = field(default_factory=list)
    elapsed: float = 0.0
    said: list[str] = field(default_factory=list)
    progress: list[float] = field(default_factory=lambda: [0.0])
    decisions: int = 0
    ending: Ending | None = None

    @property
    def goal(self) -> Pursued:
        return Pursued("g", self.objective, steps=tuple(self.steps))

    def seen(self, **fields: Any) -> Seen:
        return Seen(**{"elapsed_s": self.elapsed, "models": {"m": self.model}, "facts": self.facts, **fields})

    def decide(self) -> Act | Wait | End:
        self.decisions += 1
        assert self.decisions < 500, "it does not end"
        found = self._decide()
        assert found == self._decide(), "the same is decided again"
        if not isinstance(found, End) and found.progress is not None:
            assert self.progress[-1] <= found.progress < 1
            self.progress.append(found.progress)
        return found

    def _decide(self) -> Act | Wait | End:
        if self.ending:
            return serving.give_up(self.goal, self.seen(), self.ending)
        return serving.decide(self.goal, self.seen())

    def run(self) -> End:
        """Pursue it to its end."""
        while True:
            decision = self.decide()
            if isinstance(decision, End):
                return decision
            if isinstance(decision, Wait):
                self.elapsed += max(decision.seconds, 0.1)
            else:
                self.do(decision)

    def do(self, act: Act) -> None:
        """Do one step."""
        self.said.append(act.why)
        self.ending = self.ending or act.ending
        began, self.elapsed = self.elapsed, self.elapsed + 1.0
        step = Step(len(self.steps) + 1, act.action, act.why, began, self.elapsed)
        error = self.breaks(act)
        self.steps.append(replace(step, error=error) if error else replace(step, result=self._result(act)))

    def _result(self, act: Act) -> dict[str, Any]:
        given = act.action.arguments
        if act.action.kind == "measure":
            ways = [Way.from_json(each) for each in given["ways"]]
            measured = [self._measured(way, given["pairs"]) for way in ways]
            if given["pairs"] == 1 and len(ways) > 1:  # it begins and ends with the present way
                samples = [gives(self.rate(ways[0]) * times).to_json() for times in (1.0, self.sways(act))]
                measured[0] = together(samples)
            return {"measured": measured}
        if act.action.kind == "rewrite":
            loses = self.loses.get(given["weights"] or given["cache_type"], 0.0)
            return {"kept": loses <= self.objective.max_perplexity_increase, "increase": loses}
        if act.action.kind == "apply":
            version = "v2" if "weights" in given["changes"] else "v1"
            self.model = replace(self.model, version=version)
            return {"version": version}
        if act.action.kind == "restore":
            self.model = replace(self.model, version=given["version"])
        return {}

    def _measured(self, way: Way, pairs: int) -> dict[str, Any]:
        if not (rate := self.rate(way)):
            return {"error": "the engine ended"}
        told = gives(rate).to_json()
        return told if pairs == 1 else {**told, "samples": [told] * pairs}

    def kinds(self) -> list[str]:
        return [step.action.kind for step in self.steps]

    @property
    def measurements(self) -> int:
        """How often an engine was measured."""
        measured = [step.action.arguments for step in self.steps if step.action.kind == "measure" and not step.error]
        return sum(len(turns(given["pairs"], len(given["ways"]))) for given in measured)
