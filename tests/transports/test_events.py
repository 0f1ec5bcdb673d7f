"""Server-sent events of what is long in coming."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import pytest
from starlette.types import Message

from goals.pursued import until
from modelops.api.errors import NotFound
from modelops.service import Call
from modelops.tasks import Tasks
from modelops.transports.endpoint import EventStream

LIFE = b":\n\n"


class Sent:
    """What a client has been sent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.stream = EventStream(Call("id", "rest"), self)

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def statuses(self) -> list[int]:
        return [message["status"] for message in self.messages if "status" in message]

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.messages if "body" in message]


@contextlib.asynccontextmanager
async def answered(sent: Sent, events: AsyncGenerator[bytes]) -> AsyncIterator[asyncio.Task[None]]:
    """The events are sent as they come; whoever watches them leaves at the end."""
    tasks = Tasks("test")

    async def work() -> None:
        watched = sent.stream.watched(events, tasks)
        async with contextlib.aclosing(events), contextlib.aclosing(watched):
            async for event in watched:
                await sent.stream.event(event)
        await sent.stream.end()

    try:
        yield tasks.start("answer", work(), expected=(NotFound,))
    finally:
        await tasks.close()


async def told(*moments: Callable[[], Awaitable[object]]) -> AsyncGenerator[bytes]:
    for number, moment in enumerate(moments):
        await moment()
        yield b"%d" % number


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelops.transports.endpoint._BEGINS_S", 0.01)
    monkeypatch.setattr("modelops.transports.endpoint._SILENCE_S", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_who_watches_is_shown_in_each_silence_that_the_stream_lives() -> None:
    sent, first, second = Sent(), asyncio.Event(), asyncio.Event()
    async with answered(sent, told(first.wait, second.wait)) as answer:
        await until(lambda: len(sent.bodies) > 2)
        assert sent.statuses == [200]
        first.set()
        await until(lambda: b"data: 0\n\n" in sent.bodies)
        silence = len(sent.bodies)
        await until(lambda: len(sent.bodies) > silence + 2)
        second.set()
        await answer
    assert [body for body in sent.bodies if body != LIFE] == [b"data: 0\n\n", b"data: 1\n\n", b""]


async def test_what_comes_at_once_comes_alone() -> None:
    sent, now = Sent(), asyncio.Event()
    now.set()
    async with answered(sent, told(now.wait, now.wait)) as answer:
        await answer
    assert sent.bodies == [b"data: 0\n\n", b"data: 1\n\n", b""]


async def test_what_is_refused_has_sent_nothing() -> None:
    async def refused() -> None:
        raise NotFound("there is none")

    sent = Sent()
    async with answered(sent, told(refused)) as answer:
        with pytest.raises(NotFound):
            await answer
    assert sent.messages == []


@pytest.mark.usefixtures("impatient")
async def test_who_leaves_in_a_silence_ends_what_is_told() -> None:
    left = asyncio.Event()

    async def silent() -> AsyncGenerator[bytes]:
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            left.set()

    sent = Sent()
    async with answered(sent, silent()) as answer:
        await until(lambda: bool(sent.bodies))
        answer.cancel()
        await asyncio.wait([answer])
        assert left.is_set()
