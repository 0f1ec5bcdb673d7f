"""Opens the state file and brings it up to date."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection, ExceptionContext
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from modelops.metrics import Metrics
from modelops.metrics.families import STATE_FILE_ERRORS, STATE_FILE_TIME
from modelops.store.tables import MIGRATIONS


class StateFileError(Exception):
    """The state file cannot be used; the message says why."""


async def open_database(file: Path, metrics: Metrics | None = None) -> AsyncEngine:
    """The state file's engine, all migrations applied; a missing file is made, readable by its owner only. Statements
    that run are counted in `metrics`.

    Raises StateFileError, and leaves the file as it was, where it is damaged or of a newer release.
    """
    file.touch(mode=0o600, exist_ok=True)
    # Journals that are made get the same mode; those of an earlier day, as a kill leaves them, may be open to others.
    for each in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        with contextlib.suppress(FileNotFoundError):
            each.chmod(0o600)
    # What goes wrong may be logged: the statement, and not what was to be written.
    engine = create_async_engine(URL.create("sqlite+aiosqlite", database=str(file)), hide_parameters=True)
    event.listen(engine.sync_engine, "connect", _configure)
    if metrics:
        _count(engine, metrics)
    try:
        async with engine.begin() as connection:
            await _migrate(connection, file)
    except DatabaseError as error:
        await engine.dispose()
        raise StateFileError(f"the state file {file} cannot be used: {error.orig}") from None
    except StateFileError:
        await engine.dispose()
        raise
    return engine


def _count(engine: AsyncEngine, metrics: Metrics) -> None:
    def began(*args: Any) -> None:
        args[4].began = time.perf_counter()

    def ended(*args: Any) -> None:
        if not args[2].startswith("PRAGMA"):  # looks, four each second, of what is in memory
            metrics.observe(STATE_FILE_TIME, time.perf_counter() - args[4].began)

    def failed(context: ExceptionContext) -> None:
        if isinstance(context.original_exception, sqlite3.Error):  # or who waited for it has left
            metrics.count(STATE_FILE_ERRORS)

    event.listen(engine.sync_engine, "before_cursor_execute", began)
    event.listen(engine.sync_engine, "after_cursor_execute", ended)
    event.listen(engine.sync_engine, "handle_error", failed)


def _configure(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    try:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()
    except Exception:
        connection.close()  # nobody else knows of it yet
        raise


async def _migrate(connection: AsyncConnection, file: Path) -> None:
    # By itself the driver begins no transaction for DDL: a step that is interrupted must leave nothing behind.
    await connection.execute(text("BEGIN IMMEDIATE"))
    present = (await connection.execute(text("PRAGMA user_version"))).scalar_one()
    refuse_newer(present, file)
    for step in MIGRATIONS[present:]:
        for statement in step:
            await connection.execute(text(statement))
    await connection.execute(text(f"PRAGMA user_version = {len(MIGRATIONS)}"))


def refuse_newer(version: int, file: Path) -> None:
    """Raises StateFileError where a state file of that version was written by a newer release than this one."""
    if version > len(MIGRATIONS):
        raise StateFileError(
            f"the state file {file} was written by a newer release (version {version}, this one knows "
            f"{len(MIGRATIONS)}); use that release, or another data_dir"
        )
