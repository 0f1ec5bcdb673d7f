"""What is done for goals of the type `serving`: ways of running a model are measured on engines of the goal's own, and
the one that was chosen is applied to the model that serves.

What has been measured is written into the goal's folder at once: a step that is done again goes on after it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from modelops.api.errors import (
    AlreadyLoaded,
    Conflict,
    InsufficientMemory,
    NotFound,
)
from modelops.api.goals import GoalLimits, ServingObjective
from modelops.goals.doing import REQUESTS, Checked, Tell, Tools
from modelops.goals.removing import remove
from modelops.goals.sampling import Sampler, said, together, turns
from modelops.goals.space import Way
from modelops.goals.surveying import Surveyor, changed
from modelops.goals.targets import Probed, ServingFacts, versions_of, weights_of
from modelops.goals.values import Pursued, Step
from modelops.goals.watching import Watch
from modelops.serving.catalog import Version
from modelops.serving.formats import FOLDER, Formats
from modelops.serving.placement import Bill
from modelops.serving.registry import tuned_part
from modelops.serving.wishes import Wish

_APPLY_S = 600.0  # time for the other engine to be loaded


class ServingDoer:
    """Measures, rewrites, applies, and undoes."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._formats = Formats(tools.catalog, tools.settings.data_dir.resolve() / FOLDER)
        self._surveyor = Surveyor(tools, self._formats)
        self._watch = Watch(tools.pool)

    async def close(self) -> None:
        """Ask nobody any more."""
        await self._watch.close()

    async def check(self, objective: Any, limits: GoalLimits) -> Checked:
        """See Doer."""
        return await self._surveyor.check(objective)

    async def facts(self, goal: Pursued, folder: Path) -> ServingFacts | Probed:
        """See Doer. Once a way was applied nothing is looked at that could be gone, such as files."""
        if applied := goal.last("apply"):
            return self._probed(goal, applied)
        catalog, objective = self._tools.catalog, _objective(goal)
        if weights_of(goal):  # after a restart, too
            labels = versions_of(goal)
            for version in catalog.versions(objective.model_name):
                if version.label in labels:
                    self._formats.hold(goal.goal_id, version)
        real = await asyncio.to_thread((folder / REQUESTS).is_file)
        return await self._surveyor.facts(objective, real=real)

    def _probed(self, goal: Pursued, applied: Step) -> Probed:
        """What has become of what was applied. What is not loaded, as somebody has unloaded it, is not asked: it would
        be loaded."""
        objective, catalog = _objective(goal), self._tools.catalog
        name, label = objective.model_name, str(applied.result.get("version", ""))
        forgotten = False
        if applied.done and not applied.error and not goal.last("restore") and catalog.knows(name):
            forgotten = (catalog.tuned(name) or Wish()) != _tuned(objective, applied.action.arguments)
            answers = catalog.active(name).label == label and self._tools.pool.view(name).status == "loaded"
            if answers and not forgotten:
                counted = self._watch.look(goal.goal_id, applied.number, name, label)
                return Probed(counted.unanswered, counted.waits)
        self._watch.end(goal.goal_id)
        return Probed(forgotten=forgotten)

    async def refusal(self, goal: Pursued, folder: Path) -> str:
        """See Doer."""
        tools = self._tools
        if goal.last("apply"):
            return ""  # what follows takes nothing
        if tools.jobs.running:
            return "it waits for the learning jobs that are worked on: beside them nothing can be measured"
        model = await self._surveyor.model(_objective(goal).model_name)
        found = tools.pool.preview_loan(f"goal {goal.goal_id}", model.tuned.need.total)
        if isinstance(found, Bill) and not found.never:  # what never fits fails, and says so
            return f"it waits for memory: {found.sentence(f'goal {goal.goal_id}')}"
        return ""

    async def perform(self, goal: Pursued, step: Step, folder: Path, tell: Tell) -> Mapping[str, Any]:
        """See Doer."""
        doing = _Doing(self._tools, self._formats, self._surveyor, goal, step, folder, tell)
        done: Mapping[str, Any] = await getattr(doing, step.action.kind)()
        return done

    async def ended(self, goal: Pursued) -> None:
        """See Doer."""
        self._watch.end(goal.goal_id)
        self._formats.release(goal.goal_id)


class _Doing:
    """One step."""

    def __init__(
        self, tools: Tools, formats: Formats, surveyor: Surveyor, goal: Pursued, step: Step, folder: Path, tell: Tell
    ) -> None:
        self._tools = tools
        self._formats = formats
        self._surveyor = surveyor
        self._goal = goal
        self._step = step
        self._given = step.action.arguments
        self._objective = _objective(goal)
        self._name = self._objective.model_name
        self._sampler = Sampler(tools, formats, surveyor, goal.goal_id, self._objective, folder, tell)
        self._tell = tell

    # --- the kinds of steps ---
    async def rewrite(self) -> dict[str, Any]:
        """Weights, or a cache, of another type, and what that loses."""
        version, weights = self._version(), self._given["weights"]
        present = await self._surveyor.facts(self._objective)
        other = {**present.present.to_json(), "weights": weights}
        other["cache_type"] = self._given.get("cache_type") or other["cache_type"]
        file = await self._sampler.file(version, weights)
        before = await self._sampler.perplexity(version, present.present)
        after = await self._sampler.perplexity(version, Way.from_json(other))
        increase = after / before - 1
        return {
            "perplexity": round(after, 4),
            "original": round(before, 4),
            "increase": round(increase, 5),
            "file_mb": file.stat().st_size >> 20,
            "kept": increase <= self._objective.max_perplexity_increase,
        }

    async def measure(self) -> dict[str, Any]:
        """Each of the ways, one after the other, and in the next pair the other way round; where there is no other
        pair, at last the present one again."""
        ways = [Way.from_json(each) for each in self._given["ways"]]
        pairs = int(self._given["pairs"])
        found: list[list[dict[str, Any]]] = [[] for _ in ways]
        order, sampler, version = turns(pairs, len(ways)), self._sampler, self._version()
        requests = int(self._given["requests"])
        first = int(self._given.get("round", 0)) * 1000  # the same prompts for all ways of a round
        for done, (pair, number) in enumerate(order, 1):
            key = f"{self._step.number}/{pair}/{number}"
            if (sample := sampler.notes.get(key)) is None:
                seed = first + min(pair, pairs - 1)
                sample = await sampler.sample(version, ways[number], requests, seed, whole=number == 0)
                await sampler.notes.put(key, sample)
            found[number].append(sample)
            words = f"{done} of {len(order)}: {ways[number].words(ways[0])}: {said(sample)}"
            await self._tell("progress", words, {"measured": done, "to_measure": len(order)})
        return {"measured": [together(samples) for samples in found]}

    async def apply(self) -> dict[str, Any]:
        """The way, to the model that serves."""
        given, changes, version = self._given, self._given["changes"], self._version()
        if "weights" in changes:
            file = await self._sampler.file(version, changes["weights"])
            known = await self._tools.catalog.digest(version)
            lineage = {
                "goal_id": self._goal.goal_id,
                "base_model": self._name,
                "base_version": version.label,
                "base_digest": known.digest,
                "weights": changes["weights"],
            }
            version = await self._tools.catalog.publish(self._name, file, "llm", lineage)
        wish = changed(Wish.from_json(given["wish"]), changes, self._objective.draft_model_name)
        await self._rest()
        self._keep_adapters(version)
        await self._serve(version, wish)
        await self._tools.catalog.set_tuned(self._name, _tuned(self._objective, given))
        return {"version": version.label}

    async def restore(self) -> dict[str, Any]:
        """What was applied is undone; what somebody else has activated since stays."""
        given, catalog, pool = self._given, self._tools.catalog, self._tools.pool
        await self._rest()
        if other := self._other(given["applied"]):
            return {"version": other, "left": True}
        version, wish, loaded = self._version(), Wish.from_json(given["wish"]), pool.resident(self._name)
        # First: the version tells whether it was done, and where it is cut short it is done again.
        await catalog.set_tuned(self._name, Wish.from_json(given["tuned"]) if given["tuned"] else None)
        try:
            await self._serve(version, wish)
        except InsufficientMemory:  # others have taken its room: rather nothing answers than what is unconfirmed
            # By force: for those that wait it would be loaded again.
            with contextlib.suppress(Conflict):  # nothing runs any more
                await pool.unload(self._name, force=True, deadline=asyncio.get_running_loop().time() + _APPLY_S)
            await self._serve(version, wish)
        if (loaded or given["load"]) and not pool.resident(self._name):
            # Without room it is undone all the same: a request loads it, when there is some.
            with contextlib.suppress(AlreadyLoaded, InsufficientMemory):
                await pool.load(version, wish, asyncio.get_running_loop().time() + _APPLY_S)
        return {"version": given["version"]}

    async def discard(self) -> dict[str, Any]:
        """Files and versions that were made, and are not served."""
        catalog, goal_id = self._tools.catalog, self._goal.goal_id
        versions = catalog.versions(self._name) if catalog.knows(self._name) else []
        named = {version for version in versions if version.label in self._given["versions"]}
        for version in named | self._formats.held(goal_id):  # also of what was removed meanwhile
            await asyncio.to_thread(self._formats.discard, version, goal_id)
        with contextlib.suppress(NotFound):
            gone = [each for each in self._made() if each.label != self._given["keep"]]
            return {"removed": await remove(self._tools, gone)}
        return {"removed": []}

    # --- what they are made of ---
    def _version(self) -> Version:
        return self._tools.catalog.version(self._name, self._given["version"])

    def _made(self) -> list[Version]:
        """The versions that were published for the goal."""
        versions = self._tools.catalog.versions(self._name)
        return [version for version in versions if version.lineage.get("goal_id") == self._goal.goal_id]

    def _other(self, applied: str) -> str:
        """The version that answers, where it is neither the one that was measured nor one of the goal's own."""
        active = self._tools.catalog.active(self._name).label
        ours = (applied, self._given["version"], *(each.label for each in self._made()))
        return "" if active in ours else active

    def _keep_adapters(self, version: Version) -> None:
        """Raises Conflict where adapters that answer beside the model would be refused beside that version."""
        present = self._version()
        lost = self._tools.pool.adapters.active(present) if version.digest != present.digest else []
        if lost:
            named = ", ".join(f"'{adapter.model_name}'" for adapter in lost)
            raise Conflict(f"adapters were made for the weights of {present.label}, and would be refused: {named}")

    async def _rest(self) -> None:
        """Wait until nothing is about to become of the model, as after a restart, or where somebody activates another
        version."""
        pool = self._tools.pool
        with contextlib.suppress(TimeoutError):  # then it is refused, and says why
            async with asyncio.timeout(_APPLY_S):
                while not pool.at_rest(self._name):
                    await pool.turned()

    async def _serve(self, version: Version, wish: Wish) -> None:
        """Let the model, which is at rest, be served so, beside how it is now until that is answered by; where there is
        no room for both, one after the other. Raises Conflict where somebody has activated another version."""
        pool, deadline = self._tools.pool, asyncio.get_running_loop().time() + _APPLY_S
        undisputed = partial(self._refuse_other, version)
        try:
            await pool.activate(version, wish=wish, drain_first=False, deadline=deadline, confirm=undisputed)
        except InsufficientMemory:
            await pool.activate(version, wish=wish, drain_first=True, deadline=deadline, confirm=undisputed)

    def _refuse_other(self, version: Version) -> None:
        if other := self._other(version.label):
            raise Conflict(f"{other} is active now, and {self._given['version']} was measured")


def _tuned(objective: ServingObjective, given: Mapping[str, Any]) -> Wish:
    """How the model is tuned once a step `apply` with those arguments is done."""
    before = Wish.from_json(given["tuned"]) if given["tuned"] else Wish()
    return tuned_part(changed(before, given["changes"], objective.draft_model_name))


def _objective(goal: Pursued) -> ServingObjective:
    assert isinstance(goal.objective, ServingObjective)
    return goal.objective
