"""What a load will take of RAM: our formula, the engine's own projection, and what earlier loads were measured to take.

Owns the choice between them and its explanation, and asks the engine, one probe at a time. It must not decide whether
something fits: that is placement's. Projections and measurements are kept by (header, settings, kind of device), so a
file that was merely renamed is known again.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modelops.api.errors import ModelOpsError
from modelops.engines.base import EngineSpec
from modelops.engines.probe import Projection, Share, project
from modelops.serving.gguf import Header, write_skeleton
from modelops.serving.memory import DRIVER_LIBRARY_BYTES, LIBRARY_BYTES, MB, Need, more_driver
from modelops.store.estimates import EstimateQueries, EstimateRow

log = logging.getLogger(__name__)

_TELLING = 0.15  # a formula that is this far off is wrong, or the engine has changed


@dataclass(frozen=True)
class Past:
    """An earlier load of the same file, in bytes. `projected` is None where the engine gave no projection."""

    computed: int
    projected: int | None
    measured: int


@dataclass(frozen=True)
class Taken:
    """What an engine was seen to take, in bytes: of RAM at its load and after its first answer, as
    `Process.taken_bytes` says; `gpu_layers` of its units are on GPUs, of which each holds `per_gpu` beside them (0: the
    driver does not tell)."""

    at_load: int
    answered: int
    gpu_layers: int = 0
    per_gpu: int = 0


@dataclass(frozen=True)
class Estimate:
    """What a load will take of memory, in bytes, and how we know.

    `need` is the formula's, corrected to what was chosen. `projected` includes the process; `measured` is of a load
    with the same settings; `correction` what another load took more than was foretold.
    """

    need: Need
    computed: int
    projected: int | None = None
    measured: int | None = None
    correction: int | None = None
    projection: Projection | None = None

    @property
    def total(self) -> int:
        """The figure to reserve."""
        return self.need.total

    @property
    def source(self) -> str:
        """What the figure rests on."""
        if self.measured is not None:
            return "measured when it was last loaded like this"
        first = "computed from the file's header" if self.projected is None else "projected by the engine"
        return first if self.correction is None else f"{first}, corrected by an earlier load"

    def lines(self) -> list[str]:
        """The explanation, for a person."""
        parts = ", ".join(f"{name} {_mb(size)}" for name, size in self.need.parts.items() if name != "correction")
        told = [
            ("projected", None if self.projected is None else f"{_mb(self.projected)} by the engine"),
            ("computed", f"{_mb(self.computed)}: {parts}"),
            ("measured", None if self.measured is None else _mb(self.measured)),
            ("correction", None if self.correction is None else f"{self.correction / MB:+,.0f} MB"),
            ("estimate", f"{_mb(self.total)}, {self.source}"),
        ]
        return [f"{name:<10}  {text}" for name, text in told if text]


def choose(
    computed: Need,
    projected: int | None,
    same: Past | None,
    other: Past | None,
    driver: int | None = None,
    *,
    model: str = "",
) -> Estimate:
    """The best figure there is. Pure, but that it logs a formula that is far off, with the name of the `model`.

    `same` is a load with the same settings: what it took. Else `other`, one of the same file with other settings: what
    is foretold now and what that one took more than was foretold then. Else what is foretold: by the engine, or by
    our formula where the engine foretells nothing. `driver` replaces the formula's, of each GPU.
    """
    foretold = computed.total if projected is None else projected
    correction = None
    if same:
        total = same.measured
    elif other:
        before = other.computed if projected is None or other.projected is None else other.projected
        correction = other.measured - before
        total = foretold + correction
    else:
        total = foretold
    reference = same.measured if same else projected
    if reference and abs(computed.total - reference) > _TELLING * reference:
        told = {"model": model, "computed": computed.total, "reference": reference}
        log.warning("the formula says %s where the engine says %s", _mb(computed.total), _mb(reference), extra=told)
    return Estimate(
        need=computed.corrected(total - computed.total, driver),
        computed=computed.total,
        projected=projected,
        measured=same.measured if same else None,
        correction=correction,
    )


def with_adapters(bare: Estimate, computed: Need, need: Need) -> Estimate:
    """The estimate of an engine with adapters, or a draft model, from the `bare` one of the same without: of that
    `computed` is what the formula gives it, and `need` with them.

    What is asked and measured is kept without them: it is the same with others.
    """
    more = need.total - computed.total

    def beside(size: int | None) -> int | None:
        return None if size is None else size + more

    return replace(
        bare,
        need=need.corrected(bare.need.total - computed.total, bare.need.driver),
        computed=bare.computed + more,
        projected=beside(bare.projected),
        measured=beside(bare.measured),
    )


def settings_key(spec: EngineSpec) -> str:
    """Everything of `spec` that memory depends on, but for its file, those of its adapters, and what guesses ahead."""
    engine = spec.executable or f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    return json.dumps(
        [
            *(engine, spec.slots, spec.context_length, spec.batch_size, spec.cache_type, spec.cache_ram_mb),
            spec.context_checkpoints,
            *(spec.threads, spec.gpu_layers, list(spec.tensor_split), spec.task),
            *([spec.flash_attention] if spec.flash_attention else []),
        ]
    )


def projected_bytes(projection: Projection, computed: Need) -> int:
    """What the engine will take by its own projection, in which process, adapters and later growth are not.

    All devices together, as the formula has it: what a GPU takes, RAM would take without it.
    """
    if not projection.on_gpus:
        return projection.host.total + computed.beside
    moved = computed.total - computed.unmovable
    return projection.host.total + moved + computed.beside + _computing_left(projection, computed)


def _computing_left(projection: Projection | None, computed: Need) -> int:
    """What computing takes more of RAM where GPUs take nothing than where they take all: it may go either way."""
    return max(0, computed.compute - projection.host.compute) if projection else 0


def beside_units(projection: Projection | None, computed: Need) -> int:
    """What a GPU that takes every unit holds beside them, but for its driver: as the engine says, else our formula."""
    if projection and projection.on_gpus:
        return projection.on_gpus - sum(computed.units)
    return computed.compute


def measured_bytes(
    taken: int, projection: Projection | None, computed: Need, weights: Sequence[int] = (), gpu_layers: int = 0
) -> int:
    """What a load takes, from the `taken` bytes of RAM that are the process's own once it has answered a request.

    To these come the pages of files that it maps, which the machine could take back, but would read again for the next
    token: its libraries, and the weights that it has not copied into another order. How many of them are resident is
    not asked: it says what else the machine was doing. What fills later counts in full. The last `gpu_layers` units
    are on GPUs, and count as the formula has them; `weights` are those of each layer, of which RAM maps the rest.
    """
    mapped = projection.host.model - projection.copied if projection else computed.parts.get("weights", 0)
    if not gpu_layers:
        return taken + mapped + LIBRARY_BYTES + computed.later
    stay = max(0, len(computed.layers) + 1 - gpu_layers)
    on_gpus = sum(computed.layers[stay:]) + computed.output
    # The projection is of a GPU that takes every unit; without one, all weights count as mapped, and some twice.
    mapped = mapped + sum(weights[:stay]) if projection else mapped - sum(weights[stay:]) - computed.output
    beside = LIBRARY_BYTES + DRIVER_LIBRARY_BYTES + _computing_left(projection, computed)
    return taken + mapped + on_gpus + beside + computed.later


def unused_bytes(
    projection: Projection | None, header: Header, computed: Need, at_load: int, gpu_layers: int = 0
) -> int:
    """Of the weights that an engine maps, those that it read once, to copy them into another order.

    Their pages stay resident, and the machine can take them back for good. The projection tells how many were copied.
    Where it is of GPUs that took nothing after all, or there is none, we see it by what the process had taken `at_load`
    beside all else: where the processor has no use for another order, it is nothing. Beside a GPU that takes layers,
    an engine copies none (`make_cpu_buft_list` in `src/llama-model.cpp`).
    """
    again = header.input_bytes if header.copied_input else 0  # as embeddings the original is read, too
    if projection and (gpu_layers or not projection.on_gpus):
        copied = projection.copied
    elif gpu_layers:
        return 0
    else:
        files = {"weights", "driver"}
        own = computed.total - computed.later - LIBRARY_BYTES - sum(computed.parts.get(name, 0) for name in files)
        copied = min(header.reordered_bytes + again, at_load - own)
    return max(0, copied - again)


class Estimates:
    """Estimates by what the state file knows and an engine tells."""

    def __init__(self, queries: EstimateQueries, *, ask: bool = True) -> None:
        """With `ask` false no engine is asked, and our formula answers."""
        self._queries = queries
        self._ask = ask
        self._one = asyncio.Lock()

    async def estimate(self, spec: EngineSpec, header: Header, computed: Need, device: str = "cpu") -> Estimate:
        """What `spec` will take. Asks the engine where the answer is not known yet. Never raises for want of one."""
        key = settings_key(spec)
        rows = await self._queries.of(header.digest, device)
        row = next((row for row in rows if row.settings == key), None)
        if row is None:
            row = await self._asked(spec, header, computed, device)
        projection, driver = _from_json(row.projection), computed.driver
        if driver:  # what a GPU holds beside units and the formula's computing
            if row.driver:
                driver = row.driver
            elif least := await self._queries.least_driver(device):
                driver = least + more_driver(header)
            driver += beside_units(projection, computed) - computed.compute
        other = next((past for past in map(_past, _others(rows, key)) if past), None)
        chosen = choose(computed, row.projected or None, _past(row), other, driver, model=spec.model_name)
        return replace(chosen, projection=projection)

    async def _asked(self, spec: EngineSpec, header: Header, computed: Need, device: str) -> EstimateRow:
        """What the engine projects, kept. One is asked at a time, and who waited meanwhile finds what it said."""
        key = settings_key(spec)
        async with self._one:
            rows = await self._queries.of(header.digest, device)
            if known := next((row for row in rows if row.settings == key), None):
                return known
            projection = await _projection(spec) if self._ask else None
            projected = projected_bytes(projection, computed) if projection else 0
            row = EstimateRow(
                *(header.digest, key, device, computed.total, projected, _to_json(projection), 0, time.time())
            )
            if projection:  # else it may be asked again: a busy machine may have kept it from answering in time
                await self._queries.put(row)
            return row

    async def loaded(self, spec: EngineSpec, header: Header, computed: Need, taken: Taken, device: str = "cpu") -> int:
        """Keeps what a load was measured to take, and returns it.

        Before a first answer buffers are not touched yet. A short prompt leaves much of them untouched still, so what
        was taken at the load, and all of computing, is the least.
        """
        key = settings_key(spec)
        row = next((row for row in await self._queries.of(header.digest, device) if row.settings == key), None)
        if row is None:
            row = EstimateRow(header.digest, key, device, computed.total, 0, "", 0, 0.0)
        projection = _from_json(row.projection)
        compute = projection.host.compute if projection else computed.compute
        measured = measured_bytes(
            max(taken.answered, taken.at_load + compute),
            *(projection, computed, [layer.weights for layer in header.blocks], taken.gpu_layers),
        )
        row = replace(row, measured=measured, at=time.time())
        if taken.per_gpu:
            driver = max(1, taken.per_gpu - beside_units(projection, computed))
            row = replace(row, driver=driver, more_driver=more_driver(header))
        await self._queries.put(row)
        return measured


async def _projection(spec: EngineSpec) -> Projection | None:
    with tempfile.TemporaryDirectory(prefix="modelops-header-") as folder:
        try:
            file = await asyncio.to_thread(write_skeleton, spec.file, Path(folder))
        except (OSError, ModelOpsError) as error:
            log.debug("'%s' cannot be probed: %s", spec.model_name, error, extra={"model": spec.model_name})
            return None
        return await project(replace(spec, file=file))


def _others(rows: Sequence[EstimateRow], key: str) -> list[EstimateRow]:
    return [row for row in rows if row.settings != key]


def _past(row: EstimateRow) -> Past | None:
    """None where the load has not been measured, or was not foretold."""
    return Past(row.computed, row.projected or None, row.measured) if row.measured and row.computed else None


def _to_json(projection: Projection | None) -> str:
    if not projection:
        return ""
    devices = {name: [share.model, share.context, share.compute] for name, share in projection.devices.items()}
    return json.dumps({"copied": projection.copied, "devices": devices})


def _from_json(text: str) -> Projection | None:
    if not text:
        return None
    found = json.loads(text)
    return Projection({name: Share(*sizes) for name, sizes in found["devices"].items()}, found["copied"])


def _mb(size: int) -> str:
    return f"{size / MB:,.0f} MB"
