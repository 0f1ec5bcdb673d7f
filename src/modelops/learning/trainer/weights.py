"""Whole models, written anew: the base as plain numbers, or with an adapter added to it.

What is written is F16 or Q8_0, whatever the base is: a LoRA changes a weight by a few hundredths of a step of a type of
four bits, and would be rounded away. Metadata stays as it is, record by record; so does what is no matrix. Memory does
not grow with the model: some rows of a tensor are read, unpacked, changed and written at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from modelops.learning import files
from modelops.learning.trainer.adapter import Adapter, Pair
from modelops.learning.trainer.report import Failed
from modelops.serving import quant_plan
from modelops.serving.gguf_reader import BLOCKS, BadGguf, Table, Tensor, read_table
from modelops.serving.quant_plan import Part, Step

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Kind = Literal["F16", "Q8_0"]

#: Type → (ggml's number of it, values in a block, llama.cpp's number of a file that mostly holds it).
_KINDS: dict[Kind, tuple[int, int, int]] = {"F16": (1, 1, 1), "Q8_0": (8, 32, 7)}
_WEIGHTS_AT_ONCE = 1 << 21
_BYTES_AT_ONCE = 1 << 20
#: Weights below this are 0 to either type, but the inverse of a block's scale may be too large.
_NOTHING = 2.0**-64


def table(file: Path) -> Table:
    """The table of a base's file. Raises Failed where it is not whole: what reads it further does not look."""
    try:
        with file.open("rb") as stream:
            return read_table(stream, file.stat().st_size)
    except BadGguf as error:
        raise Failed("invalid_request", f"'{file.name}' is no usable GGUF file: {error}") from error


def rewritten_bytes(base: Table, kind: Kind) -> int:
    """Exactly the size of what `rewrite` writes."""
    steps = _steps(base, kind)
    header = quant_plan.header(_part(base, Path()), steps, _KINDS[kind][2], base.alignment)
    return sum(map(len, header)) + sum(quant_plan.padded(step.nbytes, base.alignment) for step in steps)


def rewrite(
    source: Path, target: Path, kind: Kind, progress: Callable[[int, int], None], adapter: Adapter | None = None
) -> None:
    """The model `source` with matrices of `kind` as `target`, which is there whole, or not at all; with `adapter` added
    to it where one is given. `progress` gets bytes done, and of all.

    Raises Failed, and OSError.
    """
    base = table(source)
    steps = _steps(base, kind)
    total = rewritten_bytes(base, kind)
    pairs: Mapping[str, Pair] = adapter.pairs if adapter else {}
    scale = np.float32(adapter.scale if adapter else 0)
    with files.whole(target) as partial, source.open("rb") as stream, partial.open("wb") as out:
        for record in quant_plan.header(_part(base, source), steps, _KINDS[kind][2], base.alignment):
            out.writelines([record] if isinstance(record, bytes) else _copied(stream, record.start, len(record)))
        for step in steps:
            pair = pairs.get(step.tensor.name)
            if step.kind == step.tensor.kind and not pair:
                out.writelines(_copied(stream, step.tensor.start, step.tensor.nbytes))
            else:
                out.writelines(_converted(stream, step, pair, scale))
            out.write(bytes(quant_plan.padded(step.nbytes, base.alignment) - step.nbytes))
            progress(out.tell(), total)


def _part(base: Table, source: Path) -> Part:
    return Part(source, base, 0)


def _steps(base: Table, kind: Kind) -> tuple[Step, ...]:
    steps = []
    for tensor in base.tensors:
        chosen = _chosen(tensor, kind)
        values, width = BLOCKS[chosen]
        steps.append(Step(0, tensor, chosen, math.prod(tensor.shape) // values * width))
    return tuple(steps)


def _chosen(tensor: Tensor, kind: Kind) -> int:
    """The ggml type of `tensor` in the copy. What is no matrix is small, and the engine wants it precise."""
    matrix = any(length > 1 for length in tensor.shape[1:])
    if not matrix:
        return tensor.kind if BLOCKS[tensor.kind][0] == 1 else quant_plan.F32
    number, block, _ = _KINDS[kind]
    return quant_plan.F16 if tensor.shape[0] % block else number


def _copied(stream: BinaryIO, start: int, count: int) -> Iterator[bytes]:
    stream.seek(start)
    while count:
        data = stream.read(min(count, _BYTES_AT_ONCE))
        if not data:
            raise Failed("invalid_request", "the model's file was cut short while it was read")
        count -= len(data)
        yield data


def _converted(stream: BinaryIO, step: Step, pair: Pair | None, scale: np.float32) -> Iterator[bytes]:
    """A tensor's weights as the step's type, with what the adapter adds to it."""
    import gguf
    from gguf import GGMLQuantizationType

    tensor = step.tensor
    length, rows = tensor.shape[0], math.prod(tensor.shape[1:])
    values, width = BLOCKS[tensor.kind]
    row_bytes = length // values * width
    at_once = max(1, _WEIGHTS_AT_ONCE // length)
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        data = b"".join(_copied(stream, tensor.start + first * row_bytes, count * row_bytes))
        packed = np.frombuffer(data, np.uint8).reshape(count, row_bytes)
        weights = gguf.dequantize(packed, GGMLQuantizationType(tensor.kind))
        if pair:
            weights = weights + (scale * pair.b[first : first + count]) @ pair.a
        yield _packed(weights, tensor.name, GGMLQuantizationType(step.kind))


def _packed(weights: npt.NDArray[np.float32], name: str, kind: GGMLQuantizationType) -> bytes:
    import gguf

    if not np.isfinite(weights).all():
        raise Failed("unsupported", f"the model's tensor '{name}' holds weights that are no numbers")
    weights = np.where(np.abs(weights) < _NOTHING, np.float32(0), weights)
    try:
        with np.errstate(over="raise", invalid="raise"):
            return bytes(gguf.quantize(weights, kind).tobytes())
    except FloatingPointError:
        raise Failed("unsupported", f"the model's tensor '{name}' holds weights that are too large for F16") from None
