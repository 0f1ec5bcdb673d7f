"""What the tests of durable work share: goals in a state file, and who works on them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from modelops.durable.runner import Runner
from modelops.durable.work import Ended, Work
from modelops.store.goals import GoalQueries, GoalRow

GOAL = GoalRow("goal", "better answers", "quality", created_at=1.7e9)
#: Longest wait for something that happens at once.
PATIENCE_S = 20.0

Does = Callable[["Doing"], Awaitable[Ended]]


class Doing(Work):
    """Work that does what a test says; `began` is set when it does."""

    def __init__(self, row: GoalRow, does: Does, *, cleared: bool = False) -> None:
        super().__init__()
        self.row = row
        self.began = asyncio.Event()
        self.asked = asyncio.Event()
        self.reasons: list[str] = []
        self.half_done = False
        self._does = does
        self._cleared = cleared

    @property
    def whole(self) -> bool:
        return self.half_done

    def asked_to_end(self, reason: str) -> bool:
        super().asked_to_end(reason)
        self.reasons.append(reason)
        self.asked.set()
        return not self._cleared

    async def run(self) -> Ended:
        self.began.set()
        return await self._does(self)


class Doer(Runner[GoalRow, Doing]):
    """Works on goals by doing what a test says, and keeps what it was told."""

    def __init__(
        self,
        queries: GoalQueries,
        does: Does,
        *,
        at_once: int = 1,
        owner: str = "here",
        cleared: bool = False,
    ) -> None:
        self.changed: list[str] = []
        super().__init__(queries, name="goal", owner=owner, at_once=at_once, changed=self.changed.append)
        self._does = does
        self._cleared = cleared
        self.begun: dict[str, Doing] = {}
        self.ends: list[tuple[str, Ended]] = []
        self.order: list[str] = []

    def begin(self, row: GoalRow) -> Doing:
        self.begun[row.id] = Doing(row, self._does, cleared=self._cleared)
        self.order.append(row.id)
        return self.begun[row.id]

    async def ended(self, row: GoalRow, end: Ended, seconds: float) -> None:
        assert seconds >= 0
        self.ends.append((row.id, end))


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What `condition` gives, as soon as that is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await condition()):
            await asyncio.sleep(0.01)
    return found


async def as_it_is(queries: GoalQueries, status: str, row_id: str = "goal") -> GoalRow:
    """The row, as soon as it has that status."""

    async def there() -> GoalRow | None:
        row = await queries.get(row_id)
        return row if row and row.status == status else None

    found: GoalRow = await until(there, f"{row_id} to be {status}")
    return found


async def forever(_: Doing) -> Ended:
    """Until somebody cancels it."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")
