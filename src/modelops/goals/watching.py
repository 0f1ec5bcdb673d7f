"""Asks a version that was promoted, as any caller would, and counts what becomes of that: once a second at first, and
seldom after a minute, since what is trained meanwhile stands still for each request.

Whoever looks does not wait for an answer: it is counted when it comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from modelops.api.errors import EngineFailed, ModelOpsError, Overloaded
from modelops.engines.base import Prompt
from modelops.serving.events import Share
from modelops.serving.pool import Pool
from modelops.tasks import Tasks

_EVERY_S, _LATER_S, _OFTEN = 1.0, 15.0, 60
_PATIENCE_S = 10.0
#: Why the model itself is to blame for a refusal; a full queue is no fault of its, nor is memory that others have.
_FAILING = ("breaker_open", "load_backoff")
_SHARE = Share("goals", 0.25, quiet=True)
_PROMPT = Prompt(text="Hello", system="", raw=True, max_tokens=1, temperature=0.0, top_p=1.0, stop=(), seed=None)


@dataclass
class Counted:
    """Probes that were answered, and those in a row, up to now, that were not."""

    answered: int = 0
    unanswered: int = 0
    asked_at: float | None = field(default=None, repr=False)
    asking: asyncio.Task[None] | None = field(default=None, repr=False)

    @property
    def waits(self) -> bool:
        """Whether an answer is waited for."""
        return self.asking is not None and not self.asking.done()


class Watch:
    """The versions that are watched, each under a key of its watcher's."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._tasks = Tasks("probes")
        self._watched: dict[tuple[str, int], Counted] = {}

    def look(self, goal_id: str, number: int, name: str, label: str) -> Counted:
        """What has become of the probes of the version `label` of `name`; the next is begun when it is due. One that
        the goal watched before under another number is not any more."""
        key = goal_id, number
        if key not in self._watched:
            self.end(goal_id)
            self._watched[key] = Counted()
        counted, now = self._watched[key], asyncio.get_running_loop().time()
        every = _LATER_S if counted.answered >= _OFTEN and not counted.unanswered else _EVERY_S
        due = counted.asked_at is None or now - counted.asked_at >= every
        if due and (counted.asking is None or counted.asking.done()):
            counted.asked_at = now
            counted.asking = self._tasks.start(f"probe {name}", self._ask(counted, name, label))
        return counted

    def end(self, goal_id: str) -> None:
        """The goal watches nothing any more."""
        for key in [key for key in self._watched if key[0] == goal_id]:
            asking = self._watched.pop(key).asking
            if asking:
                asking.cancel()

    async def close(self) -> None:
        """Ask nobody any more."""
        await self._tasks.close()

    async def _ask(self, counted: Counted, name: str, label: str) -> None:
        granted = False
        deadline = asyncio.get_running_loop().time() + _PATIENCE_S
        try:
            async with self._pool.lease(name, deadline, share=_SHARE, answer_tokens=1) as lease:
                if lease.version.label != label:
                    return
                granted = True
                async with asyncio.timeout_at(deadline), contextlib.aclosing(lease.generate(_PROMPT)) as pieces:
                    async for _ in pieces:
                        pass
        except (ModelOpsError, TimeoutError) as error:
            refused = isinstance(error, Overloaded) and error.reason in _FAILING
            if refused or granted or isinstance(error, EngineFailed):
                counted.unanswered += 1
        else:
            counted.answered += 1
            counted.unanswered = 0
