"""Which requests are let in, wait or are refused, and what is learnt from those that have ended. Pure."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from modelops.api.errors import Overloaded
from modelops.serving.answers import fill, not_loaded
from modelops.serving.events import Ask, Close, Effect, Refuse
from modelops.serving.fair import Request
from modelops.serving.pace import LEAST_S
from modelops.serving.state import Engine, Model

#: A crash within so many seconds of a request's failure is what that request failed by.
_SAME_S = 2.0


@dataclass(frozen=True)
class Bounds:
    """Of each model's queue: `requests` that wait, and the tokens of their prompts, as far as those are known."""

    requests: int
    prompt_tokens: int


# --- in ---
def admit(ask: Ask, model: Model, now: float, bounds: Bounds, *, autoload: bool) -> Generator[Effect, None, bool]:
    """Give the request a slot, or let it wait, or refuse it or whoever gives way to it; whether it was let in."""
    ticket, name = ask.ticket, ask.model
    if not model.breaker.lets(now):
        yield Refuse(ticket, resting(name, model, now))
        return False
    if model.phase in ("available", "failed") and not autoload:
        yield Refuse(ticket, not_loaded(name))
        return False
    tokens = model.pace.prompt_tokens(ask.prompt_bytes)
    request = Request(ticket, ask.share, tokens, model.pace.cost(tokens, ask.answer_tokens))
    if not (model.phase == "loaded" and model.engine and model.engine.has_slot):
        # While there is no engine, those that will have a slot at once do not count as waiting.
        at_once = 0 if model.phase in ("loaded", "unloading") else model.candidate.slots
        give_way = model.queue.make_room(
            request, most=bounds.requests, most_tokens=bounds.prompt_tokens, at_once=at_once
        )
        if give_way is None:
            yield Refuse(ticket, _full(name, model, now))
            return False
        for other in give_way:
            yield Refuse(other, _full(name, model, now))
            model.queue.remove(other)
    model.breaker.begin(ticket, now)
    model.asked[ticket] = ask
    model.queue.push(request, held=model.phase == "unloading")
    if model.phase == "loaded":
        yield from fill(model, now)
    return True


def resting(name: str, model: Model, now: float) -> Overloaded:
    """Why the model is not asked while its breaker is not closed, and for how long."""
    left = model.breaker.left_s(now)
    if left:
        how = f"it is not asked for another {math.ceil(left)} s"
    else:
        how, left = "one request is trying it now", model.load_s(now) + model.pace.service_s
    return Overloaded(
        f"'{name}' has failed ({model.breaker.reason}); {how}",
        retry_after_s=max(LEAST_S, round(left, 3)),
        reason="breaker_open",
    )


def not_loading(name: str, model: Model, now: float) -> Overloaded:
    """Why a load that somebody asks for is not tried yet."""
    left = model.breaker.left_s(now)
    return Overloaded(
        f"loads of '{name}' fail again and again ({model.breaker.reason}); the next may be tried in "
        f"{math.ceil(left)} s; to forget it and try at once, unload it with force",
        retry_after_s=max(LEAST_S, round(left, 3)),
        reason="load_backoff",
    )


def _full(name: str, model: Model, now: float) -> Overloaded:
    slots = (model.engine.candidate if model.phase == "loaded" and model.engine else model.candidate).slots
    waiting = len(model.queue)
    model.appointment = model.pace.appointment(
        now, model.appointment, slots=slots, waiting=waiting, load_s=model.load_s(now)
    )
    why = f"'{name}' is answering as many requests as it can, and none may wait for it; try again"
    if waiting:
        why = f"{waiting} requests already wait for '{name}', with about {model.queue.prompt_tokens} tokens; try again"
    return Overloaded(why, retry_after_s=round(model.appointment - now, 3), reason="queue_full")


# --- out ---
def settle(close: Close, model: Model, engine: Engine | None, now: float) -> Iterator[Effect]:
    """What a request that has ended tells. `engine`: whose slot it held to the end; None where it held none, or lost it
    because the engine ended, which has told everything."""
    ticket, usage = close.ticket, close.usage
    ask, granted_at = model.asked.pop(ticket, None), model.granted.pop(ticket, None)
    model.queue.end(ticket, usage.total)
    # What was replaced has another recipe: how it does says nothing of the model as it is now.
    if engine and engine is model.engine and ask and granted_at is not None:
        if close.outcome.kind == "answered":
            model.breaker.success(ticket)
            if not ask.share.quiet:  # whose size says nothing of callers' requests
                model.pace = model.pace.after(
                    prompt_bytes=ask.prompt_bytes,
                    prompt_tokens=usage.prompt_tokens,
                    answer_tokens=usage.answer_tokens,
                    seconds=now - granted_at,
                )
        elif close.outcome.kind == "failed" and (ticket not in engine.excused or ticket == model.breaker.probe):
            engine.failed_at, engine.excused = now, set(engine.active)
            yield from _failed(close.model, model, close.outcome.reason, now, ticket)
    model.breaker.left(ticket)


def crashed(name: str, model: Model, engine: Engine, reason: str, now: float) -> Iterator[Effect]:
    """The engine ended by itself: one failure, however many requests were in flight, and whoever is told first."""
    lately = engine.failed_at is not None and now - engine.failed_at <= _SAME_S
    if not (lately and engine.active <= engine.excused):
        yield from _failed(name, model, f"its engine {reason}", now)


def _failed(name: str, model: Model, reason: str, now: float, ticket: int | None = None) -> Iterator[Effect]:
    if model.breaker.failure(now, reason, ticket):
        model.queue.release()
        for waiting in model.queue:
            yield Refuse(waiting, resting(name, model, now))
        model.queue.clear()
