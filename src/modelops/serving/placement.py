"""The ledger of memory, and whether a need fits it. Pure.

Bytes are reserved before a load starts and given back when the engine is gone. What the ledger calls free is never
more than what the device shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MB = 2**20


@dataclass(frozen=True)
class Bill:
    """Why something does not fit, in MB. `held` says which model holds how much."""

    needed_mb: int
    free_mb: int
    reserved_mb: int
    evictable_mb: int
    held: Mapping[str, int]

    def sentence(self, name: str) -> str:
        """The bill for a person: what, why, and what to do."""
        holders = ", ".join(f"'{model}' {size} MB" for model, size in sorted(self.held.items())) or "no model"
        return (
            f"'{name}' needs {self.needed_mb} MB and {self.free_mb} MB are free (held: {holders}); unload a model, "
            "lower engine.context_length or engine.slots, or raise memory.budget_mb"
        )

    def details(self) -> dict[str, str]:
        """The bill for a program."""
        parts = {
            "needed_mb": self.needed_mb,
            "free_mb": self.free_mb,
            "reserved_mb": self.reserved_mb,
            "evictable_mb": self.evictable_mb,
        }
        held = {f"held_mb.{model}": size for model, size in self.held.items()}
        return {key: str(value) for key, value in (parts | held).items()}


@dataclass
class Ledger:
    """Who holds how many bytes of the machine's memory. Only the scheduler writes it."""

    reserved: dict[str, int] = field(default_factory=dict)

    def reserve(self, model: str, size: int) -> None:
        """Set what `model` holds."""
        self.reserved[model] = size

    def release(self, model: str) -> None:
        """`model` holds nothing any more."""
        self.reserved.pop(model, None)

    def bill(self, size: int, free: int, idle: frozenset[str]) -> Bill | None:
        """None where `size` fits into the `free` bytes, else why not; `idle` models could be unloaded for it."""
        if size <= free:
            return None
        return Bill(
            needed_mb=-(-size // MB),
            free_mb=max(free, 0) // MB,
            reserved_mb=sum(self.reserved.values()) // MB,
            evictable_mb=sum(held for model, held in self.reserved.items() if model in idle) // MB,
            held={model: held // MB for model, held in self.reserved.items()},
        )
