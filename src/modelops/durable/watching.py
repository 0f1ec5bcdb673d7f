"""What happens to durable work, as whoever watches it is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from modelops.api.errors import shutting_down
from modelops.api.messages import Response
from modelops.durable.bell import Bell
from modelops.store.durable import ENDED, DurableQueries, EventRow, R

#: How often somebody who watches looks where nobody says that there is something new.
_LOOK_S = 1.0
_AT_ONCE = 1000  # events that are read together

E = TypeVar("E", bound=Response)


async def watch(
    queries: DurableQueries[R],
    bell: Bell,
    row_id: str,
    after: int,
    deadline: float,
    look: Callable[[str], Awaitable[R]],
) -> AsyncGenerator[tuple[EventRow, R | None]]:
    """What has happened after the event `after`, and what happens until the work has ended.

    The last event has the row with it; where the deadline, on the loop's clock, comes before the end, that is an event
    which has been seen already, or number 0, and the row has not ended. `look` gives the row as it stands: what it
    raises where there is none is raised before the first event. Raises Overloaded where nobody is told any more.
    """
    await look(row_id)
    if bell.closed:
        raise shutting_down()
    loop, seen = asyncio.get_running_loop(), after
    with bell.hearing(row_id) as rung:
        while True:
            rung.clear()
            row = await look(row_id)
            events = await queries.events(row_id, seen, _AT_ONCE)
            ended = row.status in ENDED and len(events) < _AT_ONCE  # or there may be more of them
            for event in events:
                seen = event.number
                if event is not events[-1] or not ended:
                    yield event, None
            if ended:
                yield events[-1] if events else _nothing_new(row_id, seen), row
                return
            if events:
                continue
            if loop.time() >= deadline or bell.closed:
                yield _nothing_new(row_id, seen), row
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, loop.time() + _LOOK_S)):
                    await rung.wait()


def told(event: EventRow, kind: type[E], **last: Any) -> E:
    """The event as whoever watches that kind of work is told; `last` is what the last one has beside."""
    return kind.model_validate(vars(event) | {"at": datetime.fromtimestamp(event.at, UTC)} | last)


def _nothing_new(row_id: str, number: int) -> EventRow:
    return EventRow(row_id, number, time.time(), "state")
