"""One way to call both clients, the blocking one and the other."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from modelops import AsyncClient, Client

Kind = type[Client] | type[AsyncClient]
MOST = 2000  # chunks of a stream that are read


def call(kind: Kind, url: str, method: str, *args: Any, timeout_s: float | None = None, **options: Any) -> Any:
    """The result of one method of a client of that kind."""
    if kind is Client:
        with Client(url, timeout_s=timeout_s) as client:
            return getattr(client, method)(*args, **options)

    async def asked() -> Any:
        async with AsyncClient(url, timeout_s=timeout_s) as client:
            return await getattr(client, method)(*args, **options)

    return asyncio.run(asked())


def chunks(
    kind: Kind, url: str, *args: Any, first: int | None = None, method: str = "stream", **options: Any
) -> list[Any]:
    """The chunks of a stream; with `first`, it is closed after that many."""
    if kind is Client:
        with Client(url) as client, contextlib.closing(getattr(client, method)(*args, **options)) as stream:
            return [chunk for _, chunk in zip(range(first or MOST), stream, strict=False)]

    async def asked() -> list[Any]:
        found: list[Any] = []
        async with AsyncClient(url) as client, contextlib.aclosing(getattr(client, method)(*args, **options)) as stream:
            async for chunk in stream:
                found.append(chunk)
                if len(found) == first:
                    break
        return found

    return asyncio.run(asked())
