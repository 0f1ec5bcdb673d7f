"""Windows of time: never more than the rate, and what is told of the time to wait is exact."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelops.service.windows import MOST_MOVING, Windows

moments = st.lists(st.integers(0, 40), min_size=1, max_size=60).map(sorted)


@given(moments, st.integers(1, 5), st.integers(1, 10))
def test_in_no_window_of_time_are_there_more_requests_than_the_rate(at: list[int], amount: int, seconds: int) -> None:
    windows = Windows()
    admitted: list[int] = []
    for now in at:
        inside = [other for other in admitted if other > now - seconds]
        wait = windows.request("ci", amount, seconds, now)
        assert (wait == 0) is (len(inside) < amount)
        if wait:
            assert wait == inside[0] + seconds - now  # when the first of them leaves the window
        else:
            admitted.append(now)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=60).map(sorted))
def test_tokens_are_charged_to_a_window_that_begins_with_the_first(charges: list[tuple[int, int]]) -> None:
    windows = Windows()
    began, used = -100, 0
    for now, tokens in charges:
        if now >= began + 10:
            began, used = now, 0
        used += tokens
        windows.charge("ci", 12, 10, now, tokens)
        assert windows.budget("ci", 12, 10, now) == (began + 10 - now if used >= 12 else 0)
        assert windows.budget("ci", 12, 10, began + 10) == 0


@given(st.integers(0, 3), st.integers(0, 3))
def test_callers_and_rates_are_counted_apart(ours: int, theirs: int) -> None:
    windows = Windows()
    for name, number in (("ours", ours), ("theirs", theirs)):
        for _ in range(number):
            windows.request(name, 3, 60, 0.0)
            windows.charge(name, 3, 60, 0.0, 1)
    for name, number in (("ours", ours), ("theirs", theirs)):
        assert (windows.budget(name, 3, 60, 1.0) > 0) is (number == 3)
        assert windows.budget(name, 3, 3600, 1.0) == 0
        assert (windows.request(name, 3, 60, 1.0) > 0) is (number == 3)


def test_a_refused_request_is_not_counted() -> None:
    windows = Windows()
    assert windows.request("ci", 1, 10, 0.0) == 0
    for now in range(1, 10):
        assert windows.request("ci", 1, 10, now) == 10 - now
    assert windows.request("ci", 1, 10, 10.0) == 0


def test_very_many_requests_are_counted_in_a_fixed_window_that_keeps_no_times() -> None:
    windows, amount = Windows(), MOST_MOVING + 1
    assert [windows.request("ci", amount, 60, 100.0 + number % 7) for number in range(amount)] == [0.0] * amount
    assert windows.request("ci", amount, 60, 110.0) == 50
    assert windows.request("ci", amount, 60, 160.0) == 0
    assert len(windows) == 1


def test_who_has_not_come_for_a_window_is_forgotten() -> None:
    windows = Windows()
    for number in range(1000):
        windows.request(f"caller {number}", 5, 1, number / 1000)
        windows.charge(f"caller {number}", 5, 1, number / 1000, 9)
    windows.request("daily", 5, 86_400, 1.0)
    assert len(windows) == 2001
    windows.request("another", 5, 1, 100.0)
    assert len(windows) == 2  # the daily one's is not over yet
    assert windows.request("daily", 1, 86_400, 100.0) == 0  # another rate
    windows.charge("another", 5, 1, 90_000.0, 1)
    assert len(windows) == 1
