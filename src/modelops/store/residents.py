"""Named queries on what each model is to be: its active version, and whether a restart has to load it again."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from modelops.store.tables import models


@dataclass(frozen=True)
class ModelRow:
    """One model. `active` and `previous` are numbers of versions, 0: none; `wish` and `tuned` are JSON, the latter
    empty for none; `changed_at` in seconds."""

    model_name: str
    active: int = 0
    previous: int = 0
    wanted: bool = False
    wish: str = "{}"
    changed_at: float = 0.0
    tuned: str = ""


_FIELDS = [models.c[name] for name in ModelRow.__dataclass_fields__]


class ResidentQueries:
    """Reads and writes the table `models`. Writes are done in the order in which they are asked for."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database
        self._writing = asyncio.Lock()

    async def all(self) -> list[ModelRow]:
        """Every model, the one that changed last at the end."""
        async with self._database.connect() as connection:
            rows = await connection.execute(select(*_FIELDS).order_by(models.c.changed_at))
            return [ModelRow(*row) for row in rows]

    async def set_active(self, model_name: str, active: int, previous: int) -> None:
        """Record which version answers, and which one did before."""
        await self._write(model_name, active=active, previous=previous)

    async def set_wanted(self, model_name: str, *, wanted: bool, wish: str, at: float) -> None:
        """Record whether a restart has to load the model again, and how."""
        await self._write(model_name, wanted=wanted, wish=wish, changed_at=at)

    async def set_tuned(self, model_name: str, tuned: str) -> None:
        """Record how the model was tuned; empty: not any more."""
        await self._write(model_name, tuned=tuned)

    async def remove(self, model_name: str) -> None:
        """Forget the model."""
        async with self._writing, self._database.begin() as connection:
            await connection.execute(delete(models).where(models.c.model_name == model_name))

    async def _write(self, model_name: str, **fields: object) -> None:
        statement = insert(models).values(model_name=model_name, **fields)
        async with self._writing, self._database.begin() as connection:
            await connection.execute(statement.on_conflict_do_update(index_elements=["model_name"], set_=fields))
