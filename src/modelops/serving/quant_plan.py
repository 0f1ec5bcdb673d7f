"""What the quantised copy of a model holds: which tensor becomes what, and every byte of the file that is no weight.

Pure: from the tables of the source's parts to a plan; no weight is read, nothing is written. The choice is llama.cpp's
own, as its program llama-quantize makes it (src/llama-quant.cpp), so that a copy is what its users expect.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from modelops.api.errors import InvalidRequest
from modelops.serving.gguf_reader import BLOCKS, VERSIONS, Table, Tensor, entry, start

QuantType = Literal["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]
#: What weights can be written as; of the floats each is as long as before, or longer, and may be read faster.
WeightType = QuantType | Literal["F16", "BF16"]

#: Type → (ggml's number of it, llama.cpp's number of a file that mostly holds it).
_TYPES: dict[WeightType, tuple[int, int]] = {
    "Q8_0": (8, 7),
    "Q5_1": (7, 9),
    "Q5_0": (6, 8),
    "Q4_1": (3, 3),
    "Q4_0": (2, 2),
    "F16": (1, 1),
    "BF16": (30, 32),
}
F32, F16, BF16 = 0, 1, 30
_FLOATS = (F32, F16, BF16)
#: Types of blocks that can be read again, which is all that llama-quantize writes.
_BLOCKS_READ = (2, 3, 6, 7, 8, *range(10, 15), *range(16, 24), 29, 34, 35, 39)
_NUMBERS = (*_FLOATS, 24, 25, 26, 27, 28)  # and integers, and doubles: whatever holds them is not quantised by them
_QUANTISATION_VERSION = 2  # of the blocks of all these types, since 2023
_DROPPED = ("split.no", "split.count", "split.tensors.count")

# Weights that llama-quantize leaves as they are: small, or harmed by it more than the bytes are worth.
_KEPT = re.compile(
    r"""_norm\.weight | ffn_gate_inp\.weight | ffn_gate_tid2eid\.weight  # norms, and who gets which expert
    | altup | laurel | per_layer_model_proj                              # Gemma's small matrices
    | ^position_embd\.weight | ^token_types\.weight | attn_rel_b\.weight # positions
    | ssm_conv1d | shortconv\.conv\.weight                               # short convolutions
    | indexer\.[kq]_proj\.weight                                         # MiniMax
    | time_mix_ (first | [wvag][0-2] | decay_w[12] | lerp_fused) \.weight # RWKV
    | \.position_embd | sam\.(pos_embd|neck\.|net_) | \.rel_pos | \.patch_embd | \.patch_merger | a\.rvq\.codebook
    | mm\.a\.code_embd""",
    re.VERBOSE,
)
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_KEYS_AND_VALUES = re.compile(r"attn_(v|k|qkv|kv_b)\.weight")

#: Bounds of the child's memory, whatever the size of the weights: for itself and a few blocks, for what it knows of
#: each tensor, and for each byte of metadata.
_CHILD_BYTES = 64 << 20
_CHILD_BYTES_PER_TENSOR = 4096
_CHILD_BYTES_PER_BYTE = 2


@dataclass(frozen=True)
class Part:
    """A file of the source, which is one or several; `changed_ns` is when it was last changed."""

    file: Path
    table: Table
    changed_ns: int


@dataclass(frozen=True)
class Step:
    """One tensor's way from the part that holds it into the copy: as it is, or turned into the ggml type `kind`."""

    part: int
    tensor: Tensor
    kind: int
    nbytes: int


@dataclass(frozen=True)
class Plan:
    """A quantised copy before it is made.

    `header` is what comes before the weights: bytes of its own, and ranges of bytes of the first part. `quantised` says
    that the source is quantised already: there is nothing to do, it is served as it is, unless its weights are to be
    written `again`.
    """

    kind: WeightType
    parts: tuple[Part, ...]
    header: tuple[bytes | range, ...]
    steps: tuple[Step, ...]
    alignment: int
    quantised: bool
    again: bool = False

    @property
    def needless(self) -> bool:
        """Whether there is nothing to do: the source is served as it is."""
        if self.again:
            return all(step.kind == step.tensor.kind for step in self.steps)
        return self.quantised

    @property
    def name(self) -> str:
        """The source's file, for messages."""
        return self.parts[0].file.name

    @property
    def target_bytes(self) -> int:
        """Exactly the size of the copy."""
        return sum(map(len, self.header)) + sum(step.nbytes + self.padding(step) for step in self.steps)

    @property
    def memory_bytes(self) -> int:
        """At most what the child takes of memory while it works; files that it reads and writes are not counted."""
        metadata = sum(map(len, self.header))
        return _CHILD_BYTES + _CHILD_BYTES_PER_TENSOR * len(self.steps) + _CHILD_BYTES_PER_BYTE * metadata

    def padding(self, step: Step) -> int:
        """Zero bytes behind the step's tensor."""
        return padded(step.nbytes, self.alignment) - step.nbytes


def parse(text: str) -> QuantType:
    """The type of quantised weights named `text`, in either case. Raises InvalidRequest for one that cannot be written,
    and says why."""
    for kind in get_args(QuantType):
        if kind == text.upper():
            return cast("QuantType", kind)
    known = ", ".join(get_args(QuantType))
    if re.fullmatch(r"I?Q\d_(K(_[SML])?|\w+)|TQ\d_0|MXFP4|NVFP4", text.upper()):
        raise InvalidRequest(
            f"the coordinator's quantiser does not write {text.upper()}; it writes {known}. Make the file with "
            "llama-quantize, and load that"
        )
    raise InvalidRequest(f"'{text[:40]}' is no type of quantised weights; the types are {known}")


def plan(parts: Sequence[Part], kind: WeightType, *, again: bool = False) -> Plan:
    """How the model in `parts` becomes one file of weights of the type `kind`; with `again` also those that are
    quantised already. Raises InvalidRequest."""
    first = parts[0]
    tensors = [(index, tensor) for index, part in enumerate(parts) for tensor in part.table.tensors]
    names = [tensor.name for _, tensor in tensors]
    if not tensors:
        raise InvalidRequest(f"'{first.file.name}' is no usable GGUF file: it holds no weights")
    if len(set(names)) < len(names) or any("\ufffd" in name for name in names):
        raise InvalidRequest(f"'{first.file.name}' is no usable GGUF file: its tensors' names are not unique text")
    values = first.table.values
    experts = values.get(f"{values.get('general.architecture')}.expert_count", 0)
    tied = "output.weight" not in names
    steps = tuple(
        Step(index, tensor, chosen, math.prod(tensor.shape) // BLOCKS[chosen][0] * BLOCKS[chosen][1])
        for index, tensor in tensors
        for chosen in [_chosen(tensor, kind, tied=tied, eight_experts=experts == 8, again=again)]
    )
    alignment = first.table.alignment
    return Plan(
        kind=kind,
        parts=tuple(parts),
        header=header(first, steps, _TYPES[kind][1], alignment),
        steps=steps,
        alignment=alignment,
        quantised=any(tensor.kind not in _NUMBERS for _, tensor in tensors),
        again=again,
    )


def _chosen(tensor: Tensor, kind: WeightType, *, tied: bool, eight_experts: bool, again: bool) -> int:
    """The ggml type of `tensor` in the copy."""
    name = tensor.name
    matrix = any(length > 1 for length in tensor.shape[1:])
    readable = (*_FLOATS, *_BLOCKS_READ) if again else _FLOATS
    if tensor.kind not in readable or not matrix or not name.endswith("weight") or _KEPT.search(name):
        return tensor.kind
    wanted = _TYPES[kind][0]
    if tensor.shape[0] % BLOCKS[wanted][0]:
        return F16 if tensor.kind == F32 else tensor.kind
    # The output decides most of a word: llama-quantize gives it more bits, Q6_K, and where that does not fit Q8_0.
    output = name == "output.weight" or (tied and name in _EMBEDDINGS)
    shorter = wanted not in _FLOATS
    if output or (shorter and eight_experts and _KEYS_AND_VALUES.search(name)):
        wanted = _TYPES["Q8_0"][0] if shorter else wanted
        if tensor.kind not in _FLOATS and _bits(tensor.kind) <= _bits(wanted):
            return tensor.kind  # more bits would bring back nothing that is lost
    return wanted


def _bits(kind: int) -> float:
    values, width = BLOCKS[kind]
    return 8 * width / values


def header(first: Part, steps: Sequence[Step], file_type: int, alignment: int) -> tuple[bytes | range, ...]:
    """Metadata as in `first`, record by record, but for what says how the weights are stored; then the tensors."""
    ours = {"general.file_type": file_type, "general.quantization_version": _QUANTISATION_VERSION}
    records: list[bytes | range] = []
    for each in first.table.entries:
        if each.key in ours:
            records.append(entry(each.key, ours.pop(each.key)))
        elif each.key not in _DROPPED:
            records.append(each.record)
    records += [entry(key, value) for key, value in ours.items()]
    infos = bytearray()
    offset = 0
    for step in steps:
        name, shape = step.tensor.name.encode(), step.tensor.shape
        infos += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", step.kind, offset)
        offset += padded(step.nbytes, alignment)
    head = start(VERSIONS[-1], len(steps), len(records))
    written = len(head) + sum(map(len, records)) + len(infos)
    return (head, *records, bytes(infos), bytes(padded(written, alignment) - written))


def padded(nbytes: int, alignment: int) -> int:
    """The bytes that so many take in a file."""
    return -(-nbytes // alignment) * alignment
