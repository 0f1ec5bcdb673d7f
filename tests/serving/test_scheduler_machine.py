"""The scheduler in a simulated world, fed everything in every order."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from modelops.serving.breaker import COOL_DOWN_S
from modelops.serving.events import Outcome, Residency, Share, Usage
from modelops.serving.placement import CpuLayers
from modelops.serving.scheduler import STABLE_S
from serving.oracle import MODES
from serving.world import CANDIDATES, SIZES, Settings, World

MODELS = sorted(CANDIDATES)
KEEP_ALIVES = (None, None, 0.0, 5.0, 30.0)
BUDGETS = (0, 0, 400)
PAUSES = (0.1, 1.0, 5.0, COOL_DOWN_S, STABLE_S + 1)
PARTS = (0.5, 1.0, 1.0, 1.2)
SHARES = (Share(), Share("a"), Share("a", 2.0), Share("b"), Share("c", 0.5))
SIZES_OF_PROMPTS = (0, 40, 400, 1200, 4000)
OUTCOMES = (Outcome("answered"), Outcome("answered"), Outcome("failed", "as told"), Outcome())

# --- a few steps, as hypothesis picks them ---
NAMES = st.sampled_from(MODELS)
KEEP = st.sampled_from(KEEP_ALIVES)
RESIDENCIES = st.builds(Residency, KEEP, st.sampled_from([False, False, False, True]))
WHICH = st.integers(0, 9)
KEPT = st.dictionaries(st.sampled_from([*MODELS, "unknown"]), st.integers(0, 3), max_size=3)
SETTINGS = st.builds(
    Settings,
    residencies=st.fixed_dictionaries(dict.fromkeys(CANDIDATES, RESIDENCIES)),
    cpu_layers=st.sampled_from(MODES),
    budget=st.sampled_from(BUDGETS),
    autoload=st.sampled_from([True, True, False]),
    shown=st.booleans(),
    drain_after=st.integers(0, 100),
)


class Machine(RuleBasedStateMachine):
    """Every event and every result as a rule."""

    tickets = Bundle("tickets")

    @initialize(given=SETTINGS)
    def begin(self, given: Settings) -> None:
        self.world = World(given)

    @rule(
        target=tickets,
        name=NAMES,
        residency=st.none() | st.builds(Residency, KEEP),
        share=st.sampled_from(SHARES),
        prompt_bytes=st.sampled_from(SIZES_OF_PROMPTS),
    )
    def ask(self, name: str, residency: Residency | None, share: Share, prompt_bytes: int) -> int:
        return self.world.ask(name, residency, share, prompt_bytes, 50)

    @rule(target=tickets, name=NAMES, residency=RESIDENCIES)
    def load(self, name: str, residency: Residency) -> int:
        return self.world.load(name, residency)

    @rule(target=tickets, name=NAMES, which=st.integers(0, 1), residency=RESIDENCIES, drain_first=st.booleans())
    def swap(self, name: str, which: int, residency: Residency, drain_first: bool) -> int:
        return self.world.swap(name, which, residency, drain_first=drain_first)

    @rule(target=tickets, name=NAMES, force=st.booleans())
    def unload(self, name: str, force: bool) -> int:
        return self.world.unload(name, force=force)

    @rule(names=KEPT)
    def keep(self, names: dict[str, int]) -> None:
        self.world.keep(names)

    @rule(ticket=consumes(tickets), outcome=st.sampled_from(OUTCOMES), tokens=st.sampled_from([0, 5, 500]))
    def hang_up(self, ticket: int, outcome: Outcome, tokens: int) -> None:
        self.world.hang_up(ticket, outcome, Usage(tokens, tokens))

    @precondition(lambda self: self.world.starting())
    @rule(which=WHICH, part=st.floats(0.1, 1.0))
    def grow(self, which: int, part: float) -> None:
        self.world.grow(_one(self.world.starting(), which), part)

    @precondition(lambda self: self.world.starting())
    @rule(which=WHICH, part=st.sampled_from(PARTS), good=st.sampled_from([True, True, False]))
    def ready(self, which: int, part: float, good: bool) -> None:
        self.world.ready(_one(self.world.starting(), which), part, good=good)

    @precondition(lambda self: self.world.stops)
    @rule(which=WHICH)
    def gone(self, which: int) -> None:
        self.world.gone(_one(sorted(self.world.stops), which))

    @precondition(lambda self: self.world.serving())
    @rule(which=WHICH)
    def crash(self, which: int) -> None:
        self.world.crash(_one(self.world.serving(), which))

    @rule(seconds=st.sampled_from(PAUSES))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(device=st.sampled_from(sorted(SIZES)), part=st.floats(0, 1))
    def another_process(self, device: str, part: float) -> None:
        self.world.another_process(device, part)

    @invariant()
    def it_holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        self.world.run_out()


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=50, stateful_step_count=60)


# --- many steps, as they come in life ---
LIVES = int(os.environ.get("SCHEDULER_LIVES", "30"))
STEPS = 400
#: How often: ask, load, swap, unload, hang up, grow, ready, gone, crash, wait, another process, keep.
WEIGHTS = (25, 4, 8, 3, 22, 3, 14, 14, 2, 6, 3, 1)


@pytest.mark.parametrize("seed", range(LIVES))
def test_a_long_life(seed: int) -> None:
    """What few steps seldom come to: many swaps, evictions and crashes, one after another."""
    pick = random.Random(seed)
    world = World(
        Settings(
            residencies={name: _residency(pick) for name in MODELS},
            cpu_layers=_mode(pick),
            budget=pick.choice(BUDGETS),
            autoload=pick.random() < 0.8,
            shown=pick.random() < 0.5,
            drain_after=pick.choice([0, 500]),
        )
    )
    tickets: list[int] = []
    sick = [Outcome("failed", "as told")] if pick.random() < 0.3 else OUTCOMES  # a model that fails most of the time
    for _ in range(STEPS):
        name, which = pick.choice(MODELS), pick.randrange(10)
        match pick.choices(range(len(WEIGHTS)), WEIGHTS)[0]:
            case 0:
                residency = _residency(pick) if which == 0 else None
                tickets.append(world.ask(name, residency, pick.choice(SHARES), pick.choice(SIZES_OF_PROMPTS), 50))
            case 1:
                tickets.append(world.load(name, _residency(pick)))
            case 2:
                tickets.append(world.swap(name, which % 2, _residency(pick), drain_first=which < 2))
            case 3:
                tickets.append(world.unload(name, force=which < 5))
            case 4 if tickets:
                outcome = pick.choice(sick if pick.random() < 0.5 else OUTCOMES)
                world.hang_up(tickets.pop(pick.randrange(len(tickets))), outcome, Usage(which * 10, which))
            case 5 if starting := world.starting():
                world.grow(_one(starting, which), pick.random())
            case 6 if starting := world.starting():
                world.ready(_one(starting, which), pick.choice(PARTS), good=which > 0)
            case 7 if world.stops:
                world.gone(_one(sorted(world.stops), which))
            case 8 if serving := world.serving():
                world.crash(_one(serving, which))
            case 9:
                world.wait(pick.choice(PAUSES))
            case 10:
                world.another_process(pick.choice(sorted(SIZES)), pick.random() * 0.5)
            case 11:
                world.keep({name: pick.randrange(4) for name in pick.sample(MODELS, pick.randrange(4))})
        world.check()
    world.run_out()


def _one(numbers: list[int], which: int) -> int:
    return numbers[which % len(numbers)]


def _mode(pick: random.Random) -> CpuLayers:
    return pick.choice(MODES)


def _residency(pick: random.Random) -> Residency:
    return Residency(pick.choice(KEEP_ALIVES), pinned=pick.random() < 0.1)
