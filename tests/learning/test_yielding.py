"""Who stands still while requests are answered."""

from __future__ import annotations

import asyncio

from modelops.learning.yielding import Yielding


class Work:
    """What gives way; a real one is a process, and is tried with the runner."""

    def __init__(self) -> None:
        self.stands = False
        self.went_on = asyncio.Event()

    def pause(self) -> None:
        self.stands = True
        self.went_on.clear()

    def resume(self) -> None:
        self.stands = False
        self.went_on.set()


async def test_work_stands_still_from_the_first_request_to_a_while_after_the_last() -> None:
    yielding, work = Yielding(0.02), Work()
    with yielding.giving_way(work):
        assert (work.stands, yielding.paused) == (False, False)
        yielding.busy(True)
        assert (work.stands, yielding.paused) == (True, True)
        yielding.busy(False)
        assert work.stands, "another request may follow at once"
        await work.went_on.wait()
        assert (work.stands, yielding.paused) == (False, False)


async def test_a_request_soon_after_another_keeps_it_still() -> None:
    yielding, work = Yielding(0.05), Work()
    with yielding.giving_way(work):
        yielding.busy(True)
        for _ in range(5):
            yielding.busy(False)
            yielding.busy(True)
        assert work.stands
        yielding.busy(False)
        await work.went_on.wait()


async def test_what_begins_meanwhile_stands_at_once_and_what_ends_can_end() -> None:
    yielding, work = Yielding(0.02), Work()
    yielding.busy(True)
    with yielding.giving_way(work):
        assert (work.stands,) == (True,)
    assert (work.stands,) == (False,)
    yielding.busy(False)
    with yielding.giving_way(work):
        await work.went_on.wait()
