"""Many clients that ask one model without a pause while its versions change, and whether each answer is of a version
that was active while it was asked for."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from contract.wires import TRANSPORTS, Wire, connected
from modelops.client import Client
from support import Served


@dataclass(frozen=True)
class Asked:
    """A request and its answer; seconds on one clock. `wrong` says what failed."""

    began: float
    ended: float
    how: str
    version: str = ""
    text: str = ""
    wrong: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


@dataclass(frozen=True)
class Swapped:
    """A change of the active version, from the call that asked for it until its answer."""

    began: float
    ended: float
    version: str


@dataclass
class Clients:
    """Clients over every transport, every second one with streams. Each asks again as soon as it is answered."""

    fields: Callable[[int], dict[str, Any]]
    asked: list[Asked] = field(default_factory=list)
    _end: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, wires: dict[str, Wire], count: int) -> None:
        """Begin to ask, with so many clients."""
        for number in range(count):
            wire, stream = wires[TRANSPORTS[number % len(TRANSPORTS)]], number // len(TRANSPORTS) % 2 == 1
            thread = threading.Thread(target=self._run, args=(wire, stream), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Ask no more, and wait for the answers that are still to come."""
        self._end.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request was never answered"

    def _run(self, wire: Wire, stream: bool) -> None:
        ask, how = (streamed, f"{wire.name} stream") if stream else (whole, wire.name)
        for number in itertools.count():
            if self._end.is_set():
                return
            began = time.monotonic()
            try:
                version, text = ask(wire, self.fields(number))
            except Exception as error:
                self.asked.append(Asked(began, time.monotonic(), how, wrong=repr(error)))
            else:
                self.asked.append(Asked(began, time.monotonic(), how, version, text))


def whole(wire: Wire, fields: dict[str, Any]) -> tuple[str, str]:
    """The version and the text of a whole answer."""
    answer = wire.call("infer", fields)
    if answer.code or not answer.result.success:
        raise AssertionError(f"{answer.code}: {answer.message or answer.seen}")
    return answer.result.model_version, answer.result.output_text


def streamed(wire: Wire, fields: dict[str, Any]) -> tuple[str, str]:
    """The version and the text of an answer in chunks."""
    *chunks, last = wire.stream(fields)
    if not last.final.success:
        raise AssertionError(last.final.error_message)
    text = "".join(chunk.text for chunk in chunks)
    assert text == last.final.output_text
    return last.final.model_version, text


@contextmanager
def clients(served: Served, count: int, fields: Callable[[int], dict[str, Any]]) -> Generator[Clients]:
    """So many clients; at the end all of them have been answered."""
    with connected(served) as wires:
        asking = Clients(fields)
        asking.start(wires, count)
        try:
            yield asking
        finally:
            asking.stop()


def swap(asked: Client, model: str, version: str, *, back: bool, drain_first: bool = False) -> Swapped:
    """Let `version` answer, by name or, where it did before, by rolling back."""
    began = time.monotonic()
    if back:
        now = asked.roll_back(model, drain_first=drain_first)
    else:
        now = asked.activate(model, version, drain_first=drain_first)
    assert (now.model_version, now.status) == (version, "loaded"), now
    return Swapped(began, time.monotonic(), version)


def judge(asked: Sequence[Asked], first: str, swaps: Sequence[Swapped]) -> list[str]:
    """What is wrong: requests that failed, and answers of a version that was not active while they were asked for.

    A version may be active from the call that asks for it until the answer of the call that asks for the next.
    """
    forever = float("inf")
    spans = [
        (now.version, now.began, after.ended)
        for now, after in itertools.pairwise([Swapped(0.0, 0.0, first), *swaps, Swapped(forever, forever, "")])
    ]
    wrong = [f"{one.how}: {one.wrong}" for one in asked if one.wrong]
    for one in asked:
        if not one.wrong and not any(
            version == one.version and since <= one.ended and until >= one.began for version, since, until in spans
        ):
            active = [span for span in spans if span[1] <= one.ended and span[2] >= one.began]
            wrong.append(
                f"{one.how}: answered by {one.version} from {one.began} to {one.ended}, when {active} were active"
            )
    return wrong
