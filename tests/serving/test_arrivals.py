"""Files on their way: shared work, its progress, what ends it early, and what is kept of a failure."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from modelops.api.errors import NotFound, Overloaded
from modelops.serving.arrivals import Arrival, Arrivals, Progress

MB = 2**20


class Work:
    """Work that goes on when it is told to."""

    def __init__(self, result: str = "done") -> None:
        self.runs = 0
        self.ended = asyncio.Event()
        self.result: str | Exception = result
        self.progress: Progress = lambda done, total: None
        self._go = asyncio.Event()

    async def __call__(self, progress: Progress) -> str:
        self.runs += 1
        self.progress = progress
        try:
            await self._go.wait()
        finally:
            self.ended.set()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def go(self, result: str | Exception = "done") -> None:
        self.result = result
        self._go.set()


@pytest.fixture
async def arrivals() -> AsyncIterator[Arrivals]:
    made = Arrivals()
    yield made
    await made.close()


async def failed(arrivals: Arrivals, name: str) -> None:
    """Returns when something has failed to come for `name`."""
    async with asyncio.timeout(5):
        while not ((found := arrivals.of(name)) and found.error):
            await asyncio.sleep(0)


async def started(work: Work, *waiting: Coroutine[Any, Any, str]) -> list[asyncio.Task[str]]:
    """Tasks that wait for `work`, which has begun."""
    tasks = [asyncio.create_task(each) for each in waiting]
    while not work.runs:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_what_two_want_is_brought_once(arrivals: Arrivals) -> None:
    work = Work()
    tasks = await started(work, *(arrivals.bring("file", "m", "fetching", work) for _ in range(3)))
    work.go()
    assert await asyncio.gather(*tasks) == ["done"] * 3
    assert work.runs == 1
    assert arrivals.of("m") is None
    assert arrivals.names() == set()


async def test_what_is_wanted_again_later_is_brought_again(arrivals: Arrivals) -> None:
    for _ in range(2):
        work = Work()
        work.go()
        assert await arrivals.bring("file", "m", "fetching", work) == "done"
        assert work.runs == 1


async def test_different_things_are_brought_side_by_side(arrivals: Arrivals) -> None:
    one, other = Work(), Work()
    first = await started(one, arrivals.bring("one", "m", "fetching", one))
    second = await started(other, arrivals.bring("other", "n", "quantising", other))
    assert arrivals.names() == {"m", "n"}
    other.go("b")
    assert await second[0] == "b"
    assert not first[0].done()
    one.go("a")
    assert await first[0] == "a"


async def test_progress_is_told_in_words_and_as_a_part_of_the_whole(arrivals: Arrivals) -> None:
    work = Work()
    (task,) = await started(work, arrivals.bring("file", "m", "fetching", work))
    found = arrivals.of("m")
    assert found
    assert (found.name, found.progress, found.message) == ("m", 0.0, "fetching")
    work.progress(3 * MB, 0)
    assert (found.progress, found.message) == (0.0, "fetching: 3 MB")
    work.progress(3 * MB, 12 * MB)
    assert (found.progress, found.message) == (0.25, "fetching: 3 MB of 12 MB")
    work.progress(13 * MB, 12 * MB)
    assert found.progress == 1.0
    work.go()
    await task


async def test_the_work_ends_when_the_last_who_wanted_it_is_gone(arrivals: Arrivals) -> None:
    work = Work()
    one, other = await started(work, *(arrivals.bring("file", "m", "fetching", work) for _ in range(2)))
    one.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await one
    assert not work.ended.is_set()
    other.cancel()
    await work.ended.wait()
    with pytest.raises(asyncio.CancelledError):
        await other
    while arrivals.names():
        await asyncio.sleep(0)
    assert arrivals.of("m") is None  # nobody wanted it: that is no failure


async def test_what_is_begun_goes_on_though_nobody_waits_for_it(arrivals: Arrivals) -> None:
    works = [Work(), Work()]
    for work in works:  # two of one kind are two
        arrivals.begin("m", "loading", work)
        assert arrivals.names() == {"m"}  # from now on, and not a moment later
    while not works[1].runs:
        await asyncio.sleep(0)
    works[0].go()
    works[1].go(NotFound("no such file there"))
    while (found := arrivals.of("m")) is None or not found.error:
        await asyncio.sleep(0)
    assert found.message == "no such file there"


async def test_who_wants_what_is_just_being_given_up_has_it_begun_again(arrivals: Arrivals) -> None:
    ending, may_end = asyncio.Event(), asyncio.Event()

    async def tidied_up(_: Progress) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await may_end.wait()
        raise AssertionError

    first = asyncio.create_task(arrivals.bring("file", "m", "fetching", tidied_up))
    while not arrivals.names():
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    await ending.wait()
    work = Work()
    work.go()
    again = asyncio.create_task(arrivals.bring("file", "m", "fetching", work))
    await asyncio.sleep(0)
    assert not work.runs  # two at once would write to one file
    may_end.set()
    assert await again == "done"


async def test_a_failure_is_told_to_all_who_wait(arrivals: Arrivals) -> None:
    work = Work()
    tasks = await started(work, *(arrivals.bring("file", "m", "fetching", work) for _ in range(2)))
    work.go(NotFound("no such file there"))
    for task in tasks:
        with pytest.raises(NotFound, match="no such file there"):
            await task
    assert arrivals.of("m") is None


async def test_a_failure_that_nobody_waits_for_is_kept_until_it_is_tried_again(arrivals: Arrivals) -> None:
    work = Work()
    work.go(NotFound("no such file there"))
    arrivals.begin("m", "fetching", work)
    await failed(arrivals, "m")
    found = arrivals.of("m")
    assert found
    assert isinstance(found.error, NotFound)
    assert found.message == "no such file there"
    assert arrivals.names() == {"m"}
    again = Work()
    (task,) = await started(again, arrivals.bring("file", "m", "fetching", again))
    running = arrivals.of("m")
    assert running
    assert running.error is None
    again.go()
    await task
    assert arrivals.of("m") is None


async def test_a_failure_is_forgotten_when_it_is_of_no_interest_any_more(arrivals: Arrivals) -> None:
    work = Work()
    work.go(NotFound("no such file there"))
    arrivals.begin("m", "fetching", work)
    await failed(arrivals, "m")
    arrivals.forget("m")
    arrivals.forget("nobody")
    assert arrivals.names() == set()


async def test_of_work_within_work_the_inner_one_is_told(arrivals: Arrivals) -> None:
    inner = Work()

    async def outer(_: Progress) -> str:
        try:
            return await arrivals.bring("file", "m", "fetching", inner)
        finally:
            seen.append(arrivals.of("m"))

    seen: list[Arrival[Any] | None] = []
    arrivals.begin("m", "loading", outer)
    await started(inner)
    found = arrivals.of("m")
    assert found
    assert found.what == "fetching"
    inner.go(NotFound("no such file there"))
    await failed(arrivals, "m")
    assert seen[0]
    assert seen[0].what == "loading"
    told = arrivals.of("m")
    assert told
    assert (told.what, told.message) == ("loading", "no such file there")


async def test_a_failure_that_was_expected_is_not_logged_and_any_other_is(
    arrivals: Arrivals, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[tuple[Exception, int]] = [(NotFound("no such file"), 0), (RuntimeError("a bug"), 1)]
    for error, logged in failures:
        caplog.clear()
        work = Work()
        work.go(error)
        with pytest.raises(type(error)):
            await arrivals.bring("file", "m", "fetching", work)
        gc.collect()
        assert len(caplog.records) == logged
        assert "fetching m" in caplog.text or not logged


async def test_the_end_ends_all_work_and_tells_who_waits() -> None:
    arrivals, work = Arrivals(), Work()
    (task,) = await started(work, arrivals.bring("file", "m", "fetching", work))
    await arrivals.close()
    assert work.ended.is_set()
    with pytest.raises(Overloaded, match="shutting down"):
        await task


async def test_what_is_coming_for_a_model_can_be_ended(arrivals: Arrivals) -> None:
    work, inner, other = Work(), Work(), Work()
    arrivals.begin("m", "loading", lambda progress: arrivals.bring("file", "m", "fetching", inner))
    waiting = await started(work, arrivals.bring("copy", "m", "quantising", work))
    others = await started(other, arrivals.bring("other", "n", "fetching", other))
    assert arrivals.coming("m")
    await arrivals.end("m", Overloaded("'m' was unloaded"))
    assert work.ended.is_set()
    assert inner.ended.is_set()
    with pytest.raises(Overloaded, match="'m' was unloaded"):
        await waiting[0]
    assert not arrivals.coming("m")
    assert arrivals.of("m") is None  # that is no failure
    other.go()
    assert await others[0] == "done"
    await arrivals.end("m", Overloaded("nothing was coming"))


async def test_what_is_ended_before_its_first_step_leaves_nothing_behind(arrivals: Arrivals) -> None:
    work = Work()
    waiting = asyncio.create_task(arrivals.bring("file", "m", "fetching", work))
    await asyncio.sleep(0)  # it is to begin with the next step
    assert (arrivals.coming("m"), work.runs) == (True, 0)
    await arrivals.end("m", Overloaded("ended"))
    with pytest.raises(Overloaded, match="ended"):
        await waiting
    assert (arrivals.coming("m"), work.runs) == (False, 0)
    work.go()
    async with asyncio.timeout(5):
        assert await arrivals.bring("file", "m", "fetching", work) == "done"
