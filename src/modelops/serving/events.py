"""What the scheduler is told (events) and what it wants done (effects): plain values, compared in tests as they are.

A *ticket* is one call that waits for an answer: a request for a slot, a load, or an unload. A request's granted ticket
holds its slot until `Close`.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelops.api.errors import ModelOpsError


# --- events ---
@dataclass(frozen=True)
class Register:
    """`model` exists, needs `need` bytes, and serves `slots` requests at once. Only while it is not resident."""

    model: str
    need: int
    slots: int


@dataclass(frozen=True)
class Ask:
    """A request wants a slot."""

    ticket: int
    model: str


@dataclass(frozen=True)
class Load:
    """A caller wants the model loaded."""

    ticket: int
    model: str


@dataclass(frozen=True)
class Unload:
    """A caller wants the model unloaded."""

    ticket: int
    model: str
    force: bool


@dataclass(frozen=True)
class Close:
    """The ticket's caller is done, or gone."""

    ticket: int
    model: str


@dataclass(frozen=True)
class Loaded:
    """The engine answers; it takes `memory` bytes."""

    model: str
    memory: int


@dataclass(frozen=True)
class LoadFailed:
    """The engine did not come up, and nothing of it is left."""

    model: str
    error: ModelOpsError


@dataclass(frozen=True)
class Exited:
    """A loaded engine ended by itself."""

    model: str
    reason: str


@dataclass(frozen=True)
class Stopped:
    """The engine that was to be stopped is gone."""

    model: str


@dataclass(frozen=True)
class RestartDue:
    """The pause before a restart is over."""

    model: str


@dataclass(frozen=True)
class Drain:
    """From now on only what has been accepted is finished."""


Event = Register | Ask | Load | Unload | Close | Loaded | LoadFailed | Exited | Stopped | RestartDue | Drain


# --- effects ---
@dataclass(frozen=True)
class Grant:
    """The ticket's call may go on: it has a slot, or what it asked for is done."""

    ticket: int


@dataclass(frozen=True)
class Refuse:
    """The ticket's call ends with this error."""

    ticket: int
    error: ModelOpsError


@dataclass(frozen=True)
class Revoke:
    """The slot that was granted is taken away, with this error."""

    ticket: int
    error: ModelOpsError


@dataclass(frozen=True)
class Start:
    """Start the model's engine; answer with Loaded or LoadFailed."""

    model: str


@dataclass(frozen=True)
class Stop:
    """Stop the model's engine, or its start; answer with Stopped."""

    model: str


@dataclass(frozen=True)
class Wake:
    """Send RestartDue after `seconds`."""

    model: str
    seconds: float


Effect = Grant | Refuse | Revoke | Start | Stop | Wake
