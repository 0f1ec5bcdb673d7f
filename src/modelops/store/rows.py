"""The rows of durable work, such as learning jobs: what all of them have, and what each kind says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy import Column, Table

#: The statuses that work ends with; it keeps the one that it was given first.
ENDED = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True, kw_only=True)
class DurableRow:
    """Work that outlives its worker. Times are seconds since the epoch; `request`, `memo`, `metrics`, `result` are JSON
    objects."""

    id: str = field(kw_only=False)
    created_at: float
    number: int = 0
    status: str = "pending"
    priority: int = 1
    caller: str = ""
    idempotency_key: str | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
    memo: Mapping[str, Any] = field(default_factory=dict)
    progress: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    message: str = ""
    cancel_reason: str | None = None
    started_at: float | None = None
    completed_at: float | None = None
    lease_owner: str = ""
    lease_until: float = 0.0
    fence: int = 0
    attempts: int = 0


@dataclass(frozen=True)
class EventRow:
    """Something that happened to the row with the id `of`; `number` is from 1 on, for each row."""

    of: str
    number: int
    at: float
    kind: str
    step: str = ""
    message: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)


R = TypeVar("R", bound=DurableRow)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """What the rows of one pair of tables are. The row's id is `of` in `events`."""

    name: str  # in words
    row: type[R]
    rows: Table
    events: Table
    working: str  # the status of one that is claimed
    noted: frozenset[str]  # what its worker may write at any time
    free: Mapping[str, Any] = field(default_factory=dict)  # what is written when nobody works on it
    #: Whether one that was begun is ended by its worker alone, also where it waits for the next: who clears up.
    cleared: bool = False
    #: When a row is to have ended, in seconds since the epoch; None: no row has such a time.
    due: Column[float] | None = None
    #: How many of a row's events are kept, the newest; None: all.
    newest: int | None = None
    #: How many events of progress a row that has ended keeps, evenly from all of them, the last too; None: all.
    progress: int | None = None
