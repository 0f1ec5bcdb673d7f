"""Named queries on durable work, such as learning jobs: rows with a lease, a heartbeat and a fencing token.

Whoever works on a row has claimed it: it has the row's `fence`, and every write of it names that. Once the lease has
lapsed and somebody else has claimed the row, such a write changes nothing and says so.

The clock is the caller's: of several machines that share a database, the clocks must agree to well within a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import fields
from typing import Any, Generic

from sqlalchemy import ColumnElement, Row, Table, case, delete, func, insert, select, text, true, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from modelops.store.rows import ENDED, DurableRow, EventRow, Kind, R
from modelops.store.whole import whole

__all__ = ["ENDED", "DurableQueries", "DurableRow", "EventRow", "Kind", "R"]

_JSON = frozenset({"request", "memo", "metrics", "result"})


class DurableQueries(Generic[R]):
    """Reads and writes a pair of tables; on SQLite and PostgreSQL alike.

    Any number of coroutines, processes, and on PostgreSQL machines may use the same tables at once.
    """

    def __init__(self, database: AsyncEngine, kind: Kind[R]) -> None:
        if database.dialect.name == "postgresql":
            # Each statement sees what others wrote before it; with a stricter level, writers at once would be refused.
            database = database.execution_options(isolation_level="READ COMMITTED")
        self._database = database
        # SQLite has one writer at a time, and whoever waits for it looks again after ever longer pauses.
        self._turn = asyncio.Lock() if database.dialect.name == "sqlite" else contextlib.nullcontext()
        self._kind = kind
        self._rows, self._events = kind.rows, kind.events
        self._whole = [kind.rows.c[each.name] for each in fields(kind.row)]

    @whole
    async def add(self, row: R) -> tuple[R, bool]:
        """Insert the row, with the next number, and True; or the one that its caller made before under the same
        idempotency key, and False."""
        rows, written = self._rows.c, _columns(vars(row))
        key = written["idempotency_key"]
        before = select(*self._whole).where((rows.caller == written["caller"]) & (rows.idempotency_key == key))
        number = select(func.coalesce(func.max(rows.number), 0) + 1).scalar_subquery()
        made = insert(self._rows).values(written | {"number": number}).returning(*self._whole)
        async with self._writing() as connection:
            if connection.dialect.name == "postgresql":  # the last number, and whether a key is there, have no row
                await connection.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"{self._rows.name}.number"))))
            if key is not None:
                known = (await connection.execute(before)).first()
                if known:
                    return self._made(known), False
            return self._made((await connection.execute(made)).one()), True

    @whole
    async def get(self, row_id: str) -> R | None:
        """The row, if there is one."""
        return await self._one(self._rows.c.id == row_id)

    @whole
    async def of_key(self, caller: str, key: str) -> R | None:
        """The row that the caller made under that idempotency key, if there is one."""
        return await self._one((self._rows.c.caller == caller) & (self._rows.c.idempotency_key == key))

    @whole
    async def all(self, status: str | None = None, limit: int = 1000) -> list[R]:
        """Rows of that status, or all, the newest first."""
        return await self._listed(true() if status is None else self._rows.c.status == status, limit)

    @whole
    async def unfinished(self) -> set[str]:
        """The ids of all that have not ended."""
        chosen = select(self._rows.c.id).where(self._rows.c.status.not_in(ENDED))
        async with self._database.connect() as connection:
            return set((await connection.execute(chosen)).scalars())

    @whole
    async def count(self, status: str) -> int:
        """How many rows have that status."""
        counted = select(func.count()).select_from(self._rows).where(self._rows.c.status == status)
        async with self._database.connect() as connection:
            return (await connection.execute(counted)).scalar_one()

    @whole
    async def claim(self, owner: str, now: float, lease_s: float, *, to_end: bool = False) -> R | None:
        """Take the next row for `lease_s`: pending, or worked on with a lease that has lapsed. It is worked on, and its
        fence and attempts have grown by one. None: there is none, or somebody writes to it at this moment (PostgreSQL).

        First are those that are to end, and with `to_end` no others are taken: their time is past, or they have a
        `cancel_reason`, as they were given back or left before they could be ended so. Whoever claims one ends it. Of a
        kind that is `cleared` those that were begun follow: others may wait for what they hold. Then the highest
        priority, then the oldest.
        """
        rows, due = self._rows.c, self._kind.due
        begun = [rows.attempts == 0] if self._kind.cleared else []
        ends: ColumnElement[bool] = rows.cancel_reason.is_not(None)
        if due is not None:
            ends |= due.is_not(None) & (due < now)
        lapsed = (rows.status == self._kind.working) & (rows.lease_until <= now)
        chosen = (
            select(rows.id)
            .where((rows.status == "pending") | lapsed, ends if to_end else true())
            .order_by(ends.desc(), *begun, rows.priority.desc(), rows.number)
            .limit(1)
            # Whoever has stopped within a write holds nobody up. SQLite, with its one writer, leaves this out.
            .with_for_update(skip_locked=True)
        )
        claimed = {
            **self._kind.free,
            "status": self._kind.working,
            "started_at": func.coalesce(rows.started_at, now),
            "lease_owner": owner,
            "lease_until": now + lease_s,
            "fence": rows.fence + 1,
            "attempts": rows.attempts + 1,
        }
        return await self._change(rows.id == chosen.scalar_subquery(), claimed)

    @whole
    async def heartbeat(self, row_id: str, fence: int, until: float) -> R | None:
        """Keep the row until then; as it stands, with what others want of it. None: it is somebody else's by now, or
        has ended."""
        return await self._change(self._held(row_id, fence), {"lease_until": until})

    @whole
    async def note(self, row_id: str, fence: int, **noted: Any) -> bool:
        """Write some of what its kind lets its worker note. False: it is somebody else's by now, or has ended."""
        self._check(noted)
        return await self._change(self._held(row_id, fence), {"fence": fence, **noted}) is not None

    @whole
    async def memorise(
        self,
        row_id: str,
        fence: int,
        name: str,
        value: Mapping[str, Any],
        *,
        forget: Collection[str] = (),
        **noted: Any,
    ) -> bool:
        """Keep the value under that name, such as the result of a step that is not to be done again, and write `noted`
        with it, as `note` does; what the names in `forget` have is dropped. False as in `note`."""
        self._check(noted)
        held = self._held(row_id, fence)
        async with self._writing() as connection:
            memo = (await connection.execute(select(self._rows.c.memo).where(held).with_for_update())).scalar()
            if memo is None:
                return False
            kept = {known: value for known, value in json.loads(memo).items() if known not in forget}
            grown = _columns({**noted, "memo": {**kept, name: value}})
            await connection.execute(update(self._rows).where(held).values(grown))
            return True

    @whole
    async def end(
        self,
        row_id: str,
        fence: int,
        status: str,
        at: float,
        *,
        result: Mapping[str, Any],
        error: str = "",
        why: str = "",
    ) -> bool:
        """It has ended so, once: completed, failed or cancelled; its last event says so, with the error, or `why`.
        False as in `note`."""
        if status not in ENDED:
            allowed = ", ".join(sorted(ENDED))
            raise ValueError(f"a {self._kind.name} does not end as {status!r}; that is one of {allowed}")
        ended = self._free() | {"status": status, "completed_at": at, "result": result, "error": error}
        return await self._change(self._held(row_id, fence), ended, _state(status, error or why, at)) is not None

    @whole
    async def release(self, row_id: str, fence: int) -> bool:
        """Back to the queue: whoever claims it next goes on with it. False as in `note`."""
        return await self._change(self._held(row_id, fence), self._free() | {"status": "pending"}) is not None

    @whole
    async def requeue(self, owner: str) -> int:
        """Back to the queue with all that `owner` was at when it was killed, its leases lapsed or not; how many."""
        rows = self._rows.c
        chosen = (rows.status == self._kind.working) & (rows.lease_owner == owner)
        given_back = update(self._rows).where(chosen).values(_columns(self._free() | {"status": "pending"}))
        async with self._writing() as connection:
            return (await connection.execute(given_back)).rowcount

    @whole
    async def ask_cancel(self, row_id: str, reason: str, at: float) -> R | None:
        """Somebody wants it to end. A pending one is cancelled at once, unless it was begun and its kind is `cleared`;
        one that is worked on is by whoever works on it; one that has ended is left as it is, and of two reasons the
        first. The row as it stands then; None: there is none."""
        rows = self._rows.c
        alone = (rows.status == "pending") & (rows.attempts == 0 if self._kind.cleared else true())
        asked = {
            "cancel_reason": func.coalesce(rows.cancel_reason, _clean(reason)),
            "status": case((alone, "cancelled"), else_=rows.status),
            "completed_at": case((alone, at), else_=rows.completed_at),
            "error": case((alone, _clean(reason)), else_=rows.error),
        }
        chosen, told = (rows.id == row_id) & rows.status.not_in(ENDED), _state("cancelled", reason, at)
        return await self._change(chosen, asked, told) or await self.get(row_id)

    @whole
    async def tell(
        self,
        row_id: str,
        at: float,
        kind: str,
        *,
        step: str = "",
        message: str = "",
        metrics: Mapping[str, Any] | None = None,
        fence: int | None = None,
    ) -> int:
        """Add an event with the row's next number, which is returned; of a kind that keeps only the newest, the oldest
        goes. 0, and nothing is added: there is no such row, or a `fence` is given and somebody else has claimed the row
        since."""
        row = select(self._rows.c.id).where(self._rows.c.id == row_id)
        if fence is not None:
            row = row.where(self._rows.c.fence == fence)
        said = _columns({"at": at, "kind": kind, "step": step, "message": message, "metrics": metrics or {}})
        async with self._writing() as connection:
            if (await connection.execute(row.with_for_update())).first() is None:
                return 0
            return await self._say(connection, row_id, said)

    @whole
    async def events(self, row_id: str, after: int = 0, limit: int = 1000) -> list[EventRow]:
        """The row's events with a higher number than `after`, in order, at most `limit` of them."""
        events = self._events.c
        chosen = select(*_event_columns(self._events)).where((events.of == row_id) & (events.number > after))
        async with self._database.connect() as connection:
            rows = await connection.execute(chosen.order_by(events.number).limit(limit))
            return [EventRow(**_fields(row)) for row in rows]

    @whole
    async def latest(self, row_id: str) -> int:
        """The number of the row's last event; 0: there is none."""
        async with self._database.connect() as connection:
            return (await connection.execute(select(self._last(row_id)))).scalar_one()

    # --- helpers ---
    async def _one(self, chosen: ColumnElement[bool]) -> R | None:
        async with self._database.connect() as connection:
            row = (await connection.execute(select(*self._whole).where(chosen))).first()
            return self._made(row) if row else None

    async def _listed(self, chosen: ColumnElement[bool], limit: int | None) -> list[R]:
        newest = select(*self._whole).where(chosen).order_by(self._rows.c.number.desc()).limit(limit)
        async with self._database.connect() as connection:
            found = (await connection.execute(newest)).all()
        # Some have remembered much: others have their turn on the event loop meanwhile.
        return await asyncio.to_thread(lambda: [self._made(row) for row in found])

    async def _change(
        self, chosen: ColumnElement[bool], values: Mapping[str, Any], told: Mapping[str, Any] | None = None
    ) -> R | None:
        """The one row that is `chosen`, changed; where that ends it, `told` is its last event, written with it."""
        # One statement: what it is chosen by still holds when it is written.
        changed = update(self._rows).where(chosen).values(_columns(values)).returning(*self._whole)
        async with self._writing() as connection:
            found = (await connection.execute(changed)).first()
            row = self._made(found) if found else None
            if row and told and row.status in ENDED:
                await self._say(connection, row.id, told)
                await self._thin_out(connection, row.id)
            return row

    async def _say(self, connection: AsyncConnection, row_id: str, said: Mapping[str, Any]) -> int:
        """Add an event, whose number is returned; of a kind that keeps only the newest, older ones go for it."""
        events, newest = self._events, self._kind.newest
        number = select(self._last(row_id) + 1).scalar_subquery()
        event = insert(events).values(of=row_id, number=number, **said).returning(events.c.number)
        last = int((await connection.execute(event)).scalar_one())
        if newest is not None and last > newest:
            old = (events.c.of == row_id) & (events.c.number <= last - newest)
            await connection.execute(delete(events).where(old))
        return last

    async def _thin_out(self, connection: AsyncConnection, row_id: str) -> None:
        """Of a row's events of progress only as many stay as its kind keeps."""
        if self._kind.progress is None:
            return
        events = self._events.c
        ours = (events.of == row_id) & (events.kind == "progress")
        count = (await connection.execute(select(func.count()).select_from(self._events).where(ours))).scalar_one()
        every = -(-count // self._kind.progress)
        if every > 1:
            place = (func.row_number().over(order_by=events.number.desc()) - 1).label("place")
            placed = select(events.number, place).where(ours).subquery()
            gone = select(placed.c.number).where(placed.c.place % every != 0)
            await connection.execute(delete(self._events).where((events.of == row_id) & events.number.in_(gone)))

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        async with self._turn, self._database.begin() as connection:
            if connection.dialect.name == "sqlite":
                # By itself the driver begins with the first write: what was read before could have changed by then.
                await connection.execute(text("BEGIN IMMEDIATE"))
            yield connection

    def _held(self, row_id: str, fence: int) -> ColumnElement[bool]:
        rows = self._rows.c
        return (rows.id == row_id) & (rows.fence == fence) & (rows.status == self._kind.working)

    def _free(self) -> dict[str, Any]:
        return {**self._kind.free, "lease_owner": "", "lease_until": 0.0}

    def _check(self, noted: Mapping[str, Any]) -> None:
        if unknown := noted.keys() - self._kind.noted:
            allowed = ", ".join(sorted(self._kind.noted))
            raise TypeError(f"of a {self._kind.name} {allowed} are noted, and not {', '.join(sorted(unknown))}")

    def _last(self, row_id: str) -> ColumnElement[int]:
        events = self._events.c
        return select(func.coalesce(func.max(events.number), 0)).where(events.of == row_id).scalar_subquery()

    def _made(self, row: Row[Any]) -> R:
        return self._kind.row(**_fields(row))


def _event_columns(events: Table) -> list[ColumnElement[Any]]:
    return [events.c[each.name].label(each.name) for each in fields(EventRow)]


def _state(status: str, why: str, at: float) -> dict[str, Any]:
    """The event of an end."""
    message = f"{status}: {why}" if why else status
    return _columns({"at": at, "kind": "state", "step": "", "message": message, "metrics": {}})


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if name in _JSON else _clean(value) for name, value in values.items()}


def _clean(value: Any) -> Any:
    """What a program said of itself may hold characters that a database does not take."""
    if not isinstance(value, str):
        return value
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _fields(row: Row[Any]) -> dict[str, Any]:
    return {name: json.loads(value) if name in _JSON else value for name, value in row._mapping.items()}
