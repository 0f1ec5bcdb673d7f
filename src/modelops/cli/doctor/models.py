"""The models: which files there are, which are damaged, and which would fit now."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelops.api.errors import InvalidRequest
from modelops.cli.doctor.coordinator import Coordinator
from modelops.cli.doctor.engine import blind
from modelops.cli.doctor.findings import Area, Finding, count, mb, typed
from modelops.cli.doctor.machine import holds
from modelops.serving import gguf, sources
from modelops.serving.catalog import NAME, Version, wish_of
from modelops.serving.devices import Device, Machine
from modelops.serving.model_files import natural_type
from modelops.serving.placement import HOST, MB, Bill, Holder, Plan, Wants, place
from modelops.serving.running import room
from modelops.serving.tuning import Tuned, tune
from modelops.settings import ModelEntry, Settings

AREA = Area("models")
_MOST = 50  # files whose headers are read, the largest
_PATIENCE_S = 4.0  # for all of them: a large vocabulary takes a tenth of a second
_LOADED = "what is loaded"
_KIND = re.compile(r"[-._]((?:I?Q\d\w*|MXFP4\w*|B?F16|F32))(?=[-._])", re.IGNORECASE)


def roots(settings: Settings) -> Iterator[Finding]:
    """The folders that models are looked for in, and what fetches have left in the first."""
    for root in settings.models.roots:
        if not _readable(root):
            mend = f"mkdir -p {typed(root)}, or correct models.roots (MODELOPS_MODELS__ROOTS)"
            yield AREA.warning("roots", f"{root} is no folder, or cannot be read", mend)
    partial = settings.models_dir / sources.PARTIAL
    unfinished = [folder for folder in sorted(partial.glob("*/")) if folder.is_dir()] if _readable(partial) else []
    if unfinished:
        names = ", ".join(f"{folder.name} ({mb(_size(folder))})" for folder in unfinished)
        mend = "fetch it again: it goes on from there; or 'modelops prune' removes it, while a coordinator runs"
        yield AREA.warning("fetches", f"broken off, or under way: {names}", mend)


def found(settings: Settings, running: Coordinator | None) -> Iterator[Finding]:
    """Each file that may be a model: whether it is whole, and whether it would fit now."""
    from modelops.app import StartError, catalogue_of, machine_of

    try:
        entries = catalogue_of(settings)
    except StartError:  # the configuration's checks tell it
        entries = {}
    try:
        machine = machine_of(settings)
    except StartError as error:
        yield AREA.wrong("devices", str(error), "correct memory.simulated_devices, or leave it out")
        return
    search = [settings.models_dir, *settings.models.roots]
    candidates = sorted(_candidates(search), key=lambda file: (-_size(file), file.name))
    if not candidates:
        mend = "modelops pull smollm2 fetches a small one (98 MB); or put a GGUF file into that folder"
        yield AREA.warning("models", f"none is found in {', '.join(map(str, search))}", mend)
        return
    scene = Scene.now(settings, machine, running)
    taken: dict[str, Path] = {}
    until = time.monotonic() + _PATIENCE_S
    for number, file in enumerate(candidates):
        if number == _MOST or time.monotonic() > until:
            yield AREA.ok("more", f"{count(len(candidates) - number, 'smaller file')} not looked at")
            break
        name = gguf.model_name(file)
        if name is None:
            continue  # a later part, which is looked at with the first
        yield _one(name, file, search, taken.setdefault(name, file), scene, entries.get(name, ModelEntry()))


@dataclass(frozen=True)
class Scene:
    """What there is for models: computed once, for all of them. `free` is what may be reserved, in bytes."""

    settings: Settings
    cores: int
    free: Mapping[str, int]
    held: Mapping[str, int]

    @classmethod
    def now(cls, settings: Settings, machine: Machine, running: Coordinator | None) -> Scene:
        """As it is now, with the reserves and the budget of the settings."""
        devices: tuple[Device, ...] = machine.devices()
        if any(device.device != HOST and not device.simulated for device in devices) and blind(settings):
            devices = tuple(device for device in devices if device.device == HOST)
        held = holds(running, devices)
        free = dict(room(devices, {}, settings.memory).free)
        if settings.memory.budget_mb:
            free[HOST] = min(free.get(HOST, 0), settings.memory.budget_mb * MB - held.get(HOST, 0))
        return cls(settings, machine.cores, free, held)


def _one(name: str, file: Path, search: list[Path], first: Path, scene: Scene, entry: ModelEntry) -> Finding:
    quoted = typed(file)
    if not NAME.fullmatch(name):
        rename = f"rename it: letters, digits and . _ : @ + - only, as in {_better(name)}.gguf"
        return AREA.warning(name, f"{file} is not found by itself: its name cannot be a model's", rename)
    if first != file:
        return AREA.warning(name, f"{file} is hidden by {first}, which has the same name", f"rename one: mv {quoted} …")
    try:
        target = file.resolve(strict=True)
    except (OSError, RuntimeError):
        return AREA.warning(name, f"{file} is a link that leads nowhere", f"remove it: rm {quoted}")
    if not any(target.is_relative_to(root.resolve()) for root in search):
        folders = ":".join(typed(root) for root in [*search[1:], target.parent])
        add = f"add its folder to models.roots: MODELOPS_MODELS__ROOTS={folders}"
        return AREA.warning(name, f"{file} is a link that leads out of the model roots, and is not served", add)
    try:
        header = gguf.read_header(target)
    except InvalidRequest as error:
        again = f"remove it (rm {quoted}) and fetch it again"
        return AREA.warning(name, error.message, again)
    if header.adapter:
        return AREA.warning(
            name, f"{file} is an adapter, which is no model by itself", "move it out of the model roots"
        )
    return fits(name, target, header, scene, entry)


def fits(name: str, file: Path, header: gguf.Header, scene: Scene, entry: ModelEntry) -> Finding:
    """Whether it would be loaded now, by the formula alone: a coordinator asks the engine too, and knows more."""
    kind = entry.type if "type" in entry.model_fields_set else natural_type(header)
    wish = wish_of(entry)
    version = Version(name, 0, kind, file, file.name, "")
    # Which engine runs it does not matter to the formula; whether there is one, the engine's checks tell.
    engine = scene.settings.engine.model_copy(update={"executable": sys.executable})
    tuned = tune(version, wish, engine, scene.cores, gpus=len(scene.free) > 1)
    holders = [Holder(_LOADED, scene.held, cost=1.0)] if scene.held else []
    wants = Wants(tuned.need, wish.offloaded, tuned.alternatives)
    placed = place(wants, scene.free, holders, cpu_layers=scene.settings.memory.cpu_layers)
    what = f"{_described(kind, file, header)}; {_run(tuned)}"
    if isinstance(placed, Plan):
        after = " after what is loaded has given way" if placed.evict else ""
        return AREA.ok(name, f"{what}: fits{after}, with {_reserved(placed)}")
    return AREA.warning(name, f"{what}: does not fit, it {_bill(placed)}", _smaller(name, placed))


def _described(kind: str, file: Path, header: gguf.Header) -> str:
    named = _KIND.search(file.name)
    weights = named[1].upper() if named else "quantised" if header.quantised else "not quantised"
    return f"{mb(header.file_bytes)}, {header.architecture}, {weights}{'' if kind == 'llm' else f', {kind}'}"


def _run(tuned: Tuned) -> str:
    return f"{count(tuned.spec.slots, 'slot')} of {tuned.spec.context_length} tokens"


def _reserved(plan: Plan) -> str:
    return " and ".join(
        f"{mb(size)} {'of RAM' if device == HOST else f'of {device}'}" for device, size in plan.layout.reserve.items()
    )


def _bill(bill: Bill) -> str:
    free = ", ".join(
        f"{mb(size)} {'of RAM' if device == HOST else f'of {device}'}" for device, size in bill.free.items()
    )
    return f"needs {mb(bill.needed)}, and {free} are free"


def _smaller(name: str, bill: Bill) -> str:
    if bill.would_fit:
        ways = " or ".join(bill.would_fit[:2])
        return f"it would fit with {ways}: as options of 'modelops load {name}', or in the catalogue (docs/models.md)"
    return "end other programs, take a smaller quantisation of it, or run it where there is more memory"


def _candidates(search: list[Path]) -> Iterator[Path]:
    """As the catalogue finds them, and links that lead nowhere. Not in folders below."""
    for root in filter(_readable, search):
        yield from (file for file in sorted(root.glob("*.gguf")) if file.is_file() or file.is_symlink())


def _readable(folder: Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK) and folder.is_dir()


def _size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    try:
        return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().st_size
    except OSError:
        return 0


def _better(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._:@+-]+", "-", name).strip("._:@+-") or "model"
