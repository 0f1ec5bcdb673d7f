"""A look at the state file: what it tells, and that it leaves nothing behind."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from modelops.access import Key
from modelops.store.database import StateFileError, open_database
from modelops.store.keys import KeyQueries
from modelops.store.look import Look, look
from modelops.store.tables import MIGRATIONS


async def test_it_sees_what_was_written_and_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    database = await open_database(file)
    try:
        assert look(file) == Look(len(MIGRATIONS), need_keys=False)
        key = Key("00000000", "alice", "digest", frozenset({"infer"}), created_at=time.time())
        assert await KeyQueries(database).add(key)
        assert (tmp_path / "state.db-wal").stat().st_size > 0
        assert look(file).need_keys  # what is in the journal only, too
    finally:
        await database.dispose()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert look(file) == Look(len(MIGRATIONS), need_keys=True)
    assert (
        {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        == before
        == {"state.db": file.stat().st_mtime_ns}
    )


def test_an_empty_file_is_one_that_a_start_fills(tmp_path: Path) -> None:
    (tmp_path / "state.db").touch()
    assert look(tmp_path / "state.db") == Look(0, need_keys=False)


@pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\xff" * 200])
def test_what_is_no_database_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.db").write_bytes(content)
    with pytest.raises(StateFileError, match="cannot be used"):
        look(tmp_path / "state.db")


def test_a_newer_release_is_told_as_the_start_tells_it(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "state.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.commit()
    connection.close()
    with pytest.raises(StateFileError, match="newer release"):
        look(tmp_path / "state.db")


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        look(tmp_path / "state.db")
    assert list(tmp_path.iterdir()) == []
