"""What tests of models that come and go share; the fixtures `staged` and `wire` are theirs."""

from __future__ import annotations

from pathlib import Path

from contract.openapi import conforms
from contract.wires import BY_NAME, Answer, Wire
from support import Served, wait_until

ASK = {"input_text": "Hello", "max_tokens": 2, "temperature": 0.0}
LONG = ASK | {"max_tokens": 2000}


def gate(served: Served, model: str) -> Path:
    """The file that lets the model come."""
    return served.data_dir / "gates" / model


def status(wire: Wire, model: str) -> str:
    return wire.info(model).status


def until(wire: Wire, model: str, wanted: str) -> None:
    wait_until(lambda: status(wire, model) == wanted, what=f"'{model}' being {wanted}")


def at_rest(wire: Wire, served: Served, model: str) -> None:
    """Nothing of the model is left but its registration."""
    assert status(wire, model) == "available"
    info = wire.info(model)
    assert (info.memory_usage_mb, info.active_requests, info.queued_requests, info.message) == (0, 0, 0, "")
    told = wire.ok("status")
    listed = wire.ok("list_models").models
    # Of each model the whole MB are told, and of all together too.
    assert 0 <= told.devices[0].reserved_mb - sum(other.memory_usage_mb for other in listed) < max(1, len(listed))
    assert not any(model in process.cmdline() for process in served.engines() if process.is_running())


def refused(answer: Answer, operation: str, code: str, *named: str) -> None:
    assert answer.code == code, answer.seen
    for name in named:
        assert name in answer.message
    if answer.headers:
        conforms(BY_NAME[operation].route, answer)
