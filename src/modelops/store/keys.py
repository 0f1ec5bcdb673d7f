"""Named queries on callers' keys. The command `modelops keys` writes them; a coordinator only reads."""

from __future__ import annotations

import contextlib

from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from modelops.access import Key
from modelops.store.tables import keys

_FIELDS = [keys.c[name] for name in Key.__dataclass_fields__]


class KeyQueries:
    """Reads and writes the table `keys`."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database
        self._watching: AsyncConnection | None = None
        self._seen: int | None = None

    async def all(self) -> list[Key]:
        """Every key that was ever made, oldest first."""
        async with self._database.connect() as connection:
            rows = await connection.execute(select(*_FIELDS).order_by(keys.c.created_at))
            return [_key(dict(row._mapping)) for row in rows]

    async def add(self, key: Key) -> bool:
        """Insert `key`, unless another of its name is not revoked yet; whether it was inserted."""
        fields = {name: getattr(key, name) for name in Key.__dataclass_fields__}
        fields["scopes"] = ",".join(sorted(key.scopes))
        taken = select(keys.c.id).where((keys.c.name == key.name) & keys.c.revoked_at.is_(None))
        async with self._database.begin() as connection:
            await connection.execute(text("BEGIN IMMEDIATE"))  # nobody else inserts between the look and the insert
            if (await connection.execute(taken)).first():
                return False
            await connection.execute(insert(keys).values(**fields))
            return True

    async def revoke(self, name: str, at: float) -> int:
        """Revoke the keys of that name that are not revoked yet; how many those were."""
        chosen = (keys.c.name == name) & keys.c.revoked_at.is_(None)
        async with self._database.begin() as connection:
            changed = await connection.execute(update(keys).where(chosen).values(revoked_at=at))
            return changed.rowcount

    async def changed(self) -> bool:
        """Whether another connection, of any process, may have written to the state file since the last call.

        True the first time, and after a failure: the number that tells is one connection's own, and a new one may
        begin with the last one's.
        """
        try:
            if self._watching is None:
                self._seen = None
                self._watching = await self._database.connect()
                await self._watching.execution_options(isolation_level="AUTOCOMMIT")
            number = int((await self._watching.execute(text("PRAGMA data_version"))).scalar_one())
        except Exception:
            await self.close()
            raise
        changed, self._seen = number != self._seen, number
        return changed

    async def close(self) -> None:
        """End the watching."""
        watching, self._watching = self._watching, None
        if watching is not None:
            with contextlib.suppress(Exception):  # one that is broken may not even close
                await watching.invalidate()
            await watching.close()


def _key(fields: dict[str, object]) -> Key:
    scopes = frozenset(str(fields.pop("scopes")).split(",")) - {""}
    return Key(scopes=scopes, **fields)  # type: ignore[arg-type] # the columns are the dataclass's fields
