"""Who is at the door: keys that come and go while the state file is looked at, and what was not admitted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from modelops.access import Credentials, Key, new_text
from modelops.api import types
from modelops.api.errors import InternalError, Unauthenticated
from modelops.api.operations import OPERATIONS
from modelops.service import Coordinator
from modelops.service.callers import Callers
from modelops.service.rates import Rates
from modelops.store.database import open_database
from modelops.store.keys import KeyQueries
from service.asking import ask, call

BY_NAME = {operation.name: operation for operation in OPERATIONS}


@asynccontextmanager
async def queries(folder: Path) -> AsyncIterator[KeyQueries]:
    database = await open_database(folder / "state.db")
    yield KeyQueries(database)
    await database.dispose()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_revoked_key_is_noticed_also_after_the_state_file_could_not_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "data"
    folder.mkdir()
    shown, number, digest = new_text()
    opened: list[Any] = []
    tries = 0

    def tried(*_: object) -> None:
        nonlocal tries
        tries += 1

    def revoked() -> bool:
        try:
            callers.identify(Credentials(shown))
        except Unauthenticated as error:
            return "has been revoked" in error.message
        return False

    async with queries(folder) as other:
        await other.add(Key(number, "ci", digest, frozenset({"infer"})))
    database = await open_database(folder / "state.db")
    event.listen(database.sync_engine, "connect", lambda connection, _: opened.append(connection.driver_connection))
    event.listen(database.sync_engine, "do_connect", tried)
    await database.dispose()  # its connections are all opened under our eyes
    callers = Callers(KeyQueries(database), Rates())
    await callers.open()
    assert not revoked()

    folder.rename(tmp_path / "away")
    for connection in opened:
        await connection.close()
    before = tries
    await until(lambda: tries >= before + 2)  # an outage of several looks
    assert not revoked()  # the keys known so far hold
    async with queries(tmp_path / "away") as other:
        await other.revoke("ci", time.time())
    (tmp_path / "away").rename(folder)
    await until(revoked)

    # And from then on as before.
    async with queries(folder) as other:
        again, number, digest = new_text()
        await other.add(Key(number, "ci", digest, frozenset({"infer"})))

    def known() -> bool:
        try:
            return callers.identify(Credentials(again)).name == "ci"
        except Unauthenticated:
            return False

    await until(known)
    await callers.close()
    await database.dispose()
    told = [(record.levelname, record.getMessage()) for record in caplog.records if "keys c" in record.message]
    assert [level for level, _ in told] == ["ERROR", "INFO"], told


# --- what was not admitted ---
@pytest.mark.parametrize("admitted", ["", "health"])
async def test_what_was_not_admitted_is_not_performed(
    door: Coordinator, admitted: str, caplog: pytest.LogCaptureFixture
) -> None:
    came = replace(call(), admitted=admitted)
    with pytest.raises(InternalError, match="request 1"):
        await door.perform(came, BY_NAME["list_models"], types.Empty())
    with pytest.raises(InternalError, match="request 1"):
        door.chunks(came, BY_NAME["infer"], ask())
    faults = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [str(fault) for fault in faults] == [
        f"'{name}' was to be performed for a call admitted to '{admitted}'" for name in ("list_models", "infer")
    ]
