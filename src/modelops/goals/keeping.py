"""Does what goals of the type `availability` need: keeps their models in the pool, probes them, and loads them again.

It owns which models are kept, for which goal, and what was counted of them since the coordinator began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelops.api.errors import InvalidRequest, ModelOpsError, NotFound, Overloaded
from modelops.api.goals import AvailabilityObjective, GoalLimits, GoalPlan
from modelops.engines.base import Prompt
from modelops.goals.availability import AvailabilityFacts, Held, Tally, tallies_of
from modelops.goals.doing import Checked, Tell, Tools
from modelops.goals.loading import Loads
from modelops.goals.values import Pursued, Step
from modelops.serving.catalog import Version
from modelops.serving.events import Share
from modelops.serving.placement import MB, Bill
from modelops.tasks import Tasks

#: Where others wait, a probe gives way to them; and where nobody else asks, what learns goes on beside it.
_PROBE = Share("probes of goals", 0.01, quiet=True)
_WORD = Prompt(text="Hello", system="", raw=True, max_tokens=1, temperature=0.0, top_p=1.0, stop=(), seed=None)
#: Seconds between two looks at why something has no place. It is loaded as soon as there is room without any look: the
#: pool sees to that.
_LOOK_FOR_ROOM_S = 5.0
#: Seconds for which a bill is told, though its figures may have changed.
_NEWS_S = 60.0
#: Refusals that tell nothing of whether the model answers: its callers' requests are answered, or we are ending.
_UNTOLD = ("queue_full", "draining")
_RESTS = "it has failed, and is not asked for a while"


@dataclass(frozen=True)
class _Refused:
    """Why a model has no place, and which of those who take it are kept by which goal that goes first; `memory`: it is
    for want of that, and not of a file."""

    why: str = ""
    before: Mapping[str, str] = field(default_factory=dict)
    memory: bool = False


_ROOM = _Refused()


@dataclass
class _Watched:
    """One model of a goal. Times are on the loop's clock."""

    tally: Tally
    why: str = ""  # the last probe was not answered; empty: it was, or there was none
    due: float = 0.0  # when the next probe is
    probing: bool = False
    refused: _Refused = _ROOM
    looked_at: float = float("-inf")  # when it was last looked for room
    told_at: float = 0.0  # when what is `refused` was found


@dataclass
class _Kept:
    """One goal; `number` orders those of one priority, the older first."""

    goal: Pursued
    number: int
    models: dict[str, _Watched] = field(default_factory=dict)

    @property
    def objective(self) -> AvailabilityObjective:
        assert isinstance(self.goal.objective, AvailabilityObjective)
        return self.goal.objective


class AvailabilityDoer:
    """Keeps models for goals, from the first look at a goal, or from `begin`, until it has `ended`."""

    def __init__(self, tools: Tools) -> None:
        self._catalog, self._pool = tools.catalog, tools.pool
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._goals: dict[str, _Kept] = {}
        self._loads = Loads(tools.catalog, tools.pool)
        self._count = 0
        self._tasks = Tasks("availability")
        self._watching: asyncio.Task[None] | None = None

    def begin(self, goals: Iterable[Pursued]) -> None:
        """The coordinator begins, with these goals that have not ended, the oldest first: their models are kept before
        anything is loaded that could take their place."""
        for goal in goals:
            self._known(goal)
        self._keep()

    async def close(self) -> None:
        """Probe and load no more. What is kept stays so: the goals go on after the restart."""
        await self._loads.close()
        await self._tasks.close()

    # --- before it is created ---
    async def check(self, objective: AvailabilityObjective, limits: GoalLimits) -> Checked:
        """Raises InvalidRequest where a model is named twice or `until` has passed, NotFound for an unknown one; warns
        where they have no place together, or beside what other goals keep."""
        left = _left_s(objective)
        if left is not None and left <= 0:
            raise InvalidRequest("objective: until: that time has passed already; give a later one, or none")
        versions: dict[str, Version] = {}
        for given in objective.models:
            name = self._catalog.resolve(given)
            if name in versions:
                also = f", as '{given}'," if given != name else ""
                raise InvalidRequest(f"objective: models: '{name}' is named twice{also}; name each model once")
            versions[name] = await self._catalog.find(name)
        memory, seconds = 0, 0.0
        for name, version in versions.items():
            build, _ = await self._pool.preview(version, self._loads.wish(name))
            memory, seconds = memory + build.candidate.wants.need.total, seconds + build.candidate.reload_s
        names = tuple(versions)
        until = f"until {objective.until.isoformat()}" if objective.until else "until the goal is cancelled"
        plan = GoalPlan(
            steps=[
                f"keep {', '.join(names)} in memory: no other load evicts them, and no keep-alive ends them",
                f"ask each for one token every {objective.probe_seconds:g} s, {until}",
                "load again what is not loaded; what failed to load, after a pause that grows",
            ],
            seconds=round(seconds, 3),
            memory_mb=-(-memory // MB),
        )
        told = objective.model_copy(update={"models": list(names)})
        return Checked(told, plan, tuple(await self._warnings(versions)))

    async def _warnings(self, versions: Mapping[str, Version]) -> list[str]:
        if found := await self._pool.unfit(versions):
            name, bill = found
            return [f"not all of the models have a place together: {bill.sentence(name)}"]
        others = {name: self._catalog.active(name) for name in self._pool.kept if self._catalog.knows(name)}
        if found := await self._pool.unfit({**others, **versions}):
            name, bill = found
            return [f"the models have no place beside those that other goals keep: {bill.sentence(name)}"]
        return []

    # --- what is seen ---
    async def facts(self, goal: Pursued, folder: Path) -> AvailabilityFacts:
        """How its models are; on the way, probes that are due are begun."""
        kept = self._known(goal)
        self._keep()
        held = {name: await self._look(kept, name) for name in kept.models}
        return AvailabilityFacts(held, _left_s(kept.objective))

    async def refusal(self, goal: Pursued, folder: Path) -> str:
        """What a model has no place for is a fact of that model."""
        return ""

    async def _look(self, kept: _Kept, name: str) -> Held:
        watched = kept.models[name]
        try:
            view = self._pool.view(name)
        except NotFound:
            return Held(watched.tally, "it was removed")
        self._see(name, watched)
        self._probe_if_due(kept, name, watched)
        failed, waits_s, load = "", 0.0, self._loads.of(name)
        if view.status not in ("available", "failed"):
            watched.refused, watched.looked_at = _ROOM, float("-inf")
        elif load.under_way:
            return Held(watched.tally, watched.why, prepared=True)
        elif view.breaker.state == "open":
            failed, waits_s = view.breaker.reason, view.breaker.left_s
        elif load.again_at > self._loop.time():
            failed, waits_s = load.why, load.again_at - self._loop.time()
        elif self._due(name, watched):
            watched.looked_at = now = self._loop.time()
            found, told = await self._refused(name), watched.refused
            old = now - watched.told_at >= _NEWS_S  # who holds a little more or less meanwhile is no news
            if old or replace(found, why="") != replace(told, why="") or not (found.why and told.why):
                watched.refused, watched.told_at = found, now
        refused = watched.refused
        asked = self._pool.waits(name) or not refused.memory
        return Held(
            watched.tally,
            watched.why,
            failed=failed,
            waits_s=waits_s,
            refused=refused.why,
            asked=asked,
            before=refused.before,
        )

    def _due(self, name: str, watched: _Watched) -> bool:
        """Whether it is to be looked for room: now and then, and where the pool had none a moment ago."""
        refused = self._pool.waits(name) and not watched.refused.why
        return refused or self._loop.time() - watched.looked_at >= _LOOK_FOR_ROOM_S

    async def _refused(self, name: str) -> _Refused:
        """Why the model has no place now."""
        try:
            version = await self._catalog.find(name)
            _, plan = await self._pool.preview(version, self._loads.wish(name))
        except ModelOpsError as error:
            return _Refused(error.message)
        if not isinstance(plan, Bill):
            return _ROOM
        kept = self._pool.kept
        mine = kept.get(version.engine_name, -1)
        before = {other: self._keeper(other) for other in plan.kept if kept.get(other, -1) > mine}
        return _Refused(plan.sentence(name), before, memory=True)

    # --- probes ---
    def _probe_if_due(self, kept: _Kept, name: str, watched: _Watched) -> None:
        now = self._loop.time()
        if watched.probing or now < watched.due:
            return
        watched.due = now + kept.objective.probe_seconds
        view = self._pool.view(name)
        if view.status in ("available", "failed"):
            self._probed(watched, now, view.breaker.reason or "it is not loaded")
        else:
            watched.probing = True
            self._tasks.start(f"probe {name}", self._probe(name, watched, kept.objective.probe_timeout_seconds))

    async def _probe(self, name: str, watched: _Watched, seconds: float) -> None:
        began = self._loop.time()
        try:
            async with asyncio.timeout(seconds):
                await self._ask(name, began + seconds, seconds)
            self._probed(watched, began, "")
        except TimeoutError:
            self._probed(watched, began, f"it did not answer within {seconds:g} s")
        except ModelOpsError as error:
            reason = error.reason if isinstance(error, Overloaded) else ""
            if reason not in _UNTOLD:
                self._probed(watched, began, _RESTS if reason == "breaker_open" else error.message)
        finally:
            watched.probing = False

    async def _ask(self, name: str, deadline: float, seconds: float) -> None:
        """The least that the model can be asked for, as callers ask it."""
        size = len(_WORD.text)
        async with self._pool.lease(name, deadline, share=_PROBE, prompt_bytes=size, answer_tokens=1) as lease:
            try:
                match lease.version.model_type:
                    case "embedding":
                        await lease.embed([_WORD.text])
                    case "reranker":
                        await lease.rerank(_WORD.text, [_WORD.text])
                    case _:
                        async for _ in lease.generate(_WORD):
                            pass
            except asyncio.CancelledError:
                if self._loop.time() >= deadline:
                    lease.overdue(seconds)
                raise

    def _probed(self, watched: _Watched, began: float, why: str) -> None:
        watched.why = why
        watched.tally = watched.tally.probed(began, self._loop.time(), answered=not why)

    # --- what is kept ---
    def _known(self, goal: Pursued) -> _Kept:
        if known := self._goals.get(goal.goal_id):
            known.goal = goal
            return known
        self._count += 1
        kept = self._goals[goal.goal_id] = _Kept(goal, self._count)
        due = self._loop.time() + kept.objective.probe_seconds  # what is not loaded is not yet to answer
        for name, tally in tallies_of(goal).items():
            kept.models[name] = _Watched(tally.restarted(self._began), due=due)
        if self._watching is None or self._watching.done():
            self._watching = self._tasks.start("watch", self._watch())
        return kept

    def _keep(self) -> None:
        """Tell the pool what is kept now: of two goals the more urgent goes first, and of two alike the older."""
        self._pool.keep({name: rank for rank, kept in enumerate(self._order()) for name in kept.models})

    def _keeper(self, engine: str) -> str:
        """The id of the goal that the engine's model is kept for; of several, of that which goes first."""
        keepers = (kept for kept in reversed(self._order()) if engine in map(self._engine_name, kept.models))
        return next((kept.goal.goal_id for kept in keepers), "")

    def _engine_name(self, name: str) -> str:
        return self._catalog.active(name).engine_name if self._catalog.knows(name) else name

    def _order(self) -> list[_Kept]:
        """Who goes first comes last."""
        return sorted(self._goals.values(), key=lambda kept: (kept.goal.priority, -kept.number))

    async def _watch(self) -> None:
        """See at once what becomes of any model: how long an outage was is not to depend on when goals look."""
        while True:
            await self._pool.turned()
            for kept in self._goals.values():
                for name, watched in kept.models.items():
                    self._see(name, watched)

    def _see(self, name: str, watched: _Watched) -> None:
        was_up, watched.tally = watched.tally.up, watched.tally.seen(self._loop.time(), up=self._up(name))
        if watched.tally.up and not was_up:
            watched.due = 0.0

    def _up(self, name: str) -> bool:
        try:
            view = self._pool.view(name)
        except NotFound:
            return False
        return view.status == "loaded" and view.breaker.state != "open"

    # --- what is done ---
    async def perform(self, goal: Pursued, step: Step, folder: Path, tell: Tell) -> Mapping[str, Any]:
        """Begin to load the model, which may take long before the pool has begun it: its file may have to be fetched or
        made. Where it is loaded, or on its way, there is nothing to do."""
        name = str(step.action.arguments["model_name"])
        view = self._pool.view(name)
        if view.status in ("available", "failed"):
            self._loads.begin(name)
        return {"model_version": view.version.label}

    async def ended(self, goal: Pursued) -> None:
        """Its models are kept no more, but for those that another goal keeps."""
        if self._goals.pop(goal.goal_id, None):
            self._keep()
            self._loads.keep({name for kept in self._goals.values() for name in kept.models})


def _left_s(objective: AvailabilityObjective) -> float | None:
    """Seconds until the goal is completed, by the time of day; None: it has no end."""
    return None if objective.until is None else (objective.until - datetime.now(UTC)).total_seconds()
