"""Shares the machine's cores among engines that are busy at the same time: each has a turn with all its threads.

An engine's threads wait for each other many times for each token, spinning. Where more of them want to run than there
are cores, every wait lasts as long as the kernel's time slice: two engines of two threads on two cores made 17 tokens
per second each, and 58 in turns of a quarter of a second. Alone, an engine has the whole machine (125).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence

#: Long against the cost of a change, short against what a reader notices.
TURN_S = 0.25


def turn(waiting: Sequence[int], threads: Mapping[int, int], cores: int) -> list[int]:
    """Who runs next: from `waiting`, longest first, as many as have cores for all their threads; at least the first."""
    running: list[int] = []
    left = cores
    for engine in waiting:
        if threads[engine] <= left or not running:
            running.append(engine)
            left -= threads[engine]
    return running


class Turns:
    """Pauses and resumes engines; whoever is not busy is not paused."""

    def __init__(self, cores: int, pause: Callable[[int, bool], None]) -> None:
        """`pause(engine, True)` pauses, `pause(engine, False)` resumes."""
        self._cores = cores
        self._pause = pause
        self._threads: dict[int, int] = {}
        self._order: list[int] = []  # longest without a turn first; those that are not busy just now too
        self._turn_ends = 0.0
        self._paused: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None

    def busy(self, threads: Mapping[int, int]) -> None:
        """From now on these engines are busy, each with so many threads."""
        if threads.keys() == self._threads.keys():
            return
        now = asyncio.get_running_loop().time()
        if now >= self._turn_ends:
            self._had_a_turn(self._threads.keys() - self._paused)
        # One that has not run before is next: most requests are short, and its caller waits for the first word. One
        # that was here just now is not: many short requests in a row would leave nothing to a long one.
        self._order = [engine for engine in threads if engine not in self._order] + self._order
        self._threads = dict(threads)
        for engine in self._paused - threads.keys():
            self._go_on(engine)
        if sum(threads.values()) > self._cores:
            self._next()
        else:
            self.end()
            self._turn_ends = now + TURN_S
        if not threads:
            self._order.clear()

    def end(self) -> None:
        """Everybody runs."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        for engine in list(self._paused):
            self._go_on(engine)

    def _next(self) -> None:
        running = turn([engine for engine in self._order if engine in self._threads], self._threads, self._cores)
        self._had_a_turn(running)
        for engine in self._threads.keys() - set(running) - self._paused:
            self._paused.add(engine)
            self._pause(engine, True)
        for engine in running:
            if engine in self._paused:
                self._go_on(engine)
        if self._timer:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._turn_ends = loop.time() + TURN_S
        self._timer = loop.call_at(self._turn_ends, self._next)

    def _had_a_turn(self, engines: Collection[int]) -> None:
        self._order.sort(key=lambda engine: engine in engines)

    def _go_on(self, engine: int) -> None:
        self._paused.discard(engine)
        self._pause(engine, False)
