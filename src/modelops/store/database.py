"""Opens the state file and brings it up to date."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from modelops.store.tables import MIGRATIONS


class StateFileError(Exception):
    """The state file cannot be used; the message says why."""


async def open_database(file: Path) -> AsyncEngine:
    """The state file's engine, all migrations applied; a missing file is made, readable by its owner only."""
    file.touch(mode=0o600, exist_ok=True)
    engine = create_async_engine(f"sqlite+aiosqlite:///{file}")

    @event.listens_for(engine.sync_engine, "connect")
    def configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    async with engine.begin() as connection:
        present = (await connection.execute(text("PRAGMA user_version"))).scalar_one()
        if present > len(MIGRATIONS):
            await engine.dispose()
            raise StateFileError(
                f"the state file {file} was written by a newer release (version {present}, this one knows "
                f"{len(MIGRATIONS)}); use that release, or another data_dir"
            )
        for step in MIGRATIONS[present:]:
            for statement in step:
                await connection.execute(text(statement))
        await connection.execute(text(f"PRAGMA user_version = {len(MIGRATIONS)}"))
    return engine
