"""Many goals at once, with crashes: what must hold of all of them together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from goals.simulation import Killed, Model, Row, Simulation, World
from goals.worlds import Keeping, Learning, Machine, Serving, Version
from modelops.api.goals import GoalLimits, objective_of
from modelops.goals import turns
from modelops.goals.values import Act, Action, Decision, End, Ending, Pursued, Seen, Step, Wait

SEEDS = range(3)


# --- the simulation itself: goals that have nothing but chores, of which each takes the whole machine ---
@dataclass
class Chores:
    """A world in which each step begins a chore; and the way in which that is done."""

    chores: int = 3
    seed: int = 0
    running: dict[str, tuple[int, float]] = field(default_factory=dict)
    done: dict[tuple[str, int], float] = field(default_factory=dict)

    def facts(self, goal: Pursued, now: float) -> bool:
        """Whether the last chore is under way."""
        return goal.goal_id in self.heavy(now)

    def refusal(self, goal: Pursued, now: float) -> str:
        return "there is no room" if int(now / 100) % 3 == 0 else ""

    def begin(self, goal: Pursued, step: Step, now: float) -> float:
        key = goal.goal_id, step.number
        if step.action.kind == "stop":
            self.running.pop(goal.goal_id, None)
        elif key not in self.done:
            self.done[key] = now + Random(f"{self.seed} {key}").uniform(1, 200)
            self.running[goal.goal_id] = step.number, self.done[key]
        return 0.5

    def result(self, goal: Pursued, step: Step, now: float) -> Mapping[str, Any]:
        return {}

    def heavy(self, now: float) -> Sequence[str]:
        return [goal_id for goal_id, (_, until) in self.running.items() if now < until]

    def left(self, goal: Pursued, end: End, now: float) -> Sequence[str]:
        return ["a chore"] if end.status == "cancelled" and goal.goal_id in self.running else []

    def decide(self, goal: Pursued, seen: Seen) -> Decision:
        if seen.facts:
            return Wait("it works", 10.0, working=True)
        if len(goal.all("chore")) == self.chores:
            return End("completed", "all is done")
        if seen.refusal and not seen.taken:
            return Wait(seen.refusal, 10.0)
        return Act(Action("chore"), "it is to be done", heavy=True)

    def give_up(self, goal: Pursued, seen: Seen, ending: Ending) -> Decision:
        if goal.last("stop") is None and goal.last("chore") is not None:
            return Act(Action("stop"), ending.why)
        return End(ending.status, ending.why)


class Careless(Chores):
    """It says not that it works."""

    def decide(self, goal: Pursued, seen: Seen) -> Decision:
        decision = super().decide(goal, seen)
        return Wait(decision.why) if isinstance(decision, Wait) else decision


class Greedy(Chores):
    """It does not ask whether there is room."""

    def decide(self, goal: Pursued, seen: Seen) -> Decision:
        return super().decide(goal, Seen(facts=seen.facts))


class Untidy(Chores):
    """It leaves what it has begun."""

    def give_up(self, goal: Pursued, seen: Seen, ending: Ending) -> Decision:
        return End(ending.status, ending.why)


class Deaf(Chores):
    """It has failed where it was cancelled."""

    def give_up(self, goal: Pursued, seen: Seen, ending: Ending) -> Decision:
        decision = super().give_up(goal, seen, ending)
        return End("failed", "oh") if isinstance(decision, End) else decision


def chores(way: Chores, kills: float = 0.0, goals: int = 50) -> Simulation:
    """Goals that have chores, each with a model of its own."""
    models = {f"m{number}": Model(f"m{number}") for number in range(goals)}
    simulation = Simulation(way.seed, {"chores": way}, models, kills)
    simulation.way = lambda goal: way
    random = Random(way.seed)
    for name in models:
        objective = objective_of({"type": "serving", "model_name": name})
        cancel = random.uniform(0, 15_000) if random.random() < 0.3 else None
        simulation.add(
            "chores", objective, priority=random.randrange(4), cancel_s=cancel, arrives_s=random.uniform(0, 3000)
        )
    simulation.run()
    return simulation


@pytest.mark.parametrize("kills", [0.0, 0.05])
@pytest.mark.parametrize("seed", SEEDS)
def test_all_have_their_turn(seed: int, kills: float) -> None:
    way = Chores(seed=seed)
    simulation = chores(way, kills)
    assert (simulation.killed > 0) == (kills > 0)
    rows = simulation.rows.values()
    assert Counter(row.end.status for row in rows if row.end)["completed"] > 20
    assert max(row.passed for row in rows) <= turns.LEVELS * turns.PATIENCE + len(rows)


def test_the_more_urgent_go_first() -> None:
    way = Chores(chores=1)
    simulation = chores(way)
    mean = {
        priority: sum(row.ended_s - row.arrives_s for row in rows) / len(rows)
        for priority in range(4)
        if (rows := [row for row in simulation.rows.values() if row.goal.priority == priority])
    }
    assert mean[3] < mean[0]


@pytest.mark.parametrize(
    ("way", "fault"),
    [
        (Careless, "heavy work is under way"),
        (Greedy, "what does not fit"),
        (Untidy, "left: a chore|heavy work is under way"),
        (Deaf, "was cancelled, and is failed"),
    ],
)
def test_what_must_not_be_is_found(way: type[Chores], fault: str) -> None:
    with pytest.raises(AssertionError, match=fault):
        chores(way())


# --- all three types, as they are pursued ---
MODELS = 8


@dataclass
class Whole:
    """A simulation of everything, with what goes wrong in it."""

    simulation: Simulation
    learning: Learning
    keeping: Keeping


def whole(seed: int, kills: float, goals: int = 50, hands: bool = True) -> Whole:
    """Goals of all types and priorities for a few models, and people who do what they like meanwhile."""
    random, machine = Random(seed), Machine(seed)
    models = {f"m{number}": Model(f"m{number}", memory_mb=random.choice((50, 100, 300))) for number in range(MODELS)}
    learning, keeping = Learning(machine, models), Keeping(machine, models)
    worlds: dict[str, World] = {"quality": learning, "serving": Serving(machine, models), "availability": keeping}
    simulation = Simulation(seed, worlds, models, kills)
    for number in range(goals):
        kind, name = random.choice(tuple(worlds)), random.choice(tuple(models))
        known: dict[str, Any] = {"priority": random.randrange(4), "arrives_s": random.uniform(0, 5000)}
        if random.random() < 0.25:
            known["cancel_s"] = known["arrives_s"] + random.uniform(0, 8000)
        if random.random() < 0.1:
            known["target_s"] = known["arrives_s"] + random.uniform(0, 8000)
        # What is too much for this machine ends by its limit.
        limits = GoalLimits(
            max_seconds=random.choice((600.0, 6000.0, 200_000.0)), max_jobs=random.choice((None, 0, 2, 9))
        )
        simulation.add(kind, objective_of(objective(kind, name, random, models)), limits=limits, **known)
        if kind == "availability":
            keeping.until[f"g{number:03}"] = known["arrives_s"] + random.uniform(10, 4000)
    if hands:
        for _ in range(60):
            simulation.happens.append((random.uniform(0, 60_000), hand(random, models, learning)))
    return Whole(simulation, learning, keeping)


def objective(kind: str, name: str, random: Random, models: Mapping[str, Model]) -> dict[str, Any]:
    watch = random.choice((0, 45))
    if kind == "availability":
        return {"type": kind, "models": random.sample(sorted(models), 2)}
    if kind == "quality":
        return {"type": kind, "model_name": name, "target": random.choice((0.3, 0.6, 0.9)), "watch_seconds": watch}
    targets: tuple[dict[str, int], ...] = ({}, {"min_tokens_per_second": 110}, {"p95_latency_ms": 500})
    return {"type": kind, "model_name": name, "watch_seconds": watch, **random.choice(targets)}


def hand(random: Random, models: Mapping[str, Model], learning: Learning) -> Callable[[], None]:
    """What somebody does, or what happens to a model."""
    model, what = models[random.choice(sorted(models))], random.random()

    def crash() -> None:
        model.status, model.message, model.failures = "failed", "its engine broke", model.failures + 5

    def recover() -> None:
        model.status, model.failures = "loaded", 0

    def activate() -> None:
        label = f"v{len(learning.versions[model.name]) + 10}x"
        learning.versions[model.name][label] = Version(0.5, 0.9)
        model.active = label

    def unload() -> None:
        model.status = "available"

    def remove() -> None:
        model.registered = False

    for part, done in ((0.25, crash), (0.6, recover), (0.75, activate), (0.98, unload)):
        if what < part:
            return done
    return remove


@pytest.mark.parametrize("kills", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_happens_all_end_as_they_should(seed: int, kills: float) -> None:
    simulation = whole(seed, kills).simulation
    simulation.run()
    rows = simulation.rows.values()
    ended = Counter(row.end.status for row in rows if row.end)
    assert ended["completed"] and ended["failed"] and ended["cancelled"], ended
    assert max(row.passed for row in rows) <= turns.LEVELS * turns.PATIENCE + len(rows)


# --- cancelled, at whichever step ---
def alone(kind: str, seed: int) -> Whole:
    """One goal, which comes as far as it can."""
    machine, models = Machine(seed, memory_mb=10_000), {"m": Model("m")}
    learning, keeping = Learning(machine, models), Keeping(machine, models)
    worlds: dict[str, World] = {"quality": learning, "serving": Serving(machine, models), "availability": keeping}
    simulation = Simulation(seed, worlds, models)
    wanted: dict[str, dict[str, Any]] = {
        "quality": {"model_name": "m", "target": 0.55, "regression_tolerance": 1.0, "watch_seconds": 30},
        "serving": {"model_name": "m", "watch_seconds": 30},
        "availability": {"models": ["m"]},
    }
    simulation.add(kind, objective_of({"type": kind, **wanted[kind]}))
    keeping.until["g000"] = 100.0
    return Whole(simulation, learning, keeping)


@pytest.mark.parametrize("killed", [False, True], ids=["cancelled", "killed and cancelled"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["quality", "serving"])
def test_a_goal_is_cancelled_at_whichever_step(kind: str, seed: int, killed: bool) -> None:
    finished = alone(kind, seed)
    finished.simulation.run()
    for number in range(1, len(finished.simulation.rows["g000"].goal.steps) + 1):
        simulation = alone(kind, seed).simulation
        row, decided = simulation.rows["g000"], list[Ending | None]()

        def begun(row: Row, step: Step, at: int = number, of: Simulation = simulation, to: list[Any] = decided) -> None:
            if step.number == at and row.cancel_s is None:
                row.cancel_s = of.now
                to.append(row.memory.ending)
                if killed:
                    raise Killed

        simulation.begun = begun
        simulation.run()
        before = decided[0]
        assert row.end is not None and row.end.status == (before.status if before else "cancelled"), number
        assert before is None or row.goal.steps[number - 1].action.kind == "discard"
        assert row.ended_s - (row.cancel_s or 0.0) < 120, "it ends soon"
