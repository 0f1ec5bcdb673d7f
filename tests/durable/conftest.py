"""`queries` are those on the goals of a state file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modelops.store.database import open_database
from modelops.store.goals import GoalQueries


@pytest.fixture
async def queries(tmp_path: Path) -> AsyncIterator[GoalQueries]:
    database = await open_database(tmp_path / "state.db")
    yield GoalQueries(database)
    await database.dispose()
