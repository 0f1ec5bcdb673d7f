"""Models that are in a coordinator's state file before it begins, as a goal of serving tuned them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from modelops.serving import model_files
from modelops.serving.wishes import Tuning, Wish
from modelops.store.database import open_database
from modelops.store.models import ModelQueries, VersionRow
from modelops.store.residents import ResidentQueries
from support import put

TUNED = Wish(slots=3, cache_type="q8_0", tuning=Tuning(batch_size=128, speculation="ngram"))
#: What callers are told of that.
TOLD = {"slots": 3, "cache_type": "q8_0", "batch_size": 128, "speculation": "ngram"}


def keep_tuned(data_dir: Path, name: str, file: Path) -> None:
    """Put the model there, as its first version, tuned."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = put(file, data_dir / "models" / f"{name}.gguf").resolve()
    asyncio.run(_written(data_dir, VersionRow(name, 0, "llm", str(target), *model_files.identity(target), "", 1.7e9)))


async def _written(data_dir: Path, row: VersionRow) -> None:
    database = await open_database(data_dir / "state.db")
    try:
        await ModelQueries(database).add(row)
        residents = ResidentQueries(database)
        await residents.set_active(row.model_name, 1, 0)
        await residents.set_tuned(row.model_name, TUNED.to_json())
    finally:
        await database.dispose()
