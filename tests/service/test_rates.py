"""Rates: counted here or in Redis, and what is told of the time to wait is true."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from modelops.access import Caller
from modelops.api.errors import InvalidRequest, RateLimited
from modelops.service.rates import Rates, parse
from modelops.service.windows import MOST_MOVING
from support import need, wait_until


def caller(name: str = "ci", *, rate: str = "", tokens: str = "") -> Caller:
    return Caller(name, frozenset({"infer"}), rate=rate, token_rate=tokens)


@contextlib.contextmanager
def redis(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A real Redis server that keeps nothing."""
    need("redis-server")
    program = shutil.which("redis-server")
    assert program
    argv = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
        return False

    try:
        wait_until(answers, what="Redis")
        yield process
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(params=["here", pytest.param("redis", marks=pytest.mark.program("redis-server"))])
async def rates(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rates]:
    with contextlib.ExitStack() as stack:
        url = ""
        if request.param == "redis":
            port = free_port()
            stack.enter_context(redis(tmp_path, port))
            url = f"redis://127.0.0.1:{port}/0"
        made = Rates(url)
        yield made
        await made.close()


@pytest.mark.parametrize("written", ["10/second", "600 per minute", "1/day", "100000/hour", "5/10 second"])
def test_rates_are_written_so(written: str) -> None:
    assert parse(written).amount > 0


@pytest.mark.parametrize("written", ["", "10", "ten/second", "10/fortnight", "/second", "-1/second"])
def test_what_is_no_rate_is_told_so(written: str) -> None:
    with pytest.raises(InvalidRequest, match="10/second"):
        parse(written)


async def refused(rates: Rates, who: Caller) -> RateLimited:
    with pytest.raises(RateLimited) as error:
        await rates.admit(who, spends_tokens=True)
    return error.value


async def test_as_many_requests_as_the_rate_and_no_more(rates: Rates) -> None:
    who = caller(rate="5/minute")
    for _ in range(5):
        await rates.admit(who, spends_tokens=False)
    error = await refused(rates, who)
    assert error.retry_after_s is not None and 55 < error.retry_after_s <= 60.1
    assert "'ci' may ask 5/minute" in error.message
    await rates.admit(caller("other", rate="5/minute"), spends_tokens=False)


async def test_the_time_to_wait_is_true(rates: Rates) -> None:
    who = caller(rate="3/second")
    for _ in range(3):
        await rates.admit(who, spends_tokens=False)
    while True:
        # Refused as long as it was told, and served then: at most a request more than the rate in any second.
        try:
            await rates.admit(who, spends_tokens=False)
            break
        except RateLimited as error:
            assert error.retry_after_s is not None and error.retry_after_s <= 1.001
            await asyncio.sleep(error.retry_after_s)
            await rates.admit(who, spends_tokens=False)
            break


async def test_tokens_are_charged_when_they_were_made(rates: Rates) -> None:
    who = caller(tokens="100/minute")
    await rates.admit(who, spends_tokens=True)
    await rates.spend(who, 99)
    await rates.admit(who, spends_tokens=True)  # one is left
    await rates.spend(who, 500)
    error = await refused(rates, who)
    assert error.retry_after_s is not None and 50 < error.retry_after_s <= 60.6
    assert "100/minute" in error.message
    await rates.admit(who, spends_tokens=False)  # what makes no tokens goes on
    await rates.admit(caller("other", tokens="100/minute"), spends_tokens=True)


async def test_tokens_are_there_again_after_the_time_that_was_told(rates: Rates) -> None:
    who = caller(tokens="10/second")
    await rates.spend(who, 10)
    error = await refused(rates, who)
    assert error.retry_after_s is not None and error.retry_after_s <= 1.501  # Redis tells whole seconds
    await asyncio.sleep(error.retry_after_s)
    await rates.admit(who, spends_tokens=True)


async def test_requests_at_the_same_time_may_overdraw_a_window_and_the_next_one_begins_whole(rates: Rates) -> None:
    who = caller(tokens="10/2 second")
    await asyncio.gather(*(rates.admit(who, spends_tokens=True) for _ in range(5)))  # nothing has been made yet
    await asyncio.gather(*(rates.spend(who, 30) for _ in range(5)))
    error = await refused(rates, who)
    assert error.retry_after_s is not None and error.retry_after_s <= 2.501, "not fifteen windows"
    await asyncio.sleep(error.retry_after_s)
    await rates.admit(who, spends_tokens=True)
    await rates.spend(who, 9)
    await rates.admit(who, spends_tokens=True)  # one is left, as in any window
    await rates.spend(who, 1)
    await refused(rates, who)


@pytest.mark.parametrize("who", [caller(rate="5/second"), caller(tokens="10/second")], ids=["requests", "tokens"])
async def test_nobody_is_told_to_come_back_before_there_is_room(rates: Rates, who: Caller) -> None:
    for _ in range(5):
        await rates.admit(who, spends_tokens=True)
    await rates.spend(who, 10)
    told: list[float] = []
    while True:
        asked = time.monotonic()
        try:
            await rates.admit(who, spends_tokens=True)
            break
        except RateLimited as error:
            assert error.retry_after_s is not None
            told.append(time.monotonic() + error.retry_after_s)
            refused_at = asked
        await asyncio.sleep(0.02)
    assert told and min(told) > refused_at


@pytest.mark.parametrize("who", [caller(rate="1/second"), caller(tokens="1/second")], ids=["requests", "tokens"])
async def test_a_clock_that_is_set_back_locks_nobody_out(monkeypatch: pytest.MonkeyPatch, who: Caller) -> None:
    rates = Rates()
    await rates.admit(who, spends_tokens=True)
    await rates.spend(who, 1)
    earlier = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: earlier)
    error = await refused(rates, who)
    assert error.retry_after_s is not None and error.retry_after_s <= 1
    await asyncio.sleep(error.retry_after_s)
    await rates.admit(who, spends_tokens=True)


async def test_threads_that_are_busy_hold_no_caller_up() -> None:
    """Files are hashed in them."""
    done = threading.Event()
    busy = [asyncio.get_running_loop().run_in_executor(None, done.wait) for _ in range(64)]
    try:
        rates, who = Rates(), caller(rate="3/minute", tokens="9/minute")
        async with asyncio.timeout(2):
            for _ in range(3):
                await rates.admit(who, spends_tokens=True)
                await rates.spend(who, 1)
                await asyncio.sleep(0)  # what else there may be to do is begun
            await refused(rates, who)
    finally:
        done.set()
        await asyncio.gather(*busy)


async def test_very_many_requests_are_counted_too(rates: Rates) -> None:
    who = caller(rate=f"{MOST_MOVING + 1}/hour")
    if rates._shared:  # each is a way to Redis and back
        await asyncio.gather(*(rates.admit(who, spends_tokens=False) for _ in range(20)))
        return
    for _ in range(MOST_MOVING + 1):
        await rates.admit(who, spends_tokens=False)
    error = await refused(rates, who)
    assert error.retry_after_s is not None and 3500 < error.retry_after_s <= 3600


async def test_who_has_no_limit_is_not_counted(rates: Rates) -> None:
    for _ in range(200):
        await rates.admit(caller(), spends_tokens=True)
        await rates.spend(caller(), 10**9)


@pytest.mark.program("redis-server")
async def test_two_coordinators_count_together(tmp_path: Path) -> None:
    port = free_port()
    with redis(tmp_path, port):
        one, two = Rates(f"redis://127.0.0.1:{port}/0"), Rates(f"redis://127.0.0.1:{port}/0")
        who = caller(rate="4/minute", tokens="100/minute")
        for rates in (one, two, one, two):
            await rates.admit(who, spends_tokens=False)
        await refused(one, who)
        await refused(two, who)
        await one.spend(caller(tokens="100/minute"), 100)
        await refused(two, caller(tokens="100/minute"))
        await one.close()
        await two.close()


@pytest.mark.program("redis-server")
async def test_without_redis_the_counting_goes_on_here_and_the_log_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelops")
    port = free_port()
    now = 0.0
    rates = Rates(f"redis://127.0.0.1:{port}/0", clock=lambda: now)
    who = caller(rate="3/minute")
    for _ in range(3):
        await rates.admit(who, spends_tokens=False)
    await refused(rates, who)
    now = 6.0  # it is asked again
    await refused(rates, who)
    with redis(tmp_path, port):
        await refused(rates, who)  # and not at once once more
        now = 12.0
        for _ in range(3):
            await rates.admit(who, spends_tokens=False)
        await refused(rates, who)
    await rates.close()
    assert [record.getMessage() for record in caplog.records] == [
        "Redis does not answer (ConnectionError): rates are counted in this process meanwhile",
        "Redis answers again",
    ]


async def test_a_redis_that_says_nothing_holds_one_caller_up_and_not_each(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        now = 0.0
        rates = Rates(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", clock=lambda: now)
        who = caller(rate="300/minute", tokens="9000/minute")
        async with asyncio.timeout(3):
            await rates.admit(who, spends_tokens=True)
        began = time.monotonic()
        for _ in range(20):
            await rates.admit(who, spends_tokens=True)
            await rates.spend(who, 1)
        assert time.monotonic() - began < 0.4
        # Whether it answers again is found out by one.
        now = 6.0
        waiting = asyncio.ensure_future(rates.admit(who, spends_tokens=False))
        await asyncio.sleep(0)
        for _ in range(20):
            await rates.admit(who, spends_tokens=True)
        assert not waiting.done()
        assert time.monotonic() - began < 0.4
        await waiting
        await rates.close()
    assert ["(TimeoutError)" in record.getMessage() for record in caplog.records] == [True]
