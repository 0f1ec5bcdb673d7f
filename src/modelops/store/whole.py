"""Queries that are done to their end, whoever waits for them.

Of a statement that is cut short the driver may keep the lock, and nobody could write any more.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from modelops.tasks import Tasks

P = ParamSpec("P")
T = TypeVar("T")

_tasks = Tasks("store")


def whole(query: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """The same; where whoever waits for it is cancelled, it is done first."""

    @functools.wraps(query)
    async def done(*args: P.args, **kwargs: P.kwargs) -> T:
        asked = _tasks.start(query.__name__, query(*args, **kwargs), expected=(Exception,))
        try:
            result: T = await asyncio.shield(asked)
        except asyncio.CancelledError:
            if not asked.done():
                await asyncio.wait({asked})
            raise
        return result

    return done
