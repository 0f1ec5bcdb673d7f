"""Whose turn it is, who gives way, and that nobody starves."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelops.serving.events import Share
from modelops.serving.fair import FairQueue, Request


def request(ticket: int, caller: str = "", cost: float = 10, *, weight: float = 1.0, prompt: int = 0) -> Request:
    return Request(ticket, Share(caller, weight), prompt, cost)


def queue(*requests: Request) -> FairQueue:
    made = FairQueue()
    for each in requests:
        made.push(each)
    return made


def turns(made: FairQueue) -> list[int]:
    return [made.pop() for _ in range(made.ready)]


# --- turns ---
def test_one_caller_is_served_in_the_order_in_which_it_asked() -> None:
    assert turns(queue(*(request(ticket, cost=ticket % 3) for ticket in range(9)))) == list(range(9))


def test_callers_take_turns_however_much_each_has_asked_for() -> None:
    made = queue(*(request(ticket, "a") for ticket in range(6)), request(10, "b"), request(11, "b"))
    assert turns(made) == [0, 10, 1, 11, 2, 3, 4, 5]


def test_turns_are_by_tokens_and_not_by_requests() -> None:
    made = queue(request(0, "a", 30), request(1, "a", 30), *(request(ticket, "b", 10) for ticket in range(10, 16)))
    assert turns(made) == [0, 10, 11, 12, 1, 13, 14, 15]


def test_twice_the_weight_is_twice_the_tokens() -> None:
    made = queue(
        *(request(ticket, "a") for ticket in range(6)), *(request(ticket, "b", weight=2) for ticket in range(10, 16))
    )
    first = turns(made)[:6]
    assert Counter(ticket >= 10 for ticket in first) == {True: 4, False: 2}


def test_what_a_request_took_less_than_was_expected_is_given_back() -> None:
    made = queue(request(0, "a", 100), request(1, "a", 100), request(2, "b", 40), request(3, "b", 40))
    assert [made.pop(), made.pop()] == [0, 2]
    made.end(0, 10)
    assert made.pop() == 1, "10 tokens are less than 40"


def test_and_what_it_took_more_is_charged() -> None:
    made = queue(request(0, "a", 10), request(1, "a", 10), request(2, "b", 40), request(3, "b", 40))
    assert [made.pop(), made.pop()] == [0, 2]
    made.end(0, 90)
    assert made.pop() == 3


def test_where_nothing_is_known_of_a_request_what_was_expected_stands() -> None:
    made = queue(request(0, "a", 100), request(1, "a", 100), request(2, "b", 40), request(3, "b", 40))
    assert [made.pop(), made.pop()] == [0, 2]
    made.end(0, 0)
    assert made.pop() == 3


def test_nobody_is_served_the_more_for_having_been_idle() -> None:
    made = queue(*(request(ticket, "a") for ticket in range(100)))
    for ticket in range(50):
        assert made.pop() == ticket
        made.end(ticket, 10)
    for ticket in range(200, 210):
        made.push(request(ticket, "new"))
    assert [ticket >= 200 for ticket in turns(made)[:8]] == [False, True] * 4


def test_who_was_served_while_nobody_else_waited_owes_nothing() -> None:
    made = FairQueue()
    for ticket in range(4):
        made.push(request(ticket, "a", 1000))
        made.pop()
    made.push(request(4, "a", 1000))
    made.push(request(10, "b", 1000))
    assert turns(made) == [4, 10]


def test_a_caller_that_left_and_returns_has_not_lost_its_debt() -> None:
    made = queue(request(0, "a", 500), request(1, "b"), request(2, "b"))
    assert made.pop() == 0
    made.end(0, 500)
    made.push(request(3, "a"))
    assert turns(made) == [1, 2, 3]


# --- who waits ---
def test_who_goes_gets_no_turn_and_owes_nothing() -> None:
    made = queue(request(0, "a"), request(1, "a"), request(2, "b"))
    made.remove(0)
    assert (0 in made, 1 in made, len(made)) == (False, True, 2)
    assert turns(made) == [1, 2]


def test_who_is_held_waits_and_gets_no_turn_before_it_is_released() -> None:
    made = queue(request(0, "a", prompt=7))
    made.push(request(1, "b", prompt=5), held=True)
    assert (len(made), made.ready, list(made), made.prompt_tokens) == (2, 1, [0], 12)
    assert turns(made) == [0]
    made.push(request(2, "a"))
    made.clear()
    assert (1 in made, 2 in made) == (True, False)
    made.release()
    assert turns(made) == [1]


def test_whoever_is_not_here_is_forgotten_once_that_changes_nothing() -> None:
    made = queue(request(0, "a", 30), request(1, "b", 10), request(2, "b", 10), request(3, "c", 10), request(4, "c"))
    assert [made.pop(), made.pop(), made.pop()] == [0, 1, 3]
    made.end(0, 30)
    assert "a" in made.counters, "it would be served too much if it came back now"
    assert [made.pop(), made.pop()] == [2, 4]
    assert made.counters.keys() == {"a", "b", "c"}
    for ticket in (1, 2, 3, 4):
        made.end(ticket, 10)
    assert made.counters == {}


# --- who gives way ---
@pytest.mark.parametrize(
    ("waiting", "asks", "most", "gives_way"),
    [
        pytest.param("", "a", 1, [], id="there is room"),
        pytest.param("", "a", 0, None, id="there is none at all"),
        pytest.param("aa", "a", 2, None, id="a caller that fills it alone does not push itself out"),
        pytest.param("aa", "b", 2, [1], id="the newest of who holds most goes"),
        pytest.param("aba", "b", 3, None, id="but not for one who would hold as much"),
        pytest.param("aaabb", "c", 5, [2], id="who holds most, not who came last"),
        pytest.param("abc", "d", 3, None, id="all hold the same"),
        pytest.param("AAaa", "b", 4, [3], id="twice the weight is half the share"),
        pytest.param("AAAA", "b", 4, [3], id="of whom one is still more than that"),
        pytest.param("AA", "b", 2, None, id="or is not"),
        pytest.param("aa", "B", 2, [1], id="the asker's weight counts too"),
    ],
)
def test_who_gives_way_in_a_full_queue(waiting: str, asks: str, most: int, gives_way: list[int] | None) -> None:
    """A capital: the caller of that letter, with twice the weight."""
    callers = [(letter.lower(), 2.0 if letter.isupper() else 1.0) for letter in waiting]
    made = queue(*(request(ticket, caller, weight=weight) for ticket, (caller, weight) in enumerate(callers)))
    asking = request(99, asks.lower(), weight=2.0 if asks.isupper() else 1.0)
    assert made.make_room(asking, most=most, most_tokens=1000) == gives_way
    assert list(made) == list(range(len(waiting))), "nothing is changed"


@pytest.mark.parametrize(
    ("waiting", "asks", "gives_way"),
    [
        pytest.param([], ("a", 101), [], id="one alone is let in however long it is"),
        pytest.param([("a", 100)], ("a", 1), None, id="one more is not"),
        pytest.param([("a", 50), ("a", 50)], ("b", 40), [1], id="who holds most tokens gives way"),
        pytest.param([("a", 50), ("a", 10), ("a", 40)], ("b", 45), [2, 1], id="with as many as it takes"),
        pytest.param([("a", 50), ("a", 50)], ("b", 70), None, id="but not for one who would hold more than is left"),
        pytest.param([("a", 60), ("b", 20), ("b", 20)], ("c", 30), [0], id="tokens, not requests"),
        pytest.param([("a", 100)], ("b", 0), [], id="what is empty takes no room"),
    ],
)
def test_who_gives_way_where_there_are_too_many_tokens(
    waiting: Sequence[tuple[str, int]], asks: tuple[str, int], gives_way: list[int] | None
) -> None:
    made = queue(*(request(ticket, caller, prompt=prompt) for ticket, (caller, prompt) in enumerate(waiting)))
    assert made.make_room(request(99, asks[0], prompt=asks[1]), most=9, most_tokens=100) == gives_way


def test_those_that_are_about_to_have_slots_do_not_count() -> None:
    made = queue(request(0, prompt=90))
    assert made.make_room(request(1, prompt=90), most=0, most_tokens=100, at_once=2) == []
    made.push(request(1, prompt=90))
    assert made.make_room(request(2, prompt=90), most=0, most_tokens=100, at_once=2) is None
    assert made.make_room(request(2, prompt=90), most=1, most_tokens=100, at_once=2) is None
    assert made.make_room(request(2, prompt=0), most=1, most_tokens=200, at_once=2) == []


# --- whatever happens ---
COSTS = st.integers(1, 100)
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.0, "d": 0.5}


def served(seed: int, steps: int, weights: Mapping[str, float]) -> tuple[Counter[str], int]:
    """Tokens of each caller where all have something that waits all the time, and the longest request."""
    pick = random.Random(seed)
    made, tokens, tickets = FairQueue(), Counter[str](), iter(range(10**9))
    costs: dict[int, tuple[str, int]] = {}

    def push(caller: str) -> None:
        ticket, cost = next(tickets), pick.randint(1, 100)
        costs[ticket] = caller, cost
        made.push(request(ticket, caller, cost, weight=weights[caller]))

    for caller in weights:
        for _ in range(pick.randint(1, 9)):
            push(caller)
        push(caller)
    for _ in range(steps):
        ticket = made.pop()
        caller, cost = costs[ticket]
        tokens[caller] += cost
        made.end(ticket, cost)
        push(caller)
    return tokens, 100


@pytest.mark.parametrize("seed", range(20))
def test_callers_that_always_wait_get_tokens_by_weight(seed: int) -> None:
    """Between two of them the service by weight differs by no more than a request of each: the bound of the paper."""
    tokens, longest = served(seed, 300, WEIGHTS)
    by_weight = {caller: tokens[caller] / weight for caller, weight in WEIGHTS.items()}
    assert max(by_weight.values()) - min(by_weight.values()) <= 2 * longest / min(WEIGHTS.values())


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), COSTS), max_size=60), COSTS)
def test_nobody_starves(others: list[tuple[str, int]], cost: int) -> None:
    """However many others come meanwhile: whoever waits is overtaken by each of them for a request at most once it has
    what the others had."""
    made = queue(request(0, "me", cost))
    overtaken = Counter[str]()
    for ticket, (caller, takes) in enumerate(others, 1):
        made.push(request(ticket, caller, takes))
        turn = made.pop()
        if turn == 0:
            break
        overtaken[others[turn - 1][0]] += 1
    assert all(count <= 1 for count in overtaken.values())


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "push", "hold", "pop", "pop", "end", "remove", "clear", "release"]),
            st.integers(0, 99),
            st.sampled_from("abcd"),
            COSTS,
            st.sampled_from([0.5, 1.0, 3.0]),
        ),
        max_size=80,
    )
)
def test_whatever_happens_it_adds_up(steps: list[tuple[str, int, str, int, float]]) -> None:
    made, waiting, held, granted = FairQueue(), dict[int, str](), set[int](), dict[int, str]()
    for ticket, (what, which, caller, cost, weight) in enumerate(steps):
        ready = [one for one in waiting if one not in held]
        counters = made.counters
        if what in ("push", "hold"):
            made.push(request(ticket, caller, cost, weight=weight), held=what == "hold")
            waiting[ticket] = caller
            held |= {ticket} if what == "hold" else set()
        elif what == "pop" and ready:
            turn = made.pop()
            assert turn in ready
            assert turn == next(one for one in ready if waiting[one] == waiting[turn]), "first come, first served"
            assert counters[waiting[turn]] == min(counters[waiting[one]] for one in ready), "the least served"
            granted[turn] = waiting.pop(turn)
        elif what == "end" and granted:
            one = sorted(granted)[which % len(granted)]
            made.end(one, which)
            del granted[one]
        elif what == "remove" and waiting:
            one = sorted(waiting)[which % len(waiting)]
            made.remove(one)
            del waiting[one]
            held.discard(one)
        elif what == "clear":
            made.clear()
            waiting = {one: of for one, of in waiting.items() if one in held}
        elif what == "release":
            made.release()
            held.clear()
        assert list(made) == [one for one in waiting if one not in held]
        assert len(made) == len(waiting)
        here = {*waiting.values(), *granted.values()}
        assert here <= made.counters.keys()
        assert here or not made.counters
        assert all(value >= -1e-9 for value in made.counters.values())
