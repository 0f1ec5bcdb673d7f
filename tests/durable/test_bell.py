"""Who is woken when something new is there."""

from __future__ import annotations

from modelops.durable.bell import Bell


def test_it_rings_for_all_who_wait_for_that_work_and_for_nobody_else() -> None:
    bell = Bell()
    with bell.hearing("a") as one, bell.hearing("a") as two, bell.hearing("b") as other:
        bell.ring("a")
        assert (one.is_set(), two.is_set(), other.is_set()) == (True, True, False)
        one.clear()
        bell.ring("a")
        assert one.is_set()
    bell.ring("a")  # nobody waits: that is no fault


def test_who_has_left_is_not_remembered() -> None:
    bell = Bell()
    with bell.hearing("a") as kept:
        with bell.hearing("a") as left:
            pass
        bell.ring("a")
        assert (kept.is_set(), left.is_set()) == (True, False)


def test_all_are_woken_when_it_is_closed() -> None:
    bell = Bell()
    with bell.hearing("a") as one, bell.hearing("b") as two:
        bell.close()
        assert bell.closed
        assert one.is_set() and two.is_set()
