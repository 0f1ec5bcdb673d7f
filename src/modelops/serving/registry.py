"""Models and versions as they are registered, in memory, and what the catalogue file says of them.

A model is a name with versions v1, v2, …; one of them answers. Nothing is written here; of files only
size and latest change are looked at.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from modelops.api.errors import Conflict, NotFound
from modelops.api.types import ModelType
from modelops.serving import model_files
from modelops.serving.wishes import Wish
from modelops.settings import ModelEntry

_NO_ENTRY = ModelEntry()


@dataclass(frozen=True)
class Version:
    """One version of a model. `shown_path` is its file relative to its root: what callers may see and send back.

    `base` is, of an adapter, the digest of the file that it was made for, and empty of all else; `lineage` is what a
    version was made from, where a job made it. `published`: its file is where the coordinator keeps what jobs have
    made, and where nobody else puts another.
    """

    model_name: str
    number: int
    model_type: ModelType
    file: Path
    shown_path: str
    digest: str
    size: int = 0
    mtime_ns: int = 0
    registered_at: float = 0.0
    source: str = ""
    base: str = ""
    lineage: Mapping[str, Any] = field(default_factory=dict, compare=False)
    published: bool = False

    @property
    def engine_name(self) -> str:
        """The model whose engine answers for it: its own, or of an adapter the one that it changes."""
        return self.model_name.rpartition(":")[0] if self.base else self.model_name

    @property
    def label(self) -> str:
        """How callers name it."""
        return f"v{self.number}"

    def unchanged(self) -> bool:
        """Whether its file is there, and the one that was registered."""
        try:
            return model_files.identity(self.file) == (self.size, self.mtime_ns)
        except OSError:
            return False

    def replaced(self) -> bool:
        """Whether another file stands where its own was."""
        try:
            return model_files.identity(self.file) != (self.size, self.mtime_ns)
        except OSError:
            return False

    def check(self) -> None:
        """Raises NotFound where its file is gone, Conflict where it is not the one that was registered."""
        what = f"the file of '{self.model_name}' {self.label}"
        if not self.file.is_file():
            raise NotFound(f"{what} is gone: '{self.shown_path}'")
        if self.replaced() and self.published:
            raise Conflict(f"{what} was damaged: '{self.shown_path}' is not what was published any more")
        if self.replaced():
            raise Conflict(f"{what} was replaced: '{self.shown_path}' is another version now")


@dataclass
class Model:
    """The versions of one model, by their numbers, and those that answer, or did before; 0: none."""

    versions: dict[int, Version] = field(default_factory=dict)
    active: int = 0
    previous: int = 0


class Registry:
    """The models that are registered, and the entries of the catalogue file."""

    def __init__(self, entries: Mapping[str, ModelEntry] = MappingProxyType({})) -> None:
        self._entries = entries
        self._aliases = {alias: name for name, entry in entries.items() for alias in entry.aliases}
        self._models: dict[str, Model] = {}
        self._tuned: dict[str, Wish] = {}
        self._known: dict[tuple[str, str, str, int, int], int] = {}  # what makes a version → its number

    # --- what there is ---
    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._models)

    def knows(self, name: str) -> bool:
        """Whether `name` is registered."""
        return name in self._models

    def knows_version(self, version: Version) -> bool:
        """Whether it is registered still."""
        model = self._models.get(version.model_name)
        return model is not None and version.number in model.versions

    def active(self, name: str) -> Version:
        """The version that answers for `name`. Raises NotFound."""
        try:
            model = self._models[name]
        except KeyError:
            close = difflib.get_close_matches(name, [*self._models, *self._entries, *self._aliases], n=1)
            hint = f"did you mean '{close[0]}'?" if close else "the listing of all models tells those that there are"
            raise NotFound(f"there is no model '{name}'; {hint}") from None
        return model.versions[model.active]

    def known(self, version: Version) -> Version:
        """`version` with what has been learnt of it since, such as its digest."""
        model = self._models.get(version.model_name)
        return model.versions.get(version.number, version) if model else version

    def versions(self, name: str) -> list[Version]:
        """All versions of `name`, oldest first. Raises NotFound."""
        self.active(name)
        return sorted(self._models[name].versions.values(), key=lambda version: version.number)

    def version(self, name: str, label: str) -> Version:
        """The version of `name` called `label`, such as "v2"; its file is as it was. Raises NotFound, Conflict."""
        found = next((version for version in self.versions(name) if version.label == label), None)
        if found is None:
            known = ", ".join(version.label for version in self.versions(name))
            raise NotFound(f"'{name}' has no version '{label[:32]}'; it has {known}")
        found.check()
        return found

    def previous(self, name: str) -> Version:
        """The version that answered before the present one. Raises NotFound, Conflict."""
        self.active(name)
        number = self._models[name].previous
        if not number:
            raise Conflict(f"'{name}' has had no other version active before")
        return self.version(name, f"v{number}")

    def chosen(self, name: str) -> tuple[int, int]:
        """The numbers of the version that answers, and of the one that did before, 0 for none. Raises NotFound."""
        self.active(name)
        return self._models[name].active, self._models[name].previous

    def is_adapter(self, name: str) -> bool:
        """Whether the versions of `name` are adapters."""
        model = self._models.get(name)
        return model is not None and bool(model.versions[model.active].base)

    def _refuse_adapter(self, name: str) -> None:
        if self.is_adapter(name):
            base = self.active(name).engine_name
            raise Conflict(f"'{name}' is an adapter of '{base}': its versions are what learning jobs make")

    # --- what the catalogue file says ---
    def preloaded(self) -> list[str]:
        """The models that the catalogue file wants loaded at the start."""
        return [name for name, entry in self._entries.items() if entry.preload]

    def wish(self, name: str, *, untuned: bool = False) -> Wish:
        """How `name` is to be run where no caller says so: as the catalogue file says, and before that, unless
        `untuned`, as it was tuned. An adapter as the model that it changes."""
        name = self.active(name).engine_name if self.is_adapter(name) else name
        wish = wish_of(self._entries.get(name, _NO_ENTRY))
        if untuned or (tuned := self._tuned.get(name)) is None:
            return wish
        return replace(
            wish,
            slots=tuned.slots or wish.slots,
            cache_type=tuned.cache_type or wish.cache_type,
            tuning=tuned.tuning,
        )

    def tuned(self, name: str) -> Wish | None:
        """How `name` was tuned, of which the catalogue file says nothing; None if it was not."""
        return self._tuned.get(self.active(name).engine_name)

    def entry(self, name: str) -> ModelEntry:
        """What the catalogue file says of `name`."""
        return self._entries.get(name, _NO_ENTRY)

    def resolve(self, name: str) -> str:
        """The model that `name`, which may be an alias, means."""
        return self._aliases.get(name, name)

    def aliases(self, name: str) -> list[str]:
        """What else means `name`."""
        return [alias for alias, meant in self._aliases.items() if meant == name]

    # --- what goes ---
    def _forget(self, versions: Sequence[Version]) -> list[Version]:
        """Those of `versions` that are still there and may go. All at once: whoever looks finds a model as it was, with
        what is left of it, or not at all."""
        wanted: dict[str, set[int]] = {}
        for version in versions:
            wanted.setdefault(version.model_name, set()).add(version.number)
        gone: list[Version] = []
        for name, numbers in wanted.items():
            if model := self._models.get(name):
                numbers &= model.versions.keys()
                if numbers != model.versions.keys():
                    numbers.discard(model.active)
                gone += [model.versions.pop(number) for number in sorted(numbers)]
                if not model.versions:
                    del self._models[name]
                    self._tuned.pop(name, None)
        keys = {(version.model_name, version.number) for version in gone}
        self._known = {key: number for key, number in self._known.items() if (key[0], number) not in keys}
        return gone


def tuned_part(wish: Wish) -> Wish:
    """What of `wish` a model is tuned by."""
    return Wish(slots=wish.slots, cache_type=wish.cache_type, tuning=wish.tuning)


def wish_of(entry: ModelEntry) -> Wish:
    """How the model of that entry is to be run where no caller says so."""
    return Wish(
        quantization=entry.quantization,
        gpu_layers=entry.gpu_layers,
        context_length=entry.context_length,
        slots=entry.slots,
        cache_type=entry.cache_type,
        keep_alive_s=entry.keep_alive,
        pinned=entry.pin,
    )
