"""Which adapters answer beside a model, and on which of its files: what the catalogue says of them. Decides nothing
about engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from modelops.api.errors import Conflict, NotFound
from modelops.serving.catalog import Catalog, Version


class Adapters:
    """Those that are registered."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def of(self, name: str) -> list[Version]:
        """All versions of all adapters of the model `name`, by their names."""
        prefix = f"{name}:"
        names = [found for found in self._catalog.names() if found.startswith(prefix)]
        versions = [version for found in names for version in self._catalog.versions(found)]
        return [version for version in versions if version.base and version.engine_name == name]

    def active(self, version: Version) -> list[Version]:
        """The active versions of the adapters that were made for the file of `version`, whose digest is known."""
        if version.model_type != "llm" or not version.digest:
            return []
        found = [adapter for adapter in self.of(version.model_name) if adapter.base == version.digest]
        return [adapter for adapter in found if self._catalog.active(adapter.model_name).number == adapter.number]

    async def beside(self, version: Version, chosen: Version | None = None) -> tuple[Version, ...]:
        """Those of `active` whose files are there, with `chosen` instead of the active one of its name."""
        if not self.of(version.model_name):
            return ()
        found = self.active(await self._catalog.digest(version))
        if chosen:
            found = [adapter for adapter in found if adapter.model_name != chosen.model_name]
            found = sorted([*found, chosen], key=lambda adapter: adapter.model_name)
        found = [self._catalog.known(adapter) for adapter in found]
        return tuple(await asyncio.to_thread(lambda: [adapter for adapter in found if self.there(adapter)]))

    def there(self, adapter: Version) -> bool:
        """Whether an engine may be started with it: it is registered, and its file is as it was."""
        known = self._catalog.knows_version(adapter)
        return known and self._catalog.known(adapter).unchanged()

    async def base(self, adapter: Version) -> Version:
        """The version that answers for the adapter's model, which is of the file that the adapter was made for.

        Raises Conflict where it is of another file, NotFound where the adapter's own is gone.
        """
        name, catalog = adapter.engine_name, self._catalog
        base = await catalog.digest(await catalog.find(name))
        if base.digest != adapter.base:
            versions = catalog.versions(name)
            made_for = " or ".join(version.label for version in versions if version.digest == adapter.base)
            what = f"'{adapter.model_name}' {adapter.label}"
            if not made_for:
                raise Conflict(f"{what} was made for a file of '{name}' that is not registered any more")
            raise Conflict(
                f"{what} was made for '{name}' {made_for}, and {base.label} answers for '{name}' now; activate "
                f"{made_for} again, or an adapter that was made for {base.label}"
            )
        await asyncio.to_thread(catalog.version, adapter.model_name, adapter.label)
        if not await asyncio.to_thread(self.there, adapter):
            raise NotFound(f"the file of '{adapter.model_name}' {adapter.label} cannot be read")
        return base

    async def orphaned(self, versions: Sequence[Version]) -> list[Version]:
        """The adapters that could not be served any more without `versions`, which are all of one model."""
        name = versions[0].model_name
        if not (adapters := self.of(name)):
            return []
        gone = {version.number for version in versions}
        known = []
        for version in self._catalog.versions(name):
            with contextlib.suppress(NotFound):
                known.append(await self._catalog.digest(version))
        left = {version.digest for version in known if version.number not in gone}
        lost = {version.digest for version in known if version.number in gone} - left
        return [adapter for adapter in adapters if adapter.base in lost]
