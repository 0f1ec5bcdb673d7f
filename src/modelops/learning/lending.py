"""Memory of the ledger for what is no model: where it is not free it is waited for, and whoever waits says so."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from modelops.api.errors import InsufficientMemory
from modelops.serving.loans import Loan
from modelops.serving.placement import Plan
from modelops.serving.pool import Pool

_LOOK_FOR_MEMORY_S = 5.0


@contextlib.asynccontextmanager
async def lent(
    pool: Pool, name: str, size: int, on_gpu: int = 0, *, waits: Callable[[str], Awaitable[None]]
) -> AsyncIterator[Loan]:
    """So much memory, held under that name while the context is open. `waits` is told once why it is waited for, and
    with "" that it has come. Raises InsufficientMemory, with the bill, where it would never fit."""
    async with contextlib.AsyncExitStack() as stack:
        said = False
        while True:
            found = pool.preview_loan(name, size, on_gpu)
            if isinstance(found, Plan):
                with contextlib.suppress(InsufficientMemory):  # somebody else was faster
                    loan = await stack.enter_async_context(pool.borrow(name, size, on_gpu))
                    break
            elif found.never:
                raise InsufficientMemory(found.sentence(name), details=found.details())
            elif not said:
                said = True
                await waits(f"it waits for memory: {found.sentence(name)}")
            with contextlib.suppress(TimeoutError):  # what other programs hold may be given back without a word
                async with asyncio.timeout(_LOOK_FOR_MEMORY_S):
                    await pool.turned()
        if said:
            await waits("")
        yield loan
