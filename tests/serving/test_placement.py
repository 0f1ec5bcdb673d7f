from __future__ import annotations

import pytest

from modelops.serving.placement import MB, Ledger


def ledger() -> Ledger:
    made = Ledger()
    made.reserve("idle", 300 * MB)
    made.reserve("busy", 200 * MB)
    return made


@pytest.mark.parametrize(("size", "free", "fits"), [(9, 9, True), (10, 9, False), (1, 0, False), (1, -5, False)])
def test_what_is_free_bounds_what_fits(size: int, free: int, fits: bool) -> None:
    assert (ledger().bill(size, free, frozenset()) is None) is fits


def test_the_bill_says_what_is_needed_and_who_holds_the_rest() -> None:
    bill = ledger().bill(400 * MB + 1, 100 * MB, frozenset({"idle"}))
    assert bill is not None
    assert bill.details() == {
        "needed_mb": "401",
        "free_mb": "100",
        "reserved_mb": "500",
        "evictable_mb": "300",
        "held_mb.idle": "300",
        "held_mb.busy": "200",
    }
    sentence = bill.sentence("new")
    assert "'new' needs 401 MB and 100 MB are free (held: 'busy' 200 MB, 'idle' 300 MB)" in sentence
    assert "unload a model" in sentence


def test_the_bill_shows_no_less_than_nothing_free() -> None:
    bill = Ledger().bill(1, -5 * MB, frozenset())
    assert bill is not None
    assert bill.details()["free_mb"] == "0"
    assert "held: no model" in bill.sentence("new")


def test_reserving_again_corrects_and_releasing_forgets() -> None:
    made = ledger()
    made.reserve("idle", 250 * MB)
    made.release("busy")
    made.release("busy")
    assert made.reserved == {"idle": 250 * MB}
