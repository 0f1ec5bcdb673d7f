"""Holds up the loads of models before the pool has begun them, as a file does that is on its way."""

from __future__ import annotations

import asyncio

import pytest

from modelops.serving.catalog import Catalog, Version


class Gate:
    """What has to be fetched comes when it is open, and not at all while there is an `error`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.error: Exception | None = None
        self.asked = 0
        find = Catalog.find

        async def held(catalog: Catalog, name: str, *, fetch: bool = False) -> Version:
            if fetch:
                self.asked += 1
                await self.open.wait()
                if self.error:
                    raise self.error
            return await find(catalog, name, fetch=fetch)

        monkeypatch.setattr(Catalog, "find", held)
