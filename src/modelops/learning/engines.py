"""An engine of a job's own: to prove what it has made, and to judge it, before anybody else can ask it.

Its memory is lent by the one ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modelops.api.errors import EngineFailed
from modelops.engines.base import EngineBroke, EngineSpec
from modelops.engines.llama_cpp import Engine
from modelops.serving.catalog import Version
from modelops.serving.devices import Machine
from modelops.serving.loans import Loan
from modelops.serving.tuning import tune
from modelops.serving.wishes import Wish
from modelops.settings import Settings

_AS_SERVED = Wish()


@dataclass(frozen=True)
class Planned:
    """An engine that is to be started, and the bytes of RAM that it takes."""

    spec: EngineSpec
    size: int


class OwnEngines:
    """Starts engines that no caller can reach."""

    def __init__(self, settings: Settings, machine: Machine, runtime_dir: Path) -> None:
        self._settings = settings
        self._machine = machine
        self._runtime_dir = runtime_dir
        self._numbers = itertools.count(1)

    async def plan(
        self,
        name: str,
        file: Path,
        adapters: Sequence[Path] = (),
        *,
        context_length: int = 0,
        exact: bool = False,
        wish: Wish = _AS_SERVED,
        draft: Path | None = None,
    ) -> Planned:
        """An engine that serves `file`, called `name`, in RAM; as models are served here or `wish` says, or as `exact`
        as there is. `draft` is the file of the model that the wish names to guess ahead."""
        version = Version(name, 0, "llm", file, file.name, "")
        wish = replace(
            wish,
            gpu_layers=-1,
            context_length=context_length or wish.context_length,
            cache_type="f16" if exact else wish.cache_type,
        )
        work = functools.partial(tune, version, wish, self._settings.engine, self._machine.cores, draft=draft)
        tuned = await asyncio.to_thread(work)
        spec = replace(tuned.spec, adapters=tuple(adapters), gpu_layers=0, gpus=())
        return Planned(spec, tuned.need.total + sum(adapter.stat().st_size for adapter in adapters))

    @contextlib.asynccontextmanager
    async def run(self, planned: Planned, loan: Loan) -> AsyncIterator[Engine]:
        """The engine, in memory that was lent for it, while the context is open. Raises EngineBroke."""
        engine = Engine(planned.spec, self._runtime_dir / f"j{next(self._numbers)}.sock")
        loan.taken = engine.taken_bytes
        try:
            try:
                await engine.start()
            except EngineFailed as error:  # somebody may have killed it; where it was not that, it fails again
                raise EngineBroke(error.message, "its engine did not start") from None
            yield engine
        finally:
            await engine.stop()
