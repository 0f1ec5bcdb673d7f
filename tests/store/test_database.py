from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from metrics.pages import samples, value
from modelops.metrics import Metrics
from modelops.store.database import StateFileError, open_database
from modelops.store.estimates import EstimateQueries, EstimateRow
from modelops.store.goals import GoalQueries
from modelops.store.jobs import EventRow, JobQueries, JobRow
from modelops.store.models import ModelQueries, VersionRow
from modelops.store.residents import ResidentQueries
from modelops.store.tables import MIGRATIONS, metadata


def row(name: str = "m", file: str = "/models/m.gguf") -> VersionRow:
    return VersionRow(name, 0, "llm", file, size=7, mtime_ns=1, digest="", registered_at=2.5)


def ask(file: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


def do(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(statement)
        connection.commit()


async def test_only_the_owner_may_read_the_state(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        database = await open_database(tmp_path / "state.db")
        await ModelQueries(database).add(row())
        assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
            "state.db": 0o600,
            "state.db-wal": 0o600,
            "state.db-shm": 0o600,
        }
        await database.dispose()
    finally:
        os.umask(before)


async def test_what_goes_wrong_is_told_without_what_was_to_be_written(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "state.db")
    with pytest.raises(OperationalError) as failed:
        async with database.begin() as connection:
            await connection.execute(text("INSERT INTO nowhere VALUES (:value)"), {"value": "zanzibar"})
    await database.dispose()
    assert "INSERT INTO nowhere" in str(failed.value)
    assert "zanzibar" not in str(failed.value)


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    for number in (1, 2):
        database = await open_database(tmp_path / "state.db")
        await ModelQueries(database).add(row())
        versions = await ModelQueries(database).versions()
        await database.dispose()
        assert [version.number for version in versions] == list(range(1, number + 1))


@pytest.mark.parametrize("folder", ["a b", "what?", "100%41", "x#y", "ümlaut"])
async def test_any_folder_will_do(tmp_path: Path, folder: str) -> None:
    file = tmp_path / folder / "state.db"
    file.parent.mkdir()
    await (await open_database(file)).dispose()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]


def tables(file: Path) -> dict[str, Any]:
    """Each table's columns (type, whether it may be null, default, place in the primary key) and unique columns and
    indexes; whatever order they were made in."""
    found = {}
    for table in metadata.tables:
        columns = {
            name: (kind, bool(required or key), (default or "").strip("'"), key)
            for _, name, kind, required, default, key in ask(file, f"PRAGMA table_info({table})")
        }
        indexes = {
            (tuple(column for _, _, column in ask(file, f"PRAGMA index_info({name})")), bool(unique))
            for _, name, unique, origin, _ in ask(file, f"PRAGMA index_list({table})")
            if origin != "pk"
        }
        found[table] = columns, indexes
    return found


async def test_the_migrations_lead_to_the_tables(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    await (await open_database(file)).dispose()
    engine = create_engine(f"sqlite:///{tmp_path / 'made.db'}")
    metadata.create_all(engine)
    engine.dispose()
    assert tables(file) == tables(tmp_path / "made.db")
    assert ask(file, "PRAGMA user_version") == [(len(MIGRATIONS),)]


async def test_the_state_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    do(file, "PRAGMA user_version = 99")
    with pytest.raises(StateFileError, match=r"newer release \(version 99"):
        await open_database(file)
    assert ask(file, "PRAGMA user_version") == [(99,)]
    assert ask(file, "SELECT name FROM sqlite_master") == []


async def test_a_damaged_state_file_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    file.write_bytes(b"this is no database\n" * 100)
    with pytest.raises(StateFileError, match=r"state\.db cannot be used: file is not a database"):
        await open_database(file)
    assert file.read_bytes() == b"this is no database\n" * 100


async def test_a_migration_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    do(file, "CREATE TABLE ix_model_versions_model_name (taken)")  # the first step's second statement needs that name
    with pytest.raises(StateFileError, match="cannot be used"):
        await open_database(file)
    assert ask(file, "SELECT name FROM sqlite_master WHERE name = 'model_versions'") == []
    assert ask(file, "PRAGMA user_version") == [(0,)]

    do(file, "DROP TABLE ix_model_versions_model_name")
    await (await open_database(file)).dispose()
    assert ask(file, "PRAGMA user_version") == [(len(MIGRATIONS),)]


async def test_the_state_of_the_first_release_is_brought_up_to_date_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    for statement in MIGRATIONS[0]:
        do(file, statement)
    fields = "model_name, number, model_type, file, size, mtime_ns, digest, registered_at"
    do(file, f"INSERT INTO model_versions ({fields}) VALUES ('m', 3, 'llm', '/models/m.gguf', 7, 1, 'sha256:a', 2.5)")
    do(file, "PRAGMA user_version = 1")
    database = await open_database(file)
    kept = await ModelQueries(database).versions()
    assert kept == [replace(row(), number=3, digest="sha256:a")]
    assert await ResidentQueries(database).all() == []
    assert (await ModelQueries(database).add(row())).number == 4
    await database.dispose()


# --- what is counted ---
async def test_statements_are_counted_and_looks_are_not(tmp_path: Path) -> None:
    metrics = Metrics()
    database = await open_database(tmp_path / "state.db", metrics)
    before = value(samples(metrics.page({}).decode()), "moc_state_file_statement_duration_seconds_count")
    await ModelQueries(database).add(row())
    async with database.connect() as connection:
        await connection.execute(text("PRAGMA data_version"))
        with pytest.raises(OperationalError):
            await connection.execute(text("SELECT nothing FROM nowhere"))
    found = samples(metrics.page({}).decode())
    assert value(found, "moc_state_file_statement_duration_seconds_count") - before >= 1
    assert value(found, "moc_state_file_errors_total") == 1
    await database.dispose()


async def test_who_leaves_is_no_error_of_the_file(tmp_path: Path) -> None:
    metrics = Metrics()
    database = await open_database(tmp_path / "state.db", metrics)
    slow = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT max(i) FROM n")

    async def look() -> None:
        async with database.connect() as connection:
            await connection.execute(slow)

    looking = asyncio.create_task(look())
    await asyncio.wait([looking], timeout=0.02)
    looking.cancel()
    await asyncio.wait([looking])
    assert value(samples(metrics.page({}).decode()), "moc_state_file_errors_total") == 0
    await database.dispose()


async def test_what_was_learnt_of_a_driver_before_it_was_told_apart_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    for step in MIGRATIONS[:4]:
        for statement in step:
            do(file, statement)
    fields = "header, settings, device, computed, projected, projection, measured, driver, at"
    do(file, f"INSERT INTO memory_estimates ({fields}) VALUES ('sha', 'one', 'gpu', 3, 2, '', 4, 514, 1.0)")
    do(file, "PRAGMA user_version = 4")
    database = await open_database(file)
    assert await EstimateQueries(database).of("sha", "gpu") == [EstimateRow("sha", "one", "gpu", 3, 2, "", 4, 1.0)]
    await database.dispose()


async def test_what_there_was_before_goals_is_kept_and_how_models_run_is_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "state.db"
    for step in MIGRATIONS[:6]:
        for statement in step:
            do(file, statement)
    do(file, "INSERT INTO models (model_name, active, wanted, wish) VALUES ('m', 2, 1, '{}')")
    fields = "id, number, job_type, model_name, status, created_at"
    do(file, f"INSERT INTO learning_jobs ({fields}) VALUES ('job', 4, 'lora', 'm', 'pending', 2.5)")
    do(file, "INSERT INTO learning_job_events (job_id, number, at, kind) VALUES ('job', 1, 3.5, 'log')")
    do(file, "PRAGMA user_version = 6")
    database = await open_database(file)
    assert await JobQueries(database).all() == [JobRow("job", "lora", "m", created_at=2.5, number=4)]
    assert await JobQueries(database).events("job") == [EventRow("job", 1, 3.5, "log")]
    assert await GoalQueries(database).all("all") == []
    assert [(model.active, model.wanted) for model in await ResidentQueries(database).all()] == [(2, True)]
    await database.dispose()
    assert ask(file, "SELECT model_name, tuned FROM models") == [("m", "")]
