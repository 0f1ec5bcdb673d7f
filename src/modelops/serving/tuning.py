"""How a model is run on this machine: from its file, the settings and the cores to an engine's spec and its need."""

from __future__ import annotations

from dataclasses import dataclass

from modelops.api.errors import NotAvailable, NotFound
from modelops.engines.base import EngineSpec
from modelops.engines.llama_cpp import automatic_batch, find_executable
from modelops.serving import memory
from modelops.serving.catalog import Version
from modelops.serving.devices import usable_cores
from modelops.serving.gguf import read_header
from modelops.settings import EngineSettings


@dataclass(frozen=True)
class Wish:
    """What a caller may ask of a load, as in ModelLoadRequest."""

    quantization: bool = False
    gpu_layers: int = 0


@dataclass(frozen=True)
class Tuned:
    """A spec and the memory that it takes."""

    spec: EngineSpec
    need: memory.Need


def tune(version: Version, wish: Wish, settings: EngineSettings) -> Tuned:
    """The spec for `version`. Reads the file's header; raises ModelOpsError where it cannot be served."""
    try:
        size = version.file.stat().st_size
    except OSError:
        raise NotFound(f"the file of '{version.model_name}' is gone: '{version.shown_path}'") from None
    header = read_header(version.file)
    if wish.quantization and not header.quantised:
        raise NotAvailable(
            f"'{version.model_name}' is not quantised, and this release does not quantise; load it with "
            '"quantization": false, or give a file that is'
        )
    threads = settings.threads or usable_cores()
    context = min(settings.context_length, header.context_length or settings.context_length)
    batch = settings.batch_size or automatic_batch(size, threads, on_gpu=wish.gpu_layers > 0)
    spec = EngineSpec(
        model_name=version.model_name,
        file=version.file,
        executable=find_executable(settings.executable),
        slots=settings.slots,
        context_length=context,
        threads=threads,
        batch_size=batch,
        cache_ram_mb=settings.cache_ram_mb,
        # The API says 0 for "automatic" and -1 for "none"; the engine's own words are the other way round.
        gpu_layers={0: -1, -1: 0}.get(wish.gpu_layers, wish.gpu_layers),
        load_timeout_s=settings.load_timeout_s + settings.load_timeout_s_per_gb * size / 2**30,
        stop_timeout_s=settings.stop_timeout_s,
    )
    need = memory.need(
        header,
        slots=spec.slots,
        context_length=context,
        batch_size=batch,
        cache_ram_mb=spec.cache_ram_mb,
    )
    return Tuned(spec, need)
