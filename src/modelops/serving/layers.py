"""What each layer of a model remembers of a text, as llama.cpp lays it out. Pure: metadata in, sizes out.

Which layers look back through a window, share a cache or keep a state is known per architecture only, so these tables
follow llama.cpp: the window patterns and head counts `src/models/<architecture>.cpp`, who has a cache at all
`llama_model::create_memory` in `src/llama-model.cpp`, the size of a state `n_embd_r` and `n_embd_s` in
`src/llama-hparams.cpp`. An architecture that is not named here is taken for plain attention, which needs the most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Reads a number of the architecture's metadata, or the default; for some keys a file holds one for each layer.
Number = Callable[[str, int], int]
Numbers = Callable[[str, int], Sequence[int]]

_F32 = 4

#: Encoders: they read a text in one step and remember nothing.
WITHOUT_CACHE = frozenset(
    [
        "bert",
        "jina-bert-v2",
        "jina-bert-v3",
        "nomic-bert",
        "nomic-bert-moe",
        "neo-bert",
        "eurobert",
        "modern-bert",
        "gemma-embedding",
        "gemma-embedding2",
        "dream",
        "llada",
        "llada-moe",
        "rnd1",
        "clef",
        "wavtokenizer-dec",
    ]
)
_RECURRENT = frozenset(["mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"])
#: Layers without key/value heads have a state instead.
_STATE_WITHOUT_HEADS = frozenset(
    [
        "jamba",
        "plamo2",
        "granitehybrid",
        "lfm2",
        "lfm2moe",
        "kimi-linear",
        "bailingmoe3",
        "nemotron_h",
        "nemotron_h_moe",
    ]
)
#: The state is the last few tokens and nothing that was accumulated.
SHORT_CONVOLUTION = frozenset({"lfm2", "lfm2moe"})
#: All but every n-th layer has a state; n is in the file.
_STATE_BETWEEN = frozenset(["qwen3next", "qwen35", "qwen35moe", "minimax-01"])
#: Layers have both a state and a cache.
_STATE_AND_CACHE = frozenset({"falcon-h1"})

#: Of so many layers all but one look back through a window only.
_WINDOW_PERIOD = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "cohere2": 4,
    "cohere2moe": 4,
    "llama4": 4,
    "gpt-oss": 2,
    "exaone4": 4,
    "exaone-moe": 4,
    "olmo2": 4,
    "afmoe": 4,
    "smallthinker": 4,
    "plamo3": 8,
    "mellum": 4,
    "muse-glimmer": 4,
    "laguna": 4,
}
#: The one without a window is the first of each period, not the last.
_FIRST_SEES_ALL = frozenset({"cohere2moe", "smallthinker", "laguna"})
#: The file says for each layer whether it has a window.
_WINDOW_LISTED = frozenset(["gemma4", "step35", "mimo2", "granite_swa", "spark2_5", "maple"])
#: The window where the file names none, and of those that take no other.
_WINDOW = {"gemma2": 4096, "exaone4": 4096, "exaone-moe": 128, "llama4": 8192}
_WINDOW_FIXED = {"llama4": 8192, "smallthinker": 4096}


@dataclass(frozen=True)
class Layer:
    """One repeating layer: `weights` in bytes; `keys` and `values`, how many numbers it keeps of each token;
    `window`, of how many tokens at most (0: all); `state`, bytes of a recurrent state for each slot.
    """

    weights: int
    keys: int
    values: int
    window: int = 0
    state: int = 0


def layers(architecture: str, weights: Sequence[int], number: Number, numbers: Numbers) -> tuple[Layer, ...]:
    """Every repeating layer, given the bytes of each one's weights."""
    count = len(weights)
    heads = numbers("attention.head_count", 0)
    kv_heads = numbers("attention.head_count_kv", -1)
    head = number("embedding_length", 0) // heads[0] if count and heads[0] else 0
    key, value = number("attention.key_length", head), number("attention.value_length", head)
    windows = _windows(architecture, count, number, numbers)
    compressed = bool(number("attention.key_length_mla", 0) and number("attention.value_length_mla", 0))
    with_cache = _with_cache(architecture, count, number)
    found = []
    for index in range(count):
        state, cache = _kinds(architecture, index, kv_heads[index], number, numbers)
        size = heads[index] if kv_heads[index] < 0 else kv_heads[index]
        if not cache or index >= with_cache:
            size = 0
        window = windows[index]
        k = number("attention.key_length_swa", key) if window else key
        v = number("attention.value_length_swa", value) if window else value
        found.append(
            Layer(
                weights=weights[index],
                keys=size * k,
                values=0 if compressed else size * v,
                window=window,
                state=_state(architecture, heads[index], key, number) if state else 0,
            )
        )
    return tuple(found)


def _with_cache(architecture: str, count: int, number: Number) -> int:
    """How many of the layers, from the first, keep a cache of their own."""
    if architecture in WITHOUT_CACHE:
        return 0
    if architecture == "gemma3n":
        return min(count, 20)
    return count - number("attention.shared_kv_layers", 0) - number("nextn_predict_layers", 0)


def _windows(architecture: str, count: int, number: Number, numbers: Numbers) -> Sequence[int]:
    window = number("attention.sliding_window", _WINDOW.get(architecture, 0))
    if architecture == "exaone4" and count != 64:  # only the largest of them has one
        window = 0
    if window:
        window = _WINDOW_FIXED.get(architecture, window)
        if architecture in SHORT_CONVOLUTION:
            return [window] * count
        listed = numbers("attention.sliding_window_pattern", 0)
        if architecture in _WINDOW_LISTED or (architecture in _WINDOW_PERIOD and len(set(listed)) > 1):
            return [window if windowed else 0 for windowed in listed]
        if architecture in _WINDOW_PERIOD:
            period = number("attention.sliding_window_pattern", 0) or _WINDOW_PERIOD[architecture]
            full = 0 if architecture in _FIRST_SEES_ALL else period - 1
            return [0 if index % period == full else window for index in range(count)]
    return [0] * count


def _kinds(architecture: str, index: int, kv_heads: int, number: Number, numbers: Numbers) -> tuple[bool, bool]:
    """Whether the layer has a recurrent state, and whether it has a cache of keys and values."""
    if architecture in _RECURRENT:
        return True, False
    if architecture in _STATE_AND_CACHE:
        return True, True
    if architecture in _STATE_WITHOUT_HEADS:
        feeds = architecture.startswith("nemotron_h") and numbers("feed_forward_length", 0)[index] > 0
        return kv_heads == 0 and not feeds, kv_heads != 0
    if architecture in _STATE_BETWEEN:
        listed = numbers("attention.recurrent_layers", 0)
        recurrent = bool(listed[index]) if any(listed) else (index + 1) % number("full_attention_interval", 4) != 0
        return recurrent, not recurrent
    return False, True


def _state(architecture: str, heads: int, key: int, number: Number) -> int:
    """Bytes of one layer's state for one slot: what it convolves, and what it has accumulated."""
    width = number("embedding_length", 0)
    convolution, inner = number("ssm.conv_kernel", 0), number("ssm.inner_size", 0)
    memory = number("ssm.state_size", 0)
    if size := number("wkv.head_size", 0):
        return (number("token_shift_count", 2) * width + width * size) * _F32
    if length := number("shortconv.l_cache", 0):
        return width * (length - 1) * _F32
    if size := number("kda.head_dim", 0):
        return (3 * (convolution - 1 if convolution else 3) * heads * size + size * size * heads) * _F32
    if architecture == "minimax-01":
        return key * key * heads * _F32
    rows = max(convolution - 1, 0) * (inner + 2 * number("ssm.group_count", 0) * memory)
    return (rows + memory * inner) * _F32
