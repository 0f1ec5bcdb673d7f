"""A model's weights in another format, to try whether it is served better so. Owns the folder of what was written.

As a quantised copy, but of files that are quantised already too: what was lost stays lost, and the other blocks may be
read faster, or take less; and some machines compute with floats faster than with any blocks. Each file is made once for
a digest and a type; disk and memory are asked first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

from modelops.serving import quantising
from modelops.serving.catalog import Catalog, Version
from modelops.serving.quant_plan import WeightType
from modelops.serving.quantised import Borrow, prune_copies
from modelops.serving.quantising import GivingWay, Progress

FOLDER = "formats"  # beside the state file


class Formats:
    """The files in `folder`. No model is told to be on its way while one is written: what serves it is served on."""

    def __init__(self, catalog: Catalog, folder: Path) -> None:
        self._catalog = catalog
        self._folder = folder
        self._one = asyncio.Lock()  # that is written at a time
        self._holders: defaultdict[str, set[Version]] = defaultdict(set)

    async def file(
        self,
        version: Version,
        kind: WeightType,
        borrow: Borrow,
        progress: Progress = lambda _done, _total: None,
        *,
        giving_way: GivingWay = contextlib.nullcontext,
    ) -> Path:
        """The weights of `version` as `kind`: its own file where nothing of it would change, else the one that is kept
        of it, written if need be, in memory that `borrow` holds.

        `progress` gets the bytes that are written, and those in all; `giving_way` may pause what writes. Raises as
        `quantising.quantise`.
        """
        plan = await quantising.plan(version.file, kind, again=True)
        if plan.needless:
            return version.file
        target = self._target(await self._catalog.digest(version), kind)
        async with self._one:
            if not await asyncio.to_thread(target.is_file):
                await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
                async with borrow(f"writing {version.model_name} as {kind}", plan.memory_bytes):
                    await quantising.quantise(plan, target, progress, giving_way=giving_way)
        return target

    async def size(self, version: Version, kind: WeightType) -> int:
        """Bytes of the file that `file` gives; nothing is written."""
        plan = await quantising.plan(version.file, kind, again=True)
        return version.size if plan.needless else plan.target_bytes

    def hold(self, holder: str, version: Version) -> None:
        """What is written of `version` is needed by `holder`, until `release`."""
        self._holders[holder].add(version)

    def held(self, holder: str) -> frozenset[Version]:
        """What `hold` was told for `holder`."""
        return frozenset(self._holders.get(holder, ()))

    def release(self, holder: str) -> None:
        """`holder` needs nothing any more."""
        self._holders.pop(holder, None)

    def discard(self, version: Version, holder: str = "") -> None:
        """Delete what was written of `version`, unless somebody else than `holder` needs what is written of the same
        file: what is of use was published."""
        known = self._catalog.known
        needed = [held for name, held in tuple(self._holders.items()) if name != holder]
        others = {known(each).digest for held in needed for each in tuple(held)}
        digest = known(version).digest
        if digest and digest not in others:
            for file in self._folder.glob(f"{digest.removeprefix('sha256:')}-*.gguf"):
                file.unlink(missing_ok=True)

    def prune(self, digests: Collection[str]) -> tuple[list[str], int]:
        """Delete what was written of files that have none of `digests`, and what killed runs left; what, and bytes
        freed."""
        return prune_copies(self._folder, digests, "rewritten weights")

    def _target(self, version: Version, kind: WeightType) -> Path:
        return self._folder / f"{version.digest.removeprefix('sha256:')}-{kind}.gguf"
