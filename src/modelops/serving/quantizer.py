"""Writes the quantised copy of a model: `python -m modelops.serving.quantizer SOURCE TARGET TYPE [again]`.

The child's side of `quantising`, which knows when to run it and what becomes of the file. Lines `progress DONE TOTAL`
on standard output count the bytes of the copy that are on the disk. On failure the last line is `error: …`, without
any path, and the exit status says whose fault it is (BAD_SOURCE, NO_SPACE).

The same source gives the same bytes on any machine: a block of 32 weights is rounded by itself, in single precision.
Memory does not grow with the model: weights are read, quantised and written a few at a time. They are read, not mapped:
a file that is cut short meanwhile is then an error, and not the end of the process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from modelops.api.errors import InvalidRequest
from modelops.serving import gguf, quant_plan
from modelops.serving.gguf_reader import BLOCKS, BadGguf, read_table
from modelops.serving.quant_plan import Part, Plan, Step, WeightType

BAD_SOURCE, NO_SPACE = os.EX_DATAERR, os.EX_CANTCREAT

#: Answers that are being generated go first, but the load that waits for the copy still gets on.
_NICE = 10
_WEIGHTS_AT_ONCE = 1 << 18
_BYTES_AT_ONCE = 1 << 20
#: Bytes of the copy between two lines of progress. They are on the disk first, so that the end is no long wait for it.
_PROGRESS_EVERY = 16 << 20
#: Weights below this are 0 to every type, whose scales are half-precision numbers, but their inverse may be too large.
_NOTHING = 2.0**-64


class BadSource(Exception):
    """What is wrong with the source's weights, in words that do not name it."""


def main() -> None:
    """Write the copy, or say why not."""
    source, target, kind, *again = sys.argv[1:]
    os.nice(_NICE)
    try:
        plan = read_plan(Path(source), cast("WeightType", kind), again=bool(again))
        write(plan, Path(target), lambda done: print(f"progress {done} {plan.target_bytes}", flush=True))
    except InvalidRequest as error:
        _fail(BAD_SOURCE, error.message)
    except BadSource as error:
        _fail(BAD_SOURCE, f"'{Path(source).name}' cannot be quantised: {error}")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        _fail(NO_SPACE if full else os.EX_IOERR, error.strerror or "a file could not be read or written")


def _fail(status: int, message: str) -> None:
    print(f"error: {message}", flush=True)
    sys.exit(status)


def read_plan(source: Path, kind: WeightType, *, again: bool = False) -> Plan:
    """What the copy of `source` will be: reads its table, and where it is split those of all parts. With `again` its
    weights are written once more where they are quantised already.

    Raises InvalidRequest where one of them is no whole GGUF, or they do not belong together.
    """
    parts = [_read_part(file) for file in gguf.parts(source)]
    first = parts[0].table.values
    count, tensors = first.get("split.count", 1), first.get("split.tensors.count")
    if count not in (0, len(parts)) or tensors not in (None, sum(len(part.table.tensors) for part in parts)):
        raise InvalidRequest(
            f"'{source.name}' is a part of a split model, and the other parts are not beside it, or of another model; "
            "fetch them all again, and keep their names"
        )
    return quant_plan.plan(parts, kind, again=again)


def _read_part(file: Path) -> Part:
    try:
        with file.open("rb") as stream:
            stat = os.fstat(stream.fileno())
            return Part(file, read_table(stream, stat.st_size), stat.st_mtime_ns)
    except BadGguf as error:
        raise InvalidRequest(f"'{file.name}' is no usable GGUF file: {error}") from None
    except OSError as error:
        raise InvalidRequest(f"'{file.name}' cannot be read: {error.strerror}") from None


def write(plan: Plan, target: Path, progress: Callable[[int], None]) -> None:
    """Write the planned copy to `target`, down to the disk; `progress` gets the bytes that are there.

    Raises BadSource, and OSError.
    """
    with contextlib.ExitStack() as stack:
        sources = [stack.enter_context(part.file.open("rb")) for part in plan.parts]
        out = stack.enter_context(target.open("wb"))
        progress(0)
        on_disk = 0
        for piece in _pieces(plan, sources):
            out.write(piece)
            if out.tell() - on_disk >= _PROGRESS_EVERY:
                on_disk = _sync(out)
                progress(on_disk)
        progress(_sync(out))


def write_skeleton(plan: Plan, target: Path) -> None:
    """Write the copy's header to `target`, and a hole in place of its weights."""
    with plan.parts[0].file.open("rb") as source, target.open("wb") as out:
        out.writelines(_header(plan, source))
        out.truncate(plan.target_bytes)


def _sync(out: BinaryIO) -> int:
    out.flush()
    os.fsync(out.fileno())
    return out.tell()


def _pieces(plan: Plan, sources: Sequence[BinaryIO]) -> Iterator[bytes]:
    """The copy, piece by piece."""
    yield from _header(plan, sources[0])
    for step in plan.steps:
        values, width = BLOCKS[step.tensor.kind]
        for data in _read(
            sources[step.part], step.tensor.start, step.tensor.nbytes, _WEIGHTS_AT_ONCE // values * width
        ):
            yield data if step.kind == step.tensor.kind else _converted(data, step)
        yield bytes(plan.padding(step))


def _header(plan: Plan, source: BinaryIO) -> Iterator[bytes]:
    """All that comes before the weights; `source` is the first part."""
    for part in plan.header:
        if isinstance(part, bytes):
            yield part
        else:
            yield from _read(source, part.start, len(part), _BYTES_AT_ONCE)


def _read(stream: BinaryIO, start: int, count: int, at_once: int) -> Iterator[bytes]:
    stream.seek(start)
    while count:
        data = stream.read(min(count, at_once))
        if len(data) < min(count, at_once):
            raise BadSource("it was cut short while it was read")
        count -= len(data)
        yield data


def _converted(data: bytes, step: Step) -> bytes:
    """Whole blocks of a tensor, as the step's type."""
    import numpy as np
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    name = step.tensor.name
    weights = dequantize(np.frombuffer(data, np.uint8), GGMLQuantizationType(step.tensor.kind))
    if not np.isfinite(weights).all():
        raise BadSource(f"its tensor '{name}' holds weights that are no numbers")
    weights = np.where(np.abs(weights) < _NOTHING, np.float32(0), weights)
    try:
        with np.errstate(over="raise", invalid="raise"):
            return quantize(weights.reshape(1, -1), GGMLQuantizationType(step.kind)).tobytes()
    except FloatingPointError:
        raise BadSource(f"its tensor '{name}' holds weights that are too large") from None


if __name__ == "__main__":
    main()
