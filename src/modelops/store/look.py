"""A look at the state file that changes nothing: no migration, no journal, no file that was not there."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from modelops.store.database import StateFileError, refuse_newer

_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Look:
    """`version` of the tables, and whether there has ever been a key: then every caller needs one."""

    version: int
    need_keys: bool


def look(file: Path) -> Look:
    """What the state file says, also while a coordinator writes to it.

    Raises StateFileError where it is damaged or of a newer release, OSError where it cannot be read.
    """
    file.open("rb").close()  # what SQLite says of a file that it may not read, tells nobody why
    journal = file.with_name(f"{file.name}-wal")
    while True:
        # Where there is no journal, SQLite would make one even to read, and leave it: unless it is told that nobody
        # writes. If somebody began to just then, there is a journal now, and what was read may be half of each.
        alone = not journal.exists()
        try:
            return _look(file, alone=alone)
        except sqlite3.DatabaseError as error:
            if not alone or not journal.exists():
                raise StateFileError(f"the state file {file} cannot be used: {error}") from None


def _look(file: Path, *, alone: bool) -> Look:
    address = f"{file.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
    with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_PATIENCE_S)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        refuse_newer(version, file)
        (told,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if told != "ok":
            raise sqlite3.DatabaseError(told.splitlines()[-1])
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        keys = "keys" in tables and connection.execute("SELECT 1 FROM keys LIMIT 1").fetchone() is not None
    return Look(version, keys)
