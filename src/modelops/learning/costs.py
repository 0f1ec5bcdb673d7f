"""What a training takes: how its batches are cut so that they fit, and the memory, disk and time that come of it.

Pure: figures in, figures out. Memory and disk are upper bounds, which the measured runs of tests/learning/test_costs.py
keep to; time is rough, a matter of a factor of two.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelops.api.learning import DpoParameters, TrainParameters
from modelops.serving.gguf import Header

_F16, _F32 = 2, 4
#: Weights, their gradient, and the two moments that Adam keeps of it.
_TRAINED = 4 * _F32
#: A checkpoint holds the weights and the moments; while it is written it is in memory twice.
_CHECKPOINT = 3 * _F32
_CHECKPOINTS = 3
#: PyTorch, and what is built on it, before anything is loaded; and what reading each word of a vocabulary leaves.
_LIBRARIES_BYTES, _WORD_BYTES = 480 << 20, 1200
#: Where results are computed again, what is freed meanwhile lies in fragments that make up so many layers' results.
_FRAGMENTS = 16
#: What allocators lose between one step and the next.
_LOST = 1.2
#: Tokens that are worked on at once. More are no faster on a processor, and take more memory.
_TOKENS_AT_ONCE = {"cpu": 512, "cuda": 16384}
#: The logits of so many tokens are computed at once, of so many words; and in how many forms they are held meanwhile.
_TILE, _TILES = (4096, 32768), 5
#: Operations a second: of a core, with matrices as small as those of small models, and of a GPU.
_RATE = {"cpu": 60e9, "cuda": 30e12}
#: Seconds until the first step, without the model; and for each weight that is read and unpacked.
_BEGIN_S, _READ_S = 10.0, 8e-8
#: The part of all tokens that answers have: the logits of no others are computed.
_ANSWERED = 0.5


@dataclass(frozen=True)
class Cut:
    """How a batch is worked through: `rows` at once, `times` times; `recomputed` says that a layer's results are not
    kept for the way back but computed again.
    """

    rows: int
    times: int
    recomputed: bool


@dataclass(frozen=True)
class Cost:
    """What a training takes at most of memory and disk, and about how long."""

    memory_bytes: int
    disk_bytes: int
    seconds: float


def cut(batch: int, longest: int, device: str) -> Cut:
    """How batches of `batch` rows of at most `longest` tokens (both answers of a pair together) are worked through."""
    most = _TOKENS_AT_ONCE[device]
    rows = max(size for size in range(1, batch + 1) if batch % size == 0 and (size == 1 or size * longest <= most))
    return Cut(rows, batch // rows, recomputed=longest > most)


def cost(
    header: Header,
    parameters: TrainParameters,
    *,
    rows: int,
    longest: int,
    tokens: int,
    threads: int,
    device: str = "cpu",
) -> Cost:
    """The cost of training the model with `rows` rows, of `tokens` tokens together and `longest` in one of them."""
    pairs = isinstance(parameters, DpoParameters)
    sequence = longest * (2 if pairs else 1)
    how = cut(parameters.batch_size, sequence, device)
    embeddings = header.vocabulary * header.embedding_length
    weights = embeddings * (1 if header.tied else 2) + sum(_layers(header))
    trained = _trained(header, parameters)
    memory = (
        _LIBRARIES_BYTES
        + (header.vocabulary + header.merges) * _WORD_BYTES
        + header.file_bytes  # which is mapped
        + weights * _F32
        + trained * (_TRAINED + 2 * _CHECKPOINT)
        + int(_activations(header, parameters, how, sequence) * _LOST)
        + tokens * 2 * _F32
    )
    written = weights * (_F16 + _F16)  # the rewrite of the base, and the whole model where that is wanted
    disk = written + trained * (_CHECKPOINTS * _CHECKPOINT + 2 * _F32) + tokens * _F32
    seen = _seen(parameters, rows, tokens)
    # There, and back; back again through the LoRA; and what is computed twice.
    passes = (2 if how.recomputed else 1) + 1 + (1 if pairs else 0)
    work = 2 * seen * (passes * (sum(_layers(header)) + trained) + trained + 3 * _ANSWERED * embeddings)
    rate = _RATE[device] * (threads if device == "cpu" else 1)
    return Cost(memory, disk, _BEGIN_S + weights * _READ_S + work / rate)


def _seen(parameters: TrainParameters, rows: int, tokens: int) -> float:
    """Tokens that are trained on, those that are seen again counted again."""
    if parameters.steps:
        return parameters.steps * parameters.batch_size * tokens / rows
    return parameters.epochs * tokens


def _layers(header: Header) -> list[int]:
    """The weights of each layer."""
    width, experts = header.embedding_length, max(header.experts[0], 1)
    own = 2 * width * header.query_length + 3 * width * header.feed_forward * experts
    return [own + width * (layer.keys + layer.values) for layer in header.blocks]


def _trained(header: Header, parameters: TrainParameters) -> int:
    """The weights of the LoRA."""
    width, query, inner = header.embedding_length, header.query_length, header.feed_forward
    wanted = set(parameters.target_modules)
    sides = 0
    for layer in header.blocks:
        both = {
            "q_proj": width + query,
            "k_proj": width + layer.keys,
            "v_proj": width + layer.values,
            "o_proj": query + width,
            "gate_proj": width + inner,
            "up_proj": width + inner,
            "down_proj": inner + width,
        }
        sides += sum(size for name, size in both.items() if not wanted or name in wanted)
    return sides * parameters.rank


def _activations(header: Header, parameters: TrainParameters, how: Cut, sequence: int) -> int:
    """Bytes of what is kept on the way there for the way back, and of the logits."""
    at_once = how.rows * sequence
    width, query, inner = header.embedding_length, header.query_length, header.feed_forward
    used = max(header.experts[1], 1)
    each = [
        9 * width + 8 * query + 3 * (layer.keys + layer.values) + 5 * inner * used + 8 * parameters.rank
        for layer in header.blocks
    ]
    kept = len(each) * width + sum(each[:_FRAGMENTS]) if how.recomputed else sum(each)
    logits = min(at_once, _TILE[0]) * min(header.vocabulary, _TILE[1]) * _TILES
    return (at_once * kept + logits) * _F32
