"""Named queries on the registered versions of models."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from modelops.store.tables import model_versions


@dataclass(frozen=True)
class VersionRow:
    """One registered version. `file` is absolute; `size` in bytes; `registered_at` in seconds since the epoch.

    `base` is, of an adapter, the digest of the file that it was made for; `lineage` is JSON, empty for none.
    """

    model_name: str
    number: int
    model_type: str
    file: str
    size: int
    mtime_ns: int
    digest: str
    registered_at: float
    source: str = ""
    base: str = ""
    lineage: str = ""


_FIELDS = [model_versions.c[name] for name in VersionRow.__dataclass_fields__]


class ModelQueries:
    """Reads and writes the table `model_versions`."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def versions(self) -> list[VersionRow]:
        """Every version of every model, oldest first."""
        async with self._database.connect() as connection:
            present = select(*_FIELDS).where(~model_versions.c.removed).order_by(model_versions.c.id)
            rows = await connection.execute(present)
            return [VersionRow(*row) for row in rows]

    async def add(self, row: VersionRow) -> VersionRow:
        """Insert `row` under the model's next free number, which the returned row holds."""
        async with self._database.begin() as connection:
            last = await connection.execute(
                select(func.max(model_versions.c.number)).where(model_versions.c.model_name == row.model_name)
            )
            fields = asdict(row) | {"number": (last.scalar() or 0) + 1}
            await connection.execute(insert(model_versions).values(**fields))
        return VersionRow(**fields)

    async def set_digest(self, model_name: str, number: int, digest: str) -> None:
        """Record the digest of a version's file."""
        chosen = (model_versions.c.model_name == model_name) & (model_versions.c.number == number)
        async with self._database.begin() as connection:
            await connection.execute(update(model_versions).where(chosen).values(digest=digest))

    async def set_file(self, row: VersionRow) -> None:
        """Record where the version's file is now, its size and its latest change."""
        chosen = (model_versions.c.model_name == row.model_name) & (model_versions.c.number == row.number)
        found = {"file": row.file, "size": row.size, "mtime_ns": row.mtime_ns}
        async with self._database.begin() as connection:
            await connection.execute(update(model_versions).where(chosen).values(**found))

    async def remove(self, model_name: str, number: int) -> None:
        """Forget a version; its number is never given again."""
        chosen = (model_versions.c.model_name == model_name) & (model_versions.c.number == number)
        async with self._database.begin() as connection:
            await connection.execute(update(model_versions).where(chosen).values(removed=True))
