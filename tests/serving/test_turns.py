"""Cores are shared in turns: who runs next as a table, then real turns on a real loop, waited for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import pytest
import pytest_asyncio

from modelops.serving.turns import Turns, turn


# --- who runs next ---
@pytest.mark.parametrize(
    ("waiting", "threads", "cores", "running"),
    [
        pytest.param([], {}, 2, [], id="nobody"),
        pytest.param([1], {1: 2}, 2, [1], id="one"),
        pytest.param([1], {1: 8}, 2, [1], id="one that wants more than there is"),
        pytest.param([1, 2], {1: 2, 2: 2}, 2, [1], id="who has waited longest"),
        pytest.param([2, 1], {1: 2, 2: 2}, 2, [2], id="whoever that is"),
        pytest.param([1, 2, 3], {1: 1, 2: 2, 3: 1}, 2, [1, 3], id="and who fits beside"),
        pytest.param([1, 2, 3], {1: 1, 2: 1, 3: 1}, 2, [1, 2], id="as many as there are cores for"),
        pytest.param([1, 2, 3], {1: 8, 2: 1, 3: 1}, 2, [1], id="nobody beside one that wants more than there is"),
        pytest.param([1, 2], {1: 1, 2: 1}, 4, [1, 2], id="all, where there is room"),
    ],
)
def test_who_runs_next(waiting: Sequence[int], threads: Mapping[int, int], cores: int, running: list[int]) -> None:
    assert turn(waiting, threads, cores) == running


# --- turns ---
class Engines:
    """What was paused and resumed. No engine is paused twice, nor resumed when it runs."""

    def __init__(self, cores: int = 2) -> None:
        self.turns = Turns(cores, self.pause)
        self.threads: dict[int, int] = {}
        self.paused: set[int] = set()
        self.had: Counter[int] = Counter()  # turns of each
        self._changed = asyncio.Event()

    def pause(self, engine: int, paused: bool) -> None:
        assert paused != (engine in self.paused)
        self.paused ^= {engine}
        self.had[engine] += not paused
        self._changed.set()

    def busy(self, **threads: int) -> None:
        """From now on these are busy: `e1=2` is engine 1 with two threads."""
        self.threads = {int(name[1:]): count for name, count in threads.items()}
        self.turns.busy(self.threads)
        self.check()

    def check(self) -> None:
        running = self.threads.keys() - self.paused
        assert self.paused <= self.threads.keys(), "who is not busy is not paused"
        assert running or not self.threads, "somebody runs"
        assert len(running) == 1 or sum(self.threads[engine] for engine in running) <= 2, "no more than there are cores"

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for turns to come and go."""
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await self._changed.wait()
                await asyncio.sleep(0)  # a turn is several changes at once
                self.check()


@pytest_asyncio.fixture
async def engines(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engines]:
    monkeypatch.setattr("modelops.serving.turns.TURN_S", 0.005)
    made = Engines()
    yield made
    made.turns.end()
    assert not made.paused, "in the end everybody runs"


async def test_who_fits_beside_each_other_is_never_paused(engines: Engines) -> None:
    engines.busy(e1=2)
    engines.busy(e1=1, e2=1)
    engines.busy(e2=1)
    engines.busy()
    assert not engines.had
    assert not engines.paused


async def test_one_alone_has_the_machine_however_many_threads_it_has(engines: Engines) -> None:
    engines.busy(e1=8)
    assert not engines.paused


async def test_a_new_one_is_next(engines: Engines) -> None:
    engines.busy(e1=2)
    engines.busy(e1=2, e2=2)
    assert engines.paused == {1}
    engines.busy(e1=2, e2=2, e3=2)
    assert engines.paused == {1, 2}


async def test_everybody_gets_turns(engines: Engines) -> None:
    engines.busy(e1=2, e2=2, e3=1, e4=1)
    await engines.until(lambda: min(engines.had[engine] for engine in (1, 2, 3, 4)) >= 5)
    assert max(engines.had.values()) <= 3 * min(engines.had.values()), "about as many each"


async def test_one_that_wants_more_than_there_is_gets_turns_too(engines: Engines) -> None:
    engines.busy(e1=8, e2=1, e3=1)
    await engines.until(lambda: min(engines.had[engine] for engine in (1, 2, 3)) >= 3)


async def test_who_is_done_goes_on_at_once_and_the_others_have_the_machine(engines: Engines) -> None:
    engines.busy(e1=2)
    engines.busy(e1=2, e2=2)
    assert engines.paused == {1}
    engines.busy(e1=2)
    assert not engines.paused, "the one that had waited"
    engines.busy(e1=2, e3=2)
    engines.busy(e3=2)
    assert not engines.paused, "the one that is done"


async def test_when_it_is_no_longer_tight_nobody_is_paused_any_more(engines: Engines) -> None:
    engines.busy(e1=1, e2=1, e3=1)
    assert len(engines.paused) == 1
    engines.busy(e1=1, e2=1)
    assert not engines.paused
    had = engines.had.copy()
    await asyncio.sleep(0.03)  # nothing is to happen, so nothing can be waited for
    assert engines.had == had


async def test_the_same_again_begins_no_new_turn(engines: Engines) -> None:
    engines.busy(e1=2, e2=2)
    paused = engines.paused.copy()
    for _ in range(10):
        engines.busy(e1=2, e2=2)
        assert engines.paused == paused


async def test_short_requests_one_after_another_starve_nobody(engines: Engines) -> None:
    """The next of them comes just when the last has ended: it waits for the turn of who had waited meanwhile."""
    engines.busy(e1=2)
    engines.busy(e1=2, e2=2)
    assert engines.paused == {1}, "the first of them is served at once"
    for _ in range(10):
        engines.busy(e1=2)
        engines.busy(e1=2, e2=2)
        assert engines.paused == {2}
        await engines.until(lambda: engines.paused == {1})


async def test_a_request_after_a_while_is_served_at_once(engines: Engines) -> None:
    engines.busy(e1=2)
    engines.busy(e1=2, e2=2)
    engines.busy(e1=2)
    await asyncio.sleep(0.03)  # who runs alone has a turn by time, and nothing else happens
    engines.busy(e1=2, e2=2)
    assert engines.paused == {1}


async def test_who_was_alone_for_less_than_a_turn_goes_on_for_the_rest_of_it(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelops.serving.turns.TURN_S", 0.8)
    engines.busy(e1=2)
    engines.busy(e1=2, e2=2)
    await asyncio.sleep(0.5)
    engines.busy(e1=2)
    await asyncio.sleep(0.5)
    engines.busy(e1=2, e2=2)
    assert engines.paused == {2}


async def test_however_much_comes_and_goes_a_turn_is_a_turn(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelops.serving.turns.TURN_S", 0.05)
    for _ in range(20):
        engines.busy(e1=2, e2=2, e3=2)
        engines.busy(e1=2, e2=2)
    loop = asyncio.get_running_loop()
    began, had = loop.time(), engines.had[1]
    await engines.until(lambda: engines.had[1] == had + 4)
    assert loop.time() - began > 0.25, "three turns of it and three of the other at least"


async def test_of_many_that_come_and_go_each_gets_turns(engines: Engines) -> None:
    engines.busy(e1=2)
    for number in range(30):
        had = engines.had[1]
        engines.busy(e1=2, e2=2, **{f"e{3 + number % 3}": 2})
        await engines.until(lambda had=had: engines.had[1] > had)  # type: ignore[misc]
    engines.busy(e2=2)
    assert not engines.paused


async def test_the_end_resumes_everybody_and_no_turn_follows(engines: Engines) -> None:
    engines.busy(e1=2, e2=2, e3=2)
    engines.turns.end()
    assert not engines.paused
    had = engines.had.copy()
    await asyncio.sleep(0.03)
    assert engines.had == had
    engines.busy(e1=2, e2=2)
    assert len(engines.paused) == 1, "it can begin again"
