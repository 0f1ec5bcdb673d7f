"""How a model is run on this machine: from its file, the settings, the wishes and the cores to an engine's spec, and to
the smaller ways of running it that a bill tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from modelops.api.errors import InvalidRequest, NotFound
from modelops.engines.base import CacheType, EngineSpec, Speculation, Task
from modelops.engines.llama_cpp import automatic_batch, find_executable
from modelops.serving import memory
from modelops.serving.catalog import Version
from modelops.serving.gguf import Header, read_header
from modelops.serving.model_files import check
from modelops.serving.placement import Layout
from modelops.serving.wishes import Tuning, Wish
from modelops.settings import EngineSettings

_TASKS: dict[str, Task] = {"llm": "generate", "embedding": "embed", "reranker": "rerank"}
_LEAST_CONTEXT = 512
_GUESSES: dict[Speculation, int] = {"ngram": 48, "draft": 16}  # tokens at once, at most
_OTHER_TOKENS = 128  # by so many two vocabularies may differ, for llama.cpp to take one model's guesses for another


@dataclass(frozen=True)
class Tuned:
    """A spec, the header of its file, and the memory that our formula gives it; `bare`: that without its adapters, and
    without what guesses ahead of it."""

    spec: EngineSpec
    header: Header
    need: memory.Need
    bare: memory.Need
    alternatives: tuple[tuple[tuple[str, memory.Need], ...], ...] = ()


def tune(
    version: Version,
    wish: Wish,
    settings: EngineSettings,
    cores: int,
    *,
    gpus: bool = False,
    adapters: Sequence[Version] = (),
    draft: Path | None = None,
) -> Tuned:
    """The spec for `version` with `adapters` beside it. Reads the files' headers; raises ModelOpsError where it cannot
    be served. `draft` is the file of the model that the wish wants to guess ahead."""
    if not version.file.exists():
        raise NotFound(f"the file of '{version.model_name}' is gone: '{version.shown_path}'")
    header = read_header(version.file)
    check(header, version.file)
    size = header.file_bytes
    context = wish.context_length or settings.context_length
    tuning = wish.tuning
    threads = tuning.threads or settings.threads or cores
    on_gpu = gpus and wish.offloaded != 0
    context = min(context, header.context_length or context)
    task = _TASKS[version.model_type]
    batch = tuning.batch_size or settings.batch_size or automatic_batch(size, threads, on_gpu=on_gpu)
    if task != "generate":
        batch = context  # a text to embed or to score is computed in one step
    cache_type = wish.cache_type or settings.cache_type
    guesser = _guesser(header, tuning, task, draft)
    _check_attention(tuning, cache_type)
    spec = EngineSpec(
        model_name=version.model_name,
        file=version.file,
        executable=find_executable(settings.executable),
        slots=wish.slots or settings.slots,
        context_length=context,
        threads=threads,
        batch_size=batch,
        cache_ram_mb=0 if adapters else settings.cache_ram_mb,  # as the engine has it
        gpu_layers=-1,
        load_timeout_s=settings.load_timeout_s + settings.load_timeout_s_per_gb * size / 2**30,
        stop_timeout_s=settings.stop_timeout_s,
        stall_timeout_s=settings.stall_timeout_s,
        cache_type=cache_type,
        context_checkpoints=settings.context_checkpoints if task == "generate" else 0,
        task=task,
        # A generative model pools nothing: asked to embed, it gives the mean of its tokens.
        pooling="mean" if task == "embed" and header.pooling <= 0 else "",
        flash_attention=tuning.flash_attention,
        speculation=tuning.speculation,
        draft=draft if guesser else None,
        adapters=tuple(adapter.file for adapter in adapters),
    )
    loras = [read_header(file) for file in spec.adapters]
    need = need_of(header, spec, on_gpu=on_gpu, adapters=loras, draft=guesser)
    bare = need_of(header, replace(spec, speculation="", draft=None), on_gpu=on_gpu)
    return Tuned(spec, header, need, bare, tuple(_smaller(header, spec, need, loras, guesser)))


def _guesser(header: Header, tuning: Tuning, task: Task, draft: Path | None) -> Header | None:
    """The header of the model that guesses ahead, where one does. Raises InvalidRequest where it could not."""
    if tuning.speculation and task != "generate":
        raise InvalidRequest("speculation is for models that generate; this one embeds or scores")
    if tuning.speculation != "draft":
        return None
    if draft is None:
        raise InvalidRequest("speculation by a draft model needs one: name a registered model in 'draft'")
    guesser = read_header(draft)
    check(guesser, draft)
    if abs(guesser.vocabulary - header.vocabulary) > _OTHER_TOKENS:
        raise InvalidRequest(
            f"the draft model knows {guesser.vocabulary} tokens and the model {header.vocabulary}: it has to be a "
            "smaller one of the same family"
        )
    return guesser


def _check_attention(tuning: Tuning, cache_type: CacheType) -> None:
    if tuning.flash_attention == "off" and cache_type != "f16":
        raise InvalidRequest(
            f"a cache stored as {cache_type} needs flash attention; leave that on, or store the cache as f16"
        )


def laid_out(spec: EngineSpec, layout: Layout, uuids: Sequence[str] = ()) -> EngineSpec:
    """`spec` with its units where `layout` puts them. Without GPUs that we know of, the engine decides by itself.

    `uuids` are those of the machine's GPUs, in their order: the engine sees no others than it was given a part of.
    Where one of them is not known, as on a simulated machine, it sees all.
    """
    spec = replace(spec, gpus=None, gpu_layers=-1, tensor_split=())
    if not layout.split:
        return spec
    spec = replace(spec, gpu_layers=layout.gpu_layers, tensor_split=layout.split if layout.gpu_layers else ())
    if len(uuids) != len(layout.split) or not all(uuids):
        return spec
    parts = [(uuid, count) for uuid, count in zip(uuids, layout.split, strict=True) if count]
    return replace(spec, gpus=tuple(uuid for uuid, _ in parts), tensor_split=tuple(count for _, count in parts))


def need_of(
    header: Header,
    spec: EngineSpec,
    *,
    on_gpu: bool = False,
    adapters: Sequence[Header] = (),
    draft: Header | None = None,
) -> memory.Need:
    """What our formula gives `spec` with `adapters`, of which GPUs may take some, and with `draft` to guess ahead."""
    need = memory.need(
        header,
        slots=spec.slots,
        context_length=spec.context_length,
        batch_size=spec.batch_size,
        cache_ram_mb=spec.cache_ram_mb,
        cache_type=spec.cache_type,
        checkpoints=spec.context_checkpoints,
        whole=spec.task != "generate",
        on_gpu=on_gpu,
        adapters=adapters,
        flash=spec.flash_attention != "off",
    )
    if spec.speculation:
        need = need.beside_it("guesses", memory.guesses(header, spec.slots, _GUESSES[spec.speculation]))
    if draft is None:
        return need
    guesser = memory.need(
        draft,
        slots=spec.slots,
        context_length=spec.context_length,
        batch_size=spec.batch_size,
        cache_ram_mb=0,
    )
    return need.beside_it("draft model", guesser.total - memory.LIBRARY_BYTES)


def _smaller(
    header: Header, spec: EngineSpec, need: memory.Need, adapters: Sequence[Header], draft: Header | None
) -> list[tuple[tuple[str, memory.Need], ...]]:
    """Smaller ways to run the same file, each by one setting that the load's caller can give, and by all of them."""
    contexts, flash = _halves(spec.context_length, _LEAST_CONTEXT), spec.flash_attention != "off"
    groups: list[list[tuple[str, EngineSpec]]] = [
        [(f"context_length {context}", replace(spec, context_length=context)) for context in contexts],
        [(f"slots {slots}", replace(spec, slots=slots)) for slots in _halves(spec.slots, 1)],
        [("cache_type q8_0", replace(spec, cache_type="q8_0"))] if spec.cache_type == "f16" and flash else [],
        [
            (
                f"context_length {context}, slots 1 and cache_type q8_0",
                replace(spec, context_length=context, slots=1, cache_type="q8_0"),
            )
            for context in [*contexts, min(spec.context_length, _LEAST_CONTEXT)]
            if flash  # or the cache cannot be stored so
        ],
    ]
    on_gpu = need.driver > 0
    found = [
        [(name, need_of(header, way, on_gpu=on_gpu, adapters=adapters, draft=draft)) for name, way in group]
        for group in groups
    ]
    return [tuple((name, less) for name, less in group if less.total < need.total) for group in found]


def _halves(value: int, least: int) -> list[int]:
    found = []
    while (value := value // 2) >= least:
        found.append(value)
    return found
