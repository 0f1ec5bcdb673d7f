"""What waiting calls are told: small effects on one model, which the scheduler's decisions are made of. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from modelops.api.errors import Conflict, ModelOpsError
from modelops.serving.events import Effect, Grant, Refuse, Residents
from modelops.serving.state import Model


def fill(model: Model, now: float) -> Iterator[Effect]:
    """Give the free slots of its engine to those whose turn it is."""
    engine = model.engine
    while engine and not engine.stopping and model.queue.ready and engine.has_slot:
        ticket = model.queue.pop()
        engine.active.add(ticket)
        model.granted[ticket] = now
        yield Grant(ticket, engine.number)


def fall_back(model: Model, error: ModelOpsError) -> Iterator[Effect]:
    """What was to be replaced is what is loaded next; `error` is why it was not replaced."""
    assert model.fallback is not None
    model.becomes(*model.fallback)
    model.fallback = None
    for ticket in model.loads:
        yield Refuse(ticket, error)
    model.loads.clear()


def forget(name: str, model: Model) -> Iterator[Effect]:
    """A restart has not to bring it back any more."""
    if model.wanted:
        model.wanted = False
        yield Residents(name, wanted=False)


def grant_all(tickets: list[int]) -> Iterator[Effect]:
    """What they asked for is done; nobody of them waits any more."""
    for ticket in tickets:
        yield Grant(ticket)
    tickets.clear()


def refuse_all(model: Model, error: ModelOpsError) -> Iterator[Effect]:
    """Whoever waits for the model to be loaded is told why it is not."""
    for ticket in [*model.queue, *model.loads, *model.swaps]:
        yield Refuse(ticket, error)
    for waiting in (model.queue, model.loads, model.swaps):
        waiting.clear()


def refuse_swaps(model: Model, error: ModelOpsError) -> Iterator[Effect]:
    """Whoever waits for another version is told why it does not come."""
    for ticket in model.swaps:
        yield Refuse(ticket, error)
    model.swaps.clear()


def not_loaded(name: str) -> Conflict:
    """Why a request does not load the model."""
    return Conflict(f"'{name}' is not loaded, and models.autoload is off; load it first")
