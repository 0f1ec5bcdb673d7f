"""Named queries on what models were projected and measured to take of memory."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from modelops.store.tables import memory_estimates


@dataclass(frozen=True)
class EstimateRow:
    """One model's file, run one way on one kind of device. Sizes in bytes, of RAM but for `driver`.

    `header` is the digest of the file's header, `projection` the engine's own as JSON, "" where it gave none,
    `measured` 0 until a load has been measured, `driver` what each GPU then held beside what was foretold for it, 0
    where it does not tell, `at` seconds since the epoch, `more_driver` how much of `driver` is thought to be for this
    kind of model only.
    """

    header: str
    settings: str
    device: str
    computed: int
    projected: int
    projection: str
    measured: int
    at: float
    driver: int = 0
    more_driver: int = 0


_FIELDS = [memory_estimates.c[name] for name in EstimateRow.__dataclass_fields__]


class EstimateQueries:
    """Reads and writes the table `memory_estimates`."""

    def __init__(self, database: AsyncEngine) -> None:
        self._database = database

    async def of(self, header: str, device: str) -> list[EstimateRow]:
        """All that is known of a file on a kind of device, the latest first."""
        chosen = (memory_estimates.c.header == header) & (memory_estimates.c.device == device)
        query = select(*_FIELDS).where(chosen).order_by(memory_estimates.c.at.desc())
        async with self._database.connect() as connection:
            return [EstimateRow(*row) for row in await connection.execute(query)]

    async def least_driver(self, device: str) -> int:
        """The least that a GPU of this kind held beside what was foretold for it, of models of no special kind; 0: not
        known."""
        of = memory_estimates.c
        plain = (of.projected > 0) & (of.more_driver == 0)  # else an error of ours may be in it
        query = select(func.min(of.driver)).where((of.device == device) & (of.driver > 0) & plain)
        async with self._database.connect() as connection:
            return (await connection.execute(query)).scalar_one_or_none() or 0

    async def put(self, row: EstimateRow) -> None:
        """Insert `row`, or replace the one with the same header, settings and device."""
        key = {"header": row.header, "settings": row.settings, "device": row.device}
        same = [memory_estimates.c[name] == value for name, value in key.items()]
        values = {name: getattr(row, name) for name in EstimateRow.__dataclass_fields__}
        async with self._database.begin() as connection:
            changed = await connection.execute(update(memory_estimates).where(*same).values(**values))
            if not changed.rowcount:
                await connection.execute(insert(memory_estimates).values(**values))
