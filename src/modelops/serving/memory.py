"""How much memory a model needs, worked out from its file's header. Pure: shapes and settings in, bytes out.

The formulas are llama.cpp's own sums, each named with the file that it was read from. They explain the engine's own
projection (`engines/probe.py`), check it, and answer where no engine can be asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from modelops.serving.gguf import Header
from modelops.serving.layers import SHORT_CONVOLUTION, WITHOUT_CACHE, Layer

MB = 2**20
_F16 = 2
_F32 = 4
#: Bytes of a number in the cache: 16 bits, or blocks of 32 with a scale (`ggml/src/ggml-common.h`).
_CACHE_TYPES: Mapping[str, tuple[int, int]] = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}
_CELLS = 256  # both the context and a window's cache are padded to so many tokens
_HEAD = 64  # numbers of a head of attention, at least
_LARGEST_STEP = 512  # tokens of a prompt that go through the layers at once, whatever the batch
#: Pages of an engine's program and libraries, which engines share, and what it takes with the least of models; for each
#: token and each merge of the vocabulary what the tokenizer keeps. Measured with vocabularies of 512 to 262,144 tokens.
LIBRARY_BYTES = 27 * MB
_PROCESS_BYTES = 19 * MB
_TOKEN_BYTES = 210
_MERGE_BYTES = 280
_SLOT_BYTES = MB // 4
#: What NVIDIA's driver and libraries keep for a process: on each GPU that it uses, and of RAM the process's own and
#: the pages of their files. Measured on an H100 with CUDA 13 for ten architectures (610 to 715 MB of the GPU); a load
#: that is measured says what they are here.
DRIVER_BYTES = 616 * MB
_MORE_DRIVER_BYTES = 90 * MB  # with experts, or recurrent layers that do more than to convolve a few tokens
_DRIVER_RAM_BYTES = 180 * MB
DRIVER_LIBRARY_BYTES = 170 * MB
#: What an engine lays out before it loads, and so projects; and what fills only while it serves.
_PROJECTED = frozenset({"weights", "kv cache", "kv cache (windows)", "recurrent state", "compute"})
_LATER = frozenset({"prompt cache", "context checkpoints"})


@dataclass(frozen=True)
class Need:
    """The memory of one engine, in bytes.

    `layers` is each repeating layer with its cache or state, in order; `output` the output head and the last norm,
    which follow the last layer onto a GPU. Where the head is the embeddings once more, `tied` is the copy that a GPU
    would hold; RAM holds none. `host` stays in RAM whatever the GPU takes. `compute` is needed on every device that
    has layers; beside it each GPU holds `driver`: what its driver keeps there for a process, and where layers stay in
    RAM `visiting`: a copy of one layer's cache, to compute a prompt for it. `parts` names what is in RAM when all of it
    is, for an explanation; their sum is `total`.
    """

    layers: tuple[int, ...]
    output: int
    tied: int
    host: int
    compute: int
    parts: Mapping[str, int]
    driver: int = 0
    visiting: int = 0

    @property
    def units(self) -> tuple[int, ...]:
        """What a GPU can take, in order: the layers, then the output."""
        return (*self.layers, self.output + self.tied)

    @property
    def per_gpu(self) -> int:
        """What each GPU that takes units holds beside them."""
        return self.compute + self.driver

    @property
    def unmovable(self) -> int:
        """What stays in RAM when GPUs take all units."""
        return self.host + self.compute

    @property
    def total(self) -> int:
        """Everything in RAM."""
        return sum(self.layers) + self.output + self.host + self.compute

    @property
    def beside(self) -> int:
        """What an engine takes beside all that it projects."""
        return sum(size for name, size in self.parts.items() if name not in _PROJECTED)

    @property
    def later(self) -> int:
        """What it takes only after it has served for a while."""
        return sum(size for name, size in self.parts.items() if name in _LATER)

    def corrected(self, extra: int, driver: int | None = None) -> Need:
        """The same need with `extra` bytes more (or less) of RAM, as measured, and `driver` on each GPU, if given."""
        found = self if driver is None else replace(self, driver=driver)
        return replace(found, host=self.host + extra, parts={**self.parts, "correction": extra}) if extra else found

    def beside_it(self, name: str, size: int) -> Need:
        """The same need with `size` bytes of RAM more for what is not the model's own."""
        return replace(self, host=self.host + size, parts={**self.parts, name: size})


def need(
    header: Header,
    *,
    slots: int,
    context_length: int,
    batch_size: int,
    cache_ram_mb: int,
    cache_type: str = "f16",
    checkpoints: int = 0,
    whole: bool = False,
    on_gpu: bool = False,
    adapters: Sequence[Header] = (),
    flash: bool = True,
) -> Need:
    """What an engine takes with `slots` contexts of `context_length` tokens each, and with `adapters` loaded beside.

    `checkpoints` is how many copies of its windows and states the server may keep for each slot
    (`--ctx-checkpoints`), to go back to; of a state it has one from the first answer on (`create_checkpoint` in
    `tools/server/server-context.cpp`). With `whole` a step is a batch, of which every token gives something, as in
    texts that are embedded or scored. `on_gpu`: GPUs may take some of it, and then their driver takes memory too.
    Without `flash` attention the scores of a step are kept.
    """
    context = _padded(context_length)
    step = min(batch_size, batch_size if whole else _LARGEST_STEP, context * slots)
    loras = sum(adapter.weight_bytes for adapter in adapters)
    caches = [_cache(layer, slots, context, step, cache_type) for layer in header.blocks]
    states = [layer.state * slots for layer in header.blocks]
    windowed = sum(size for layer, size in zip(header.blocks, caches, strict=True) if layer.window)
    first_copies = sum(states) if checkpoints else 0
    copied = header.input_bytes if header.copied_input else 0
    compute = _compute(header, context, step, step if whole else slots)
    if not flash:
        compute += _scores(header, context, step)
    parts = {
        "weights": header.weight_bytes + copied,
        "kv cache": sum(caches) - windowed,
        "kv cache (windows)": windowed,
        "recurrent state": sum(states),
        "compute": compute,
        "outputs": _outputs(header.vocabulary, slots),
        "process": _process(header, slots),
        "driver": _DRIVER_RAM_BYTES + DRIVER_LIBRARY_BYTES if on_gpu else 0,
        "state copies": first_copies,
        "lora": loras,
        "context checkpoints": checkpoints * (windowed + sum(states)) - first_copies,
        "prompt cache": cache_ram_mb * MB,
    }
    # An adapter lies where the layers lie that it changes; it changes each about as much as any other.
    beside = loras // max(1, len(header.blocks))
    layers = [
        layer.weights + cache + state + beside
        for layer, cache, state in zip(header.blocks, caches, states, strict=True)
    ]
    return Need(
        layers=tuple(layers),
        output=header.output_bytes,
        tied=header.input_bytes if header.tied else 0,
        host=sum(parts.values()) - sum(layers) - header.output_bytes - compute,
        compute=compute,
        parts={name: size for name, size in parts.items() if size},
        driver=DRIVER_BYTES + more_driver(header) if on_gpu else 0,
        visiting=max(caches, default=0),
    )


def more_driver(header: Header) -> int:
    """What NVIDIA's libraries keep on a GPU for this model and not for others."""
    recurrent = header.state_length and header.architecture not in SHORT_CONVOLUTION
    return _MORE_DRIVER_BYTES if header.experts[1] or recurrent else 0


def _outputs(vocabulary: int, slots: int) -> int:
    """The logits of each slot (`llama_context::output_reserve`), the candidates that its sampler sorts
    (`llama_token_data` in `include/llama.h`), and a list of all tokens.
    """
    return vocabulary * (slots * (_F32 + 12) + _F32)


def guesses(header: Header, slots: int, most: int) -> int:
    """The logits of the `most` tokens that each slot checks at once, beside the one that it would have anyway."""
    return slots * most * header.vocabulary * _F32


def _process(header: Header, slots: int) -> int:
    tokenizer = header.vocabulary * _TOKEN_BYTES + header.merges * _MERGE_BYTES
    return LIBRARY_BYTES + _PROCESS_BYTES + tokenizer + slots * _SLOT_BYTES


def _padded(tokens: int) -> int:
    return -(-tokens // _CELLS) * _CELLS


def _cells(layer: Layer, context: int, step: int) -> int:
    """Tokens of one slot that a layer keeps (`src/llama-kv-cache-iswa.cpp`): the context, or a window and a step."""
    return min(context, _padded(min(context, layer.window + step))) if layer.window else context


def _cache(layer: Layer, slots: int, context: int, step: int, cache_type: str) -> int:
    """A key and a value for each token and head (`src/llama-kv-cache.cpp`), for each slot apart, as `--parallel`
    without `--kv-unified` has it.
    """
    block, width = _CACHE_TYPES[cache_type]
    return (layer.keys + layer.values) * _cells(layer, context, step) * slots * width // block


def _scores(header: Header, context: int, step: int) -> int:
    """A score for each head, token of a step, and token that it may see, and once more after they are weighed. Heads
    are as narrow as they are in most models."""
    return 2 * max(1, header.query_length // _HEAD) * step * context * _F32


def _compute(header: Header, context: int, step: int, outputs: int) -> int:
    """The largest set of intermediate results that live at once (`ggml/src/ggml-alloc.c` on the graphs of
    `src/llama-graph.cpp`), with flash attention, so that no scores are kept.

    For each token of a step: the mask, 16 bits for each token that it may see, once for layers with a window and once
    for those without; five rows as wide as the model; and whichever is most of three as wide as the feed-forward
    network, two as wide as the model (both for each expert used), two as wide as the queries and six as wide as a
    recurrent layer; or, where that is more, the logits of all `outputs` beside the mask. Encoders give none. Fitted to
    what the engine reserves for ten architectures.
    """
    experts = header.experts[1]
    shapes = {_cells(layer, context, step) for layer in header.blocks if layer.keys}
    mask = sum(shapes) * _F16 if shapes else (step * _F16 if header.architecture in WITHOUT_CACHE else 0)
    row = 5 * header.embedding_length + max(
        3 * header.feed_forward * max(experts, 1),
        2 * header.embedding_length * experts,
        2 * header.query_length,
        6 * header.state_length,
    )
    logits = 0 if header.architecture in WITHOUT_CACHE else outputs * header.vocabulary * _F32
    beside = step * (mask + 2 * header.embedding_length * _F32) if outputs == step else 0
    return max(step * (mask + row * _F32), logits + beside)
