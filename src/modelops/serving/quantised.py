"""The quantised copies: which file is served where a caller wishes quantised weights. Owns the folder of copies.

A copy is made once for each file's digest and type; disk and memory are asked first. What makes it is `quantising`.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from modelops.serving import quantising
from modelops.serving.arrivals import Arrivals, Progress
from modelops.serving.catalog import Catalog, Version
from modelops.serving.gguf import read_header
from modelops.serving.loans import Loan
from modelops.serving.quant_plan import Plan, parse

#: Holds so many bytes of the ledger while the context is open; raises InsufficientMemory.
Borrow = Callable[[str, int], AbstractAsyncContextManager[Loan]]


class Quantised:
    """The copies in `folder`, of weights of the type `kind`."""

    def __init__(self, catalog: Catalog, arrivals: Arrivals, folder: Path, kind: str) -> None:
        self._catalog = catalog
        self._arrivals = arrivals
        self._folder = folder
        self._kind = parse(kind)

    async def file(self, version: Version, borrow: Borrow) -> Path:
        """The file that serves `version` quantised: its own where it is so already, else the copy, made if need be."""
        header = await asyncio.to_thread(read_header, version.file)
        if header.quantised:
            return version.file
        target = self._copy(await self._catalog.digest(version))
        if not await asyncio.to_thread(target.is_file):
            plan = await quantising.plan(version.file, self._kind)

            async def make(progress: Progress) -> None:
                await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
                async with borrow(f"quantising {version.model_name}", plan.memory_bytes):
                    await quantising.quantise(plan, target, progress)

            await self._arrivals.bring(str(target), version.model_name, "quantising", make)
        return target

    @contextlib.asynccontextmanager
    async def look(self, version: Version) -> AsyncIterator[Path]:
        """As `file`, but nothing is made: where there is no copy yet, a file with its header and a hole for its weights
        stands for it as long as the context is open. All that is asked of memory is asked of headers."""
        if (plan := await self.would(version)) is None:
            header = await asyncio.to_thread(read_header, version.file)
            yield version.file if header.quantised else self._copy(version)
            return
        with tempfile.TemporaryDirectory(prefix="modelops-copy-") as folder:
            yield await asyncio.to_thread(quantising.skeleton, plan, Path(folder))

    def _copy(self, version: Version) -> Path:
        digest = self._catalog.known(version).digest.removeprefix("sha256:")
        return self._folder / f"{digest}-{self._kind}.gguf"

    async def would(self, version: Version) -> Plan | None:
        """What a copy of `version` would be, None where none is needed or it is there."""
        plan = await quantising.plan(version.file, self._kind)
        return None if plan.needless or await asyncio.to_thread(self._copy(version).is_file) else plan

    def prune(self, digests: Collection[str]) -> tuple[list[str], int]:
        """Delete the copies of files that have none of `digests`, and what killed runs left; what, and bytes freed."""
        return prune_copies(self._folder, digests, "quantised copy")


def prune_copies(folder: Path, digests: Collection[str], what: str) -> tuple[list[str], int]:
    """Delete the files in `folder`, named after the digests that they were made of, that have none of `digests`, and
    what killed runs left; what, and the bytes freed."""
    removed: list[str] = []
    freed = 0
    wanted = {digest.removeprefix("sha256:") for digest in digests}
    for file in folder.glob("*.gguf"):
        if file.name.split("-")[0] not in wanted:
            freed += file.stat().st_size
            file.unlink()
            removed.append(f"{what} {file.name[:12]}…")
    quantising.prune(folder)
    return removed, freed
