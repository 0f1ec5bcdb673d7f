"""Where a model goes: its need and the room on each device → a plan, or the bill that says why there is none. Pure.

llama.cpp offloads the last units of a model, where the units are its repeating layers and then its output. Each GPU
takes a run of them, in the order of the GPUs' numbers; the rest stays in the host's RAM, device "cpu".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from modelops.serving.memory import Need

MB = 2**20
HOST = "cpu"

#: When layers may stay on the CPU of a machine that has GPUs: as soon as the GPUs have no room for all of them, only
#: after idle models have been evicted, or never (unless the caller says how many).
CpuLayers = Literal["before_eviction", "after_eviction", "never"]


@dataclass(frozen=True)
class Wants:
    """What is to be placed. `gpu_layers` is None for "placed automatically", else the number of units for GPUs.

    `alternatives` are smaller ways to run the same model, each with its name, in groups of one kind, the largest first;
    a bill names the first of each group that fits.
    """

    need: Need
    gpu_layers: int | None = None
    alternatives: tuple[tuple[tuple[str, Need], ...], ...] = ()


@dataclass(frozen=True)
class Holder:
    """A model that holds memory: how many bytes on which device. `cost` is what evicting it costs; None: it stays.
    `kept`: a goal keeps it."""

    model: str
    held: Mapping[str, int]
    cost: float | None = None
    kept: bool = False


@dataclass(frozen=True)
class Layout:
    """Which bytes go to which device. `split` has one entry for each GPU of the machine: the units that it takes."""

    reserve: Mapping[str, int]
    split: tuple[int, ...] = ()

    @property
    def gpu_layers(self) -> int:
        """Units on GPUs."""
        return sum(self.split)


@dataclass(frozen=True)
class Plan:
    """A layout, and the models to evict for it, cheapest first."""

    layout: Layout
    evict: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bill:
    """Why something does not fit, in bytes for each device. `held`: which model holds how much in all; `kept`: those of
    them that goals keep. `others`: what other programs hold of what models might have; `never`: it would not even fit
    if nobody held anything."""

    needed: int
    free: Mapping[str, int]
    reserved: Mapping[str, int]
    evictable: Mapping[str, int]
    held: Mapping[str, int]
    would_fit: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    others: Mapping[str, int] = field(default_factory=dict)
    never: bool = False

    def sentence(self, name: str) -> str:
        """The bill for a person: what, why, and what to do."""
        kept = dict.fromkeys(self.kept, ", kept by a goal")
        sizes = (f"'{model}' {_mb(size)} MB{kept.get(model, '')}" for model, size in sorted(self.held.items()))
        held = ("; " if kept else ", ").join(sizes) or "no model"
        if others := _mb(sum(self.others.values())):
            held += f"; other programs: {others} MB"
        *rooms, last = (f"{_mb(size)} MB on {device}" for device, size in self.free.items())
        free = f"{', '.join(rooms)} and {last}" if rooms else f"{_mb(sum(self.free.values()))} MB"
        fits = f"it would fit with {' or '.join(self.would_fit)}" if self.would_fit else "no smaller setting would fit"
        return (
            f"'{name}' needs {_mb(self.needed, up=True)} MB and {free} are free (held: {held}); {fits}; "
            f"else unload a model that is in use or pinned, {'cancel a goal that keeps one, ' if kept else ''}"
            "or raise memory.budget_mb where it is what binds"
        )

    def details(self) -> dict[str, str]:
        """The bill for a program: totals, then the same for each device, each holder, and what would fit."""
        sums = {"free_mb": self.free, "reserved_mb": self.reserved, "evictable_mb": self.evictable}
        sums |= {"others_mb": self.others} if self.others else {}
        parts = {"needed_mb": str(_mb(self.needed, up=True))}
        parts |= {key: str(_mb(sum(of.values()))) for key, of in sums.items()}
        parts |= {f"{key}.{device}": str(_mb(size)) for key, of in sums.items() for device, size in of.items()}
        parts |= {f"held_mb.{model}": str(_mb(size)) for model, size in self.held.items()}
        return parts | {f"would_fit.{number}": way for number, way in enumerate(self.would_fit, start=1)}


def place(
    wants: Wants, free: Mapping[str, int], holders: Sequence[Holder], *, cpu_layers: CpuLayers = "before_eviction"
) -> Plan | Bill:
    """The plan for `wants` with `free` bytes on each device, or the bill.

    In this order: one GPU; split over GPUs; some layers on the CPU, where allowed; the same after evicting idle models,
    as few and as cheap as will do; a bill. A bill is answered only where no plan exists.
    """
    for ways, evicting in _stages(wants.gpu_layers, any(device != HOST for device in free), cpu_layers):
        if not evicting:
            if layout := _first(ways, wants.need, free):
                return Plan(layout)
        elif plan := _evicting(ways, wants.need, free, holders):
            return plan
    return bill(wants, free, holders, cpu_layers)


def bill(wants: Wants, free: Mapping[str, int], holders: Sequence[Holder], cpu_layers: CpuLayers) -> Bill:
    """The bill for `wants`, every alternative tried."""

    emptied = freed(free, [holder.held for holder in holders if holder.cost is not None])

    def fits(need: Need, gpu_layers: int | None = wants.gpu_layers) -> bool:
        ways = _stages(gpu_layers, any(device != HOST for device in free), cpu_layers)
        return any(_first(way, need, emptied) for way, evicting in ways if evicting)

    would = [next((name for name, need in group if fits(need)), "") for group in wants.alternatives]
    if len(free) > 1 and wants.gpu_layers != 0:
        most = len(wants.need.layers) if wants.gpu_layers is None else wants.gpu_layers - 1
        counts = range(min(most, len(wants.need.layers)), -1, -1)
        fewer = next((count for count in counts if fits(wants.need, count)), None)
        would += [] if fewer is None else [f"gpu_layers {fewer or -1}"]
    return Bill(
        needed=wants.need.total + (wants.need.driver if len(free) > 1 and wants.gpu_layers != 0 else 0),
        free={device: max(size, 0) for device, size in free.items()},
        reserved=_held(holders, free),
        evictable=_held([holder for holder in holders if holder.cost is not None], free),
        held={
            model: sum(sum(holder.held.values()) for holder in holders if holder.model == model)
            for model in {holder.model: None for holder in holders}
        },
        would_fit=tuple(name for name in would if name),
        kept=tuple(sorted({holder.model for holder in holders if holder.kept})),
    )


def together(
    wants: Mapping[str, Wants], free: Mapping[str, int], *, cpu_layers: CpuLayers = "before_eviction"
) -> tuple[str, Bill] | None:
    """The first of these models that has no place beside those before it, with the bill; None where all have one."""
    left, holders = dict(free), list[Holder]()
    for name, want in wants.items():
        placed = place(want, left, holders, cpu_layers=cpu_layers)
        if isinstance(placed, Bill):
            return name, placed
        holders.append(Holder(name, placed.layout.reserve, kept=True))
        left = {device: size - placed.layout.reserve.get(device, 0) for device, size in left.items()}
    return None


# --- layouts ---
_Way = Callable[[Need, Mapping[str, int]], Layout | None]


def _stages(gpu_layers: int | None, gpus: bool, cpu_layers: CpuLayers) -> Iterator[tuple[Sequence[_Way], bool]]:
    """Which ways to lay a model out are tried, in order, each stage without or with eviction."""
    if not gpus or gpu_layers == 0:
        every: Sequence[_Way] = [on_host]
    elif gpu_layers is not None:
        every = [_exactly(gpu_layers)]
    elif cpu_layers == "before_eviction":
        every = [all_on_gpus, partly_on_gpus]
    else:
        yield [all_on_gpus], False
        yield [all_on_gpus], True
        every = [partly_on_gpus] if cpu_layers == "after_eviction" else []
    yield every, False
    yield every, True


def on_host(need: Need, free: Mapping[str, int]) -> Layout | None:
    """Everything in RAM."""
    split = tuple(0 for device in free if device != HOST)
    return Layout({HOST: need.total}, split) if need.total <= free.get(HOST, 0) else None


def all_on_gpus(need: Need, free: Mapping[str, int]) -> Layout | None:
    """Every unit on one GPU, else on several."""
    return _offloaded(need, free, len(need.layers) + 1)


def partly_on_gpus(need: Need, free: Mapping[str, int]) -> Layout | None:
    """As many units on GPUs as go, the rest on the CPU; maybe all of them."""
    counts = range(len(need.layers), 0, -1)
    return next((found for count in counts if (found := _offloaded(need, free, count))), None) or on_host(need, free)


def _exactly(count: int) -> _Way:
    return lambda need, free: _offloaded(need, free, min(count, len(need.layers) + 1))


def _offloaded(need: Need, free: Mapping[str, int], count: int) -> Layout | None:
    """The last `count` units on GPUs: on the fullest one that takes them all, else on as few as will do."""
    units = need.units[-count:]
    host = _host_bytes(need, count)
    if host > free.get(HOST, 0):
        return None
    # A prompt is computed by GPUs for the layers that stay in RAM, too.
    beside = need.per_gpu + (need.visiting if count <= len(need.layers) else 0)
    gpus = [device for device in free if device != HOST]
    by_room = sorted(gpus, key=lambda device: (-free[device], gpus.index(device)))
    alone = next((device for device in reversed(by_room) if sum(units) + beside <= free[device]), None)
    if alone:
        return _layout(gpus, {alone: units}, host, beside)
    for several in range(2, len(gpus) + 1):
        chosen = by_room[:several]
        runs = _runs(units, [device for device in gpus if device in chosen], free, beside)
        if runs:
            return _layout(gpus, runs, host, beside)
    return None


def _host_bytes(need: Need, count: int) -> int:
    """What stays in RAM when the last `count` units, one at least, are on GPUs."""
    return need.total - sum(need.layers[len(need.layers) + 1 - count :]) - need.output


def _runs(
    units: Sequence[int], gpus: Sequence[str], free: Mapping[str, int], beside: int
) -> dict[str, list[int]] | None:
    """The units in runs over `gpus`, each filled before the next: no other way of this order takes more of them."""
    runs: dict[str, list[int]] = {}
    left = list(units)
    for device in gpus:
        room = free[device] - beside
        run: list[int] = []
        while left and left[0] <= room:
            room -= left[0]
            run.append(left.pop(0))
        if run:
            runs[device] = run
    return None if left else runs


def _layout(gpus: Sequence[str], runs: Mapping[str, Sequence[int]], host: int, beside: int) -> Layout:
    reserve = {HOST: host} | {device: sum(units) + beside for device, units in runs.items()}
    return Layout(reserve, tuple(len(runs.get(device, ())) for device in gpus))


def _first(ways: Sequence[_Way], need: Need, free: Mapping[str, int]) -> Layout | None:
    return next((layout for way in ways if (layout := way(need, free))), None)


# --- eviction ---
def _evicting(ways: Sequence[_Way], need: Need, free: Mapping[str, int], holders: Sequence[Holder]) -> Plan | None:
    """The plan that evicts as little as will do. More room never hurts: if evicting all does not help, nothing does."""
    idle = {holder.model: holder for holder in holders if holder.cost is not None and any(holder.held.values())}

    def layout(evicted: Sequence[str]) -> Layout | None:
        return _first(ways, need, freed(free, [idle[model].held for model in evicted]))

    if not layout(list(idle)):
        return None

    def cost(model: str) -> float:
        return idle[model].cost or 0.0

    def density(model: str) -> float:
        return cost(model) / sum(idle[model].held.values())

    plans = []
    for measure in (cost, density):
        order = sorted(idle, key=lambda model: (measure(model), model))
        chosen = next(order[:count] for count in range(1, len(order) + 1) if layout(order[:count]))
        for model in sorted(chosen, key=lambda model: (-cost(model), model)):
            without = [other for other in chosen if other != model]
            if layout(without):
                chosen = without
        found = layout(chosen)
        assert found is not None
        chosen.sort(key=lambda model: (cost(model), model))
        plans.append(Plan(found, tuple(chosen)))
    return min(plans, key=lambda plan: (sum(cost(model) for model in plan.evict), plan.evict))


def freed(free: Mapping[str, int], gone: Collection[Mapping[str, int]]) -> dict[str, int]:
    """What is free on each device when what is `gone` is."""
    return {device: size + sum(held.get(device, 0) for held in gone) for device, size in free.items()}


def eviction_cost(*, reload_s: float, idle_s: float, keep_alive_s: float | None) -> float:
    """What losing an idle model costs: the seconds to load it again, times how likely somebody will want it.

    The longer it has been idle the less likely, and nothing of its keep-alive being left, it goes anyway.
    """
    left = 1.0 if keep_alive_s is None else max(0.0, 1 - idle_s / keep_alive_s) if keep_alive_s > 0 else 0.0
    return reload_s * left / (1.0 + idle_s)


# --- the ledger ---
@dataclass
class Ledger:
    """How many bytes each engine holds on which device. Only the scheduler writes it."""

    reserved: dict[int, Mapping[str, int]] = field(default_factory=dict)

    def reserve(self, engine: int, sizes: Mapping[str, int]) -> None:
        """Set what `engine` holds."""
        self.reserved[engine] = dict(sizes)

    def release(self, engine: int) -> None:
        """`engine` holds nothing any more."""
        self.reserved.pop(engine, None)

    def total(self, device: str) -> int:
        """What is held on `device`."""
        return sum(sizes.get(device, 0) for sizes in self.reserved.values())


def _held(holders: Sequence[Holder], devices: Mapping[str, int]) -> dict[str, int]:
    return {device: sum(holder.held.get(device, 0) for holder in holders) for device in devices}


def _mb(size: int, *, up: bool = False) -> int:
    return -(-size // MB) if up else size // MB
