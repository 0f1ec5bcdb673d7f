"""Load at a steady pace that counts itself: what a dashboard shows is compared with what callers were told."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from contract.wires import Answer, Refused


@dataclass(frozen=True)
class Asked:
    """One call that asked a model, as its caller saw it; times are of the day."""

    began: float
    ended: float
    model: str
    protocol: str
    code: str
    latency_s: float
    tokens: int


@dataclass(frozen=True)
class Job:
    """One caller: what it asks each `every_s` seconds, one call after the other. `model`: as the counters call it."""

    protocol: str
    model: str
    every_s: float
    ask: Callable[[], Answer]


def streamed(chunks: Callable[[], Generator[Any]]) -> Callable[[], Answer]:
    """Ask for a stream, and take its last chunk for the answer."""

    def ask() -> Answer:
        try:
            return Answer(seen="", result=list(chunks())[-1].final)
        except Refused as refused:
            return refused.answer

    return ask


class Driver:
    """Counts what it drives."""

    def __init__(self) -> None:
        self.calls: list[Asked] = []
        self._over = threading.Event()

    def ask(self, job: Job) -> None:
        began = time.time()
        answer = job.ask()
        ended, result = time.time(), answer.result
        latency_s = result.latency_ms / 1000 if result else 0.0
        tokens = getattr(result, "tokens_generated", 0)
        code = answer.code or "ok"
        self.calls.append(Asked(began, ended, job.model, job.protocol, code, latency_s, tokens))

    @contextlib.contextmanager
    def driving(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Every job goes on while the context is open; leaving it waits for the last answers."""
        with ThreadPoolExecutor(len(jobs)) as threads:
            running = [threads.submit(self._repeat, job) for job in jobs]
            try:
                yield
            finally:
                self._over.set()
            for done in running:
                done.result()

    def _repeat(self, job: Job) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            self.ask(job)
            due += job.every_s

    def of(self, **wanted: str) -> list[Asked]:
        """Its calls with those values."""
        return [call for call in self.calls if all(getattr(call, name) == value for name, value in wanted.items())]

    def counts(self, *fields: str, **wanted: str) -> Counter[frozenset[tuple[str, str]]]:
        """How many calls there were of each combination of the fields."""
        return Counter(frozenset((name, getattr(call, name)) for name in fields) for call in self.of(**wanted))
