"""The tokens that each model has read and written since the start, those of answers under way included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from modelops.serving.events import Usage


@dataclass
class _Tally:
    ended: Usage = field(default_factory=Usage)
    running: dict[int, Callable[[], Usage]] = field(default_factory=dict)
    shown: Usage = field(default_factory=Usage)


class Meter:
    """Counts by model; what it says never gets less."""

    def __init__(self) -> None:
        self._tallies: defaultdict[str, _Tally] = defaultdict(_Tally)

    def began(self, model: str, ticket: int, usage: Callable[[], Usage]) -> None:
        """A request is answered from now on; `usage` tells what it has taken so far."""
        self._tallies[model].running[ticket] = usage

    def ended(self, model: str, ticket: int) -> None:
        """It is not any more."""
        tally = self._tallies[model]
        tally.ended += tally.running.pop(ticket)()

    def of(self, model: str) -> tuple[Usage, int]:
        """All that the model has taken, and how many of its requests are answered now."""
        return self.total(model), len(self._tallies[model].running)

    def total(self, model: str) -> Usage:
        """All that the model has taken."""
        tally = self._tallies[model]
        now = sum((usage() for usage in tally.running.values()), tally.ended)
        # An answer's own count, which comes last, may be less than what was counted until then.
        tally.shown = Usage(
            max(now.prompt_tokens, tally.shown.prompt_tokens), max(now.answer_tokens, tally.shown.answer_tokens)
        )
        return tally.shown
