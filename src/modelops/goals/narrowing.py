"""Which measurement follows for a goal of the type `serving`, and what the last of them say. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from modelops.api.goals import ServingObjective
from modelops.goals import space
from modelops.goals.retries import TRIES
from modelops.goals.space import MB, Measured, Way
from modelops.goals.targets import ServingFacts, gain, hurried, measured_of, missed, result, score, ways_of, workload_of
from modelops.goals.values import Act, Action, Decision, End, Pursued, Step

#: Without a target of speed, a way is applied that is so much faster than the present one, in the last pairs.
FASTER = 1.03
PAIRS = 5
#: A round is made again where the present way, which it begins and ends with, was so much faster once than the other
#: time: something else ran meanwhile, and who was measured beside it fell back for nothing.
UNSTEADY = 1.15
#: So many rounds of a goal are at most: where nothing is ever steady, the last pairs must do.
MOST_AGAIN = 3
#: The progress of a goal when all is measured.
SEARCHED = 0.9
_STAGES = ("formats", "settings", "together")
#: From which progress to which each stage leads; the rest is the watch's.
_SPANS = {"present": (0.0, 0.1), "formats": (0.1, 0.4), "settings": (0.4, 0.7), "together": (0.7, SEARCHED)}
_SAID = {
    "formats": "other formats of the weights",
    "settings": "settings, one at a time",
    "together": "what has helped, together",
}


def most_measurements(formats: int) -> int:
    """More are never made of one version, those that failed not counted, where so many formats are given."""
    stages = (formats, space.MOST_WAYS, space.MOST_TOGETHER)
    again = MOST_AGAIN * (space.MOST_WAYS + 3)
    return 1 + sum(map(space.measurements, stages)) + again + len(stages) * 2 * PAIRS


def progress(steps: Iterable[Step]) -> float:
    """How far a goal is that has done these steps, and applied nothing yet: each measurement is half of what is left of
    its stage. It never falls, also where the search begins anew."""
    reached, end = 0.0, 0.0
    for step in steps:
        if step.action.kind == "measure" and not step.error:
            begin, end = _SPANS.get(step.action.arguments["stage"], (reached, end))  # the last pairs are their stage's
            reached = max(reached, (max(reached, begin) + end) / 2)
    return round(reached, 2)


class Search:
    """What has been measured so far of the version that answers, and what is to be measured next. What was measured of
    another version counts for nothing: the search begins anew where it was replaced."""

    def __init__(self, goal: Pursued, objective: ServingObjective, facts: ServingFacts) -> None:
        self._goal = goal
        self._objective = objective
        self._facts = facts
        self._workload = workload_of(objective)
        ours = [step for step in goal.all("rewrite", "measure") if step.action.arguments["version"] == facts.version]
        self._rewritten = [step for step in ours if step.action.kind == "rewrite"]
        self._steps = [step for step in ours if step.action.kind == "measure" and not step.error]
        # How it was run when it was measured first: whoever loads it otherwise meanwhile changes nothing.
        self._present = Way.from_json(self._steps[0].action.arguments["ways"][0]) if self._steps else facts.present
        self.left_out: set[Way] = set()
        self.short = False

    def next(self) -> Decision:
        """What is to be done next; an Act of the kind `apply`, or an End, where all is known. From then on `left_out`
        has the ways that are not tried as they do not fit at this moment, and `short` says whether one of them would be
        next, or was better than what is."""
        if not self._steps:
            first = {"stage": "present", "round": 0, "ways": [self._present.to_json()], "pairs": 1}
            said = "how the model is run now is measured first"
            return self._measure({**first, "requests": self._at_once}, said)
        base = self._base
        if hurried(self._objective) and not self._missed(self._present, base):
            return self._end("completed", f"the present way meets the target: {base.words()}; nothing is changed")
        centre = self._present
        for stage in _STAGES:
            ways = self._ways(stage, centre)
            if isinstance(ways, Act):
                return ways
            follows = self._stage(stage, ways, centre)
            if isinstance(follows, Act):
                return follows
            centre = self._best(stage, centre)
            if stage == _STAGES[-1] or self._seems_met(centre):
                if centre == self._present:
                    continue
                if (final := self._final(centre)) is None:
                    return self._pairs(centre)
                if decision := self._judged(final, centre):
                    return decision
        return self._without()

    @property
    def _base(self) -> Measured:
        """What the present way gave first."""
        base = self._measured(self._steps[0])[0]
        assert base is not None, "a measurement without the present way is none"
        return base

    @property
    def _at_once(self) -> int:
        return self._workload.concurrency

    # --- ways ---
    def _ways(self, stage: str, centre: Way) -> list[Way] | Act:
        """What the stage tries, as far as it fits; or what is to be known before that is known."""
        objective, facts = self._objective, self._facts
        if stage == "formats":
            kinds = [kind for kind in objective.formats if kind in facts.sizes]
            found = [way for way in space.formats(self._present, kinds) if self._fits(way)]
            unknown = [way for way in found if self._verdict(way.weights, "") is None]
            if unknown and len(self._steps) == 1:  # what fits by now, and did not, is not tried any more
                return self._rewrite(unknown[0].weights, "")
            if len(self._steps) == 1:
                self.short = any(self._verdict(way.weights, "") is not False for way in self.left_out)
            return [way for way in found if self._verdict(way.weights, "")]
        if stage == "settings":
            cache = space.cache_matters(self._workload) and centre.cache_type == "f16"
            if cache and not self._rounds(stage) and self._verdict(centre.weights, "q8_0") is None:
                return self._rewrite(centre.weights, "q8_0")
            draft = bool(objective.draft_model_name)
            cache = cache and bool(self._verdict(centre.weights, "q8_0"))
            ways = space.settings(centre, self._workload, facts.cores, cache=cache, real=facts.real, draft=draft)
        else:
            tried = self._rounds("settings")
            around = Way.from_json(tried[0].action.arguments["centre"]) if tried else centre
            ways = [*space.together(around, self._ratios("settings", around))]
        return [way for way in ways if way not in (self._present, centre) and self._fits(way)]

    def _fits(self, way: Way) -> bool:
        size = self._facts.bytes(way)
        most = self._objective.max_memory_mb
        if most is not None and size > most * MB:
            return False
        if size > self._facts.room_bytes:
            self.left_out.add(way)
        return size <= self._facts.room_bytes

    def _verdict(self, weights: str, cache_type: str) -> bool | None:
        """Whether the model loses little enough so; None: that is not known yet."""
        wanted, failed = (weights, cache_type), 0
        for step in self._rewritten:
            given = step.action.arguments
            if (given["weights"], given.get("cache_type", "")) == wanted:
                if not step.error:
                    return bool(step.result.get("kept"))
                failed += 1
        return False if failed >= TRIES else None

    def _rewrite(self, weights: str, cache_type: str) -> Act:
        said = f"a cache of the type {cache_type}" if cache_type else f"weights as {weights}"
        bound = f"{self._objective.max_perplexity_increase:.1%}"
        given = {"version": self._facts.version, "weights": weights, "cache_type": cache_type}
        return Act(Action("rewrite", given), f"{said}: made, and kept where that loses at most {bound}", heavy=True)

    # --- measurements ---
    def _stage(self, stage: str, ways: Sequence[Way], centre: Way) -> Act | None:
        """The next round of the stage, None where it has ended."""
        rounds = self._rounds(stage)
        ratios = dict(self._step_ratios(rounds[-1])) if rounds else {}
        if rounds and rounds[-1] is self._steps[-1]:  # what was found out long ago has been waited for
            self.short |= any(ratios[way] > ratios.get(centre, 0.0) for way in self.left_out & ratios.keys())
        if rounds and (again := self._again(rounds[-1])):
            return again
        left = tuple(ways)[: space.MOST_WAYS]
        for done, step in enumerate(rounds, start=1):
            if space.over(len(left), done):
                return None
            wanted = set(left)
            measured = [pair for pair in self._step_ratios(step) if pair[0] in wanted]
            left = tuple(way for way, _ in measured)  # as it was decided then
            if space.over(len(left), done):
                return None
            left = space.halve(measured)
        if space.over(len(left), len(rounds)):
            return None
        kept = dict.fromkeys((self._present, centre))
        given = {
            "stage": stage,
            "round": len(rounds),
            "centre": centre.to_json(),
            "ways": [way.to_json() for way in (*kept, *left)],
            "pairs": 1,
            "requests": self._requests(space.growth(len(rounds))),
        }
        ways_are = "1 way is" if len(left) == 1 else f"{len(left)} ways are"
        said = f"{ways_are} tried beside the present one: {_SAID[stage]}"
        if rounds:
            said = f"the better {ways_are} measured for longer: {_SAID[stage]}"
        return self._measure(given, said)

    def _again(self, step: Step) -> Act | None:
        """The round once more, where little can be said by it and it was made only once."""
        given = step.action.arguments
        made = sum(bool(each.action.arguments.get("again")) for each in self._steps)
        if self._sway(step) < UNSTEADY or len(self._made(given["stage"], given["round"])) > 1 or made >= MOST_AGAIN:
            return None
        said = f"once more, as the present way itself was {self._sway(step) - 1:.0%} faster once than the other time"
        return self._measure({**given, "again": True}, f"{said}: {_SAID[given['stage']]}")

    def _pairs(self, best: Way) -> Act:
        given = {
            "stage": "final",
            "round": 0,
            "ways": [self._present.to_json(), best.to_json()],
            "pairs": PAIRS,
            "requests": self._requests(2),
        }
        said = f"the best ({best.words(self._present)}) is measured against the present way, in {PAIRS} pairs"
        return self._measure(given, said)

    def _measure(self, given: Mapping[str, Any], said: str) -> Act:
        return Act(Action("measure", {"version": self._facts.version, **given}), said, heavy=True)

    def _requests(self, times: int) -> int:
        """As many as take so many times `sample_s`, by what the present way gave; whole waves of them."""
        rate = self._base.requests_per_second
        waves = math.ceil(min(rate * self._facts.sample_s * times, 1e4) / self._at_once)
        return max(1, waves) * self._at_once

    def _made(self, stage: str, number: int | None = None) -> list[Step]:
        """The measurements of a stage, or of one round of it."""
        ours = [step for step in self._steps if step.action.arguments["stage"] == stage]
        return [step for step in ours if number in (None, step.action.arguments["round"])]

    def _rounds(self, stage: str) -> list[Step]:
        """The rounds of a stage; of one that was made again, when it was steadier."""
        numbers = dict.fromkeys(step.action.arguments["round"] for step in self._made(stage))
        return [min(self._made(stage, number), key=self._sway) for number in numbers]

    def _sway(self, step: Step) -> float:
        """How much faster the present way was once in a round than another time."""
        told = step.result["measured"][0]
        found = [score(self._objective, Measured.from_json(each)) for each in told.get("samples", [told])]
        return max(found) / min(found) if min(found) else math.inf

    def _final(self, best: Way) -> Step | None:
        return next((step for step in self._made("final") if ways_of(step)[1] == best), None)

    def _measured(self, step: Step) -> list[Measured | None]:
        return [measured_of(each) for each in step.result["measured"]]

    def _step_ratios(self, step: Step) -> list[tuple[Way, float]]:
        """Of each way in a round how good it was, by the present way in the same round."""
        found = [score(self._objective, each) if each else 0.0 for each in self._measured(step)]
        return [(way, each / found[0] if found[0] else each) for way, each in zip(ways_of(step), found, strict=True)]

    def _ratios(self, stage: str, centre: Way) -> dict[Way, float]:
        """Of each way in a stage how good it was by `centre` in the same round, as it was measured for longest."""
        found: dict[Way, float] = {}
        for step in self._rounds(stage):
            ratios = dict(self._step_ratios(step))
            if by := ratios.get(centre):
                found |= {way: ratio / by for way, ratio in ratios.items()}
        return found

    def _best(self, stage: str, centre: Way) -> Way:
        """The best of the stage's last round, of which `centre` is one."""
        if not (rounds := self._rounds(stage)):
            return centre
        ratios = dict(self._step_ratios(rounds[-1]))
        able = {way: ratio for way, ratio in ratios.items() if self._fits(way)}
        return max(able, key=lambda way: (able[way], way == centre), default=centre)

    def _seems_met(self, way: Way) -> bool:
        """Whether the way met the target, when it was last measured."""
        if not hurried(self._objective):
            return False
        for step in reversed(self._steps):
            for one, measured in zip(ways_of(step), self._measured(step), strict=True):
                if one == way and measured:
                    return not self._missed(way, measured)
        return False

    def _missed(self, way: Way, measured: Measured) -> list[str]:
        """What of the targets is missed; of memory also by what is reserved."""
        most = self._objective.max_memory_mb
        found = missed(self._objective, measured)
        size = self._facts.bytes(way)
        if most is not None and size > most * MB and measured.memory_mb <= most:
            found.append(f"{size / MB:.0f} MB are reserved of at most {most}")
        return found

    # --- the end of it ---
    def _judged(self, final: Step, best: Way) -> Decision | None:
        """What follows from the last pairs; None: something else is tried, if there is something."""
        present, measured = self._measured(final)
        if measured is None or self._missed(best, measured):
            return None
        better = gain(self._objective, final)
        worse = present is None or bool(self._missed(self._present, present))
        if better < FASTER and not worse:
            return None
        given = {
            "way": best.to_json(),
            "changes": best.changes(self._present),
            "version": self._facts.version,
            "wish": self._facts.wish,
            "tuned": self._facts.tuned,
        }
        return Act(
            Action("apply", given), f"{best.words(self._present)}: {better:.2f} times as good; {measured.words()}"
        )

    def _without(self) -> End:
        """Nothing is applied."""
        finals = self._made("final")
        present, best = self._measured(finals[-1]) if finals else (self._measured(self._steps[-1])[0], None)
        reached = best or present
        if reached is not None:
            way = ways_of(finals[-1])[1] if best else self._present
            wrong = self._missed(way, reached)
            if present and not self._missed(self._present, present):
                why = f"no other way was {FASTER - 1:.0%} faster in the last pairs" if finals else "no other was faster"
                return self._end("completed", f"the present way is kept: {why}; {present.words()}")
            if wrong:
                said = f"the best that was measured ({way.words(self._present)}) misses the target: {'; '.join(wrong)}"
                return self._end("failed", f"{said}; nothing was applied")
        return self._end("failed", "no way that meets the target could be measured; nothing was applied")

    def _end(self, status: Any, why: str) -> End:
        return End(status, why, result(self._goal))
