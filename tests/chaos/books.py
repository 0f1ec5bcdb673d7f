"""What must be true of memory, kept beside the coordinator: who is resident, who is in use, and what room that leaves.

An oracle: it shares nothing with the coordinator but the sizes that it is told. It judges single operations between
quiet moments, at which nothing is on its way. Sizes are in MB; where a sum is within the slack, either is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from modelops.api.types import ModelInfo

#: Sizes are told in whole MB, and what is free moves by a little between two looks.
SLACK_MB = 24.0
#: At most this stays in RAM of a model that is on a GPU: the engine itself, for the files of these tests.
HOST_PART_MB = 430.0

Room = Mapping[str, float]


@dataclass
class Books:
    """The residents at the last quiet moment, and who uses them since."""

    resident: dict[str, ModelInfo] = field(default_factory=dict)
    held: Counter[str] = field(default_factory=Counter)  # calls in flight that end when they are told to
    fleeting: set[str] = field(default_factory=set)  # when they are loaded, their keep-alive may end any moment

    def may_go(self, name: str) -> bool:
        """Whether `name` may be evicted."""
        return name in self.resident and not self.held[name] and not self.resident[name].pinned

    def judge_refusal(self, needed: float, least: Room) -> str:
        """What is wrong with refusing `needed` where there was that room at `least`; nothing: it was right."""
        emptied = {device: size + self._held_by(self.evictable, device) for device, size in least.items()}
        for device, size in emptied.items():
            if needed + SLACK_MB <= size and emptied["cpu"] >= HOST_PART_MB:
                return f"{needed:.0f} MB were refused, and fit: {size:.0f} on {device} without {self.evictable}"
        return ""

    def judge_load(self, name: str, now: Mapping[str, ModelInfo], least: Room, most: Room) -> str:
        """What is wrong with having loaded `name` with room between `least` and `most`; `now` are the residents."""
        gone = self.resident.keys() - now.keys() - {name}
        if wrong := sorted(victim for victim in gone if not self.may_go(victim)):
            return f"{wrong} went for '{name}', and may not be evicted"
        if name not in now:  # its keep-alive was short
            return ""
        if name in self.resident and self.resident[name].loaded_at == now[name].loaded_at:
            return ""
        taken = now[name].devices
        before = {*gone, name} & self.resident.keys()  # its own: it may have gone and come again
        for device, size in taken.items():
            left = most[device] + self._held_by(before, device) - size
            if left < -SLACK_MB:
                return f"'{name}' took {size} MB of {device}, {-left:.0f} more than there was"
        if len(least) == 1:
            for victim in sorted(gone - self.fleeting):
                rest = least["cpu"] + self._held_by(before - {victim}, "cpu") - taken["cpu"]
                if rest > SLACK_MB:
                    return f"'{victim}' was evicted for '{name}', for which there were {rest:.0f} MB too much without"
        return ""

    def judge_stay(self, now: Mapping[str, ModelInfo], *, but: Iterable[str] = ()) -> str:
        """What is wrong where only `but` may have come or gone."""
        changed = (self.resident.keys() ^ now.keys()) - self.fleeting - {*but}
        return f"{sorted(changed)} came or went for nothing" if changed else ""

    @property
    def evictable(self) -> list[str]:
        """Who may be evicted, by name."""
        return sorted(name for name in self.resident if self.may_go(name))

    def _held_by(self, names: Iterable[str], device: str) -> float:
        return sum(self.resident[name].devices.get(device, 0) for name in names)
