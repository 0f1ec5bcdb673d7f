"""A pool with its catalog over a state file, in this process, and what tests do with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from modelops.engines.base import Prompt
from modelops.metrics import Metrics
from modelops.serving.arrivals import Arrivals
from modelops.serving.catalog import Catalog
from modelops.serving.devices import Device, ThisMachine
from modelops.serving.estimates import Estimates
from modelops.serving.placement import HOST, Bill
from modelops.serving.pool import Pool
from modelops.serving.quantised import Quantised
from modelops.serving.residents import Residents
from modelops.serving.views import Lease, View
from modelops.serving.wishes import Wish
from modelops.settings import ModelEntry, Settings
from modelops.store.database import open_database
from modelops.store.estimates import EstimateQueries
from modelops.store.models import ModelQueries
from modelops.store.residents import ResidentQueries

PROMPT = Prompt(text="Hello", system="", raw=False, max_tokens=3, temperature=0.0, top_p=0.9, stop=(), seed=None)


class Shown(ThisMachine):
    """This machine, `less` so many bytes that others hold; it counts how often it is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.less = 0
        self.looks = 0

    def devices(self) -> tuple[Device, ...]:
        self.looks += 1
        return tuple(replace(device, free=max(0, device.free - self.less)) for device in super().devices())


@dataclass
class House:
    """The parts, and shorter words for what is asked of them."""

    pool: Pool
    catalog: Catalog
    residents: Residents
    models: Path
    starts_file: Path
    others: set[psutil.Process]  # processes of other tests

    def processes(self) -> set[psutil.Process]:
        """Every process that the pool has started and that is still there."""
        return set(psutil.Process().children(recursive=True)) - self.others

    @property
    def starts(self) -> int:
        """How often an engine has been started."""
        return len(self.starts_file.read_text().splitlines()) if self.starts_file.exists() else 0

    @property
    def reserved(self) -> int:
        """Bytes of RAM that the ledger holds."""
        return self.pool.reserved().get(HOST, 0)

    @property
    def free(self) -> int:
        """Bytes of RAM that may still be reserved."""
        bill = self.pool.preview_loan("everything", 2**60)
        assert isinstance(bill, Bill)
        return bill.free[HOST]

    def lease(
        self, name: str = "a", seconds: float = 20.0, keep_alive_s: float | None = None
    ) -> AbstractAsyncContextManager[Lease]:
        return self.pool.lease(name, asyncio.get_running_loop().time() + seconds, keep_alive_s)

    async def ask(
        self, name: str = "a", seconds: float = 20.0, *, keep_alive_s: float | None = None, **changes: Any
    ) -> str:
        """One request; the whole answer."""
        async with self.lease(name, seconds, keep_alive_s) as lease:
            pieces = [piece.text async for piece in lease.generate(replace(PROMPT, **changes))]
        return "".join(pieces)

    async def load(self, name: str = "a", seconds: float = 20.0, **wish: Any) -> View:
        deadline = asyncio.get_running_loop().time() + seconds
        return await self.pool.load(self.catalog.active(name), Wish(**wish), deadline)

    async def unload(self, name: str = "a", *, force: bool = False, seconds: float = 20.0) -> int:
        return await self.pool.unload(name, force=force, deadline=asyncio.get_running_loop().time() + seconds)

    async def until(self, condition: Callable[[View], object], name: str = "a") -> View:
        """Wait until the model's view is as wanted."""
        while not condition(view := self.pool.view(name)):
            await asyncio.sleep(0.005)
        return view


Make = Callable[..., Awaitable[House]]


@contextlib.asynccontextmanager
async def house(
    data_dir: Path, settings: Settings, starts_file: Path, entries: Mapping[str, ModelEntry] | None = None
) -> AsyncIterator[House]:
    """A pool over the state file in `data_dir`. When it is left, the pool is closed: leaving is the end of a run."""
    others = set(psutil.Process().children(recursive=True))
    async with contextlib.AsyncExitStack() as stack:
        database = await open_database(data_dir / "state.db")
        stack.push_async_callback(database.dispose)
        residents, arrivals = Residents(ResidentQueries(database)), Arrivals()
        roots = [settings.models_dir]
        catalog = Catalog(ModelQueries(database), residents.queries, roots, arrivals, entries or {})
        stack.push_async_callback(catalog.close)
        await catalog.open()
        stack.push_async_callback(residents.close)
        stack.push_async_callback(arrivals.close)
        quantised = Quantised(catalog, arrivals, data_dir / "quantised", settings.engine.quantization_type)
        estimates = Estimates(EstimateQueries(database), ask=settings.engine.probe)
        pool = Pool(settings, catalog, ThisMachine(), quantised, estimates, Metrics(), data_dir, residents.remember)
        stack.push_async_callback(pool.close)
        yield House(pool, catalog, residents, settings.models_dir, starts_file, others)


@contextlib.asynccontextmanager
async def catalog(root: Path, *more: Path, **entries: ModelEntry) -> AsyncIterator[Catalog]:
    """The catalog over the state file beside `root`: leaving and entering again is a restart."""
    database = await open_database(root.parent / "state.db")
    arrivals = Arrivals()
    opened = Catalog(ModelQueries(database), ResidentQueries(database), [root, *more], arrivals, entries)
    try:
        await opened.open()
        yield opened
    finally:
        await arrivals.close()
        await opened.close()
        await database.dispose()
