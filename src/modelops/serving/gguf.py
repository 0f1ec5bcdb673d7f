"""Reads what a GGUF file says of itself: shapes, context, chat template, and whether the file is whole.

Only the header is read; no weight is. Every count and length in the file is distrusted: it is bounded before anything
is allocated for it. The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from modelops.api.errors import InvalidRequest

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 1 << 16
_MOST_TENSORS = 1 << 18
_LONGEST_STRING = 1 << 24
_MOST_STRINGS = 1 << 22

#: ggml type → (values in a block, bytes of a block), for every type that a file may hold.
_TYPES: dict[int, tuple[int, int]] = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    9: (32, 36),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    15: (256, 292),
    16: (256, 66),
    17: (256, 74),
    18: (256, 98),
    19: (256, 50),
    20: (32, 18),
    21: (256, 110),
    22: (256, 82),
    23: (256, 136),
    24: (1, 1),
    25: (1, 2),
    26: (1, 4),
    27: (1, 8),
    28: (1, 8),
    29: (256, 56),
    30: (1, 2),
    34: (256, 54),
    35: (256, 66),
    39: (32, 17),
}
_UNQUANTISED = {0, 1, 28, 30}


class _Bad(Exception):
    """What is wrong with the file, in words."""


@dataclass(frozen=True)
class Header:
    """What matters of a model's file. `weight_bytes` is the size of all tensors, `kv_heads` the most of any layer."""

    architecture: str
    name: str
    layers: int
    context_length: int
    embedding_length: int
    kv_heads: int
    key_length: int
    value_length: int
    vocabulary: int
    weight_bytes: int
    quantised: bool
    chat_template: bool


def read_header(file: Path) -> Header:
    """The header of `file`. Raises InvalidRequest, without naming the path, where it is no whole GGUF."""
    try:
        stat = file.stat()
        return _read_once(file, stat.st_size, stat.st_mtime_ns)
    except _Bad as error:
        raise InvalidRequest(f"'{file.name}' is no usable GGUF file: {error}") from None
    except OSError as error:
        raise InvalidRequest(f"'{file.name}' cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=256)  # a vocabulary takes tens of ms; many requests may meet a model that is not loaded
def _read_once(file: Path, size: int, _mtime_ns: int) -> Header:
    with file.open("rb") as stream:
        return _read(stream, size)


def _read(stream: BinaryIO, size: int) -> Header:
    magic = stream.read(4)
    if magic != b"GGUF":
        raise _Bad("it does not begin with the letters GGUF")
    version, tensors, entries = struct.unpack("<IQQ", _take(stream, 20))
    if version not in (2, 3):
        raise _Bad(f"its format version is {version}; 2 and 3 are known")
    if tensors > _MOST_TENSORS or entries > _MOST_ENTRIES:
        raise _Bad(f"it claims {tensors} tensors and {entries} entries")
    if not tensors:
        raise _Bad("it holds no weights")
    values: dict[str, Any] = {}
    for _ in range(entries):
        key = _string(stream)
        values[key] = _value(stream, struct.unpack("<I", _take(stream, 4))[0])
    end, weight_bytes, quantised = 0, 0, False
    for _ in range(tensors):
        kind, offset, nbytes = _tensor(stream)
        end = max(end, offset + nbytes)
        weight_bytes += nbytes
        quantised = quantised or kind not in _UNQUANTISED
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise _Bad("its alignment is absurd")
    start = math.ceil(stream.tell() / alignment) * alignment
    if start + end > size:
        raise _Bad(f"it is cut short: {size} bytes of {start + end}")
    return _header(values, weight_bytes, quantised)


def _header(values: dict[str, Any], weight_bytes: int, quantised: bool) -> Header:
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise _Bad("it names no architecture")

    def number(key: str, default: int) -> int:
        found = values.get(f"{architecture}.{key}", default)
        if isinstance(found, list):  # one value for each layer
            found = max(found, default=default)
        if not isinstance(found, int) or not 0 <= found < 2**31:
            raise _Bad(f"{architecture}.{key} is absurd")
        return found

    heads = number("attention.head_count", 1) or 1
    width = number("embedding_length", 0)
    tokens = values.get("tokenizer.ggml.tokens")
    return Header(
        architecture=architecture,
        name=str(values.get("general.name", "")),
        layers=number("block_count", 0),
        context_length=number("context_length", 0),
        embedding_length=width,
        kv_heads=number("attention.head_count_kv", heads),
        key_length=number("attention.key_length", width // heads),
        value_length=number("attention.value_length", width // heads),
        vocabulary=tokens if isinstance(tokens, int) else number("vocab_size", 0),
        weight_bytes=weight_bytes,
        quantised=quantised,
        chat_template=bool(values.get("tokenizer.chat_template")),
    )


def _take(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise _Bad("it is cut short")
    return data


def _string(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", _take(stream, 8))
    if length > _LONGEST_STRING:
        raise _Bad(f"it claims a text of {length} bytes")
    return _take(stream, length).decode("utf-8", "replace")


def _value(stream: BinaryIO, kind: int) -> Any:
    """A value; of an array of strings only its length, of which a vocabulary is the one that matters."""
    if kind in _SCALARS:
        code = _SCALARS[kind]
        return struct.unpack(f"<{code}", _take(stream, struct.calcsize(code)))[0]
    if kind == _STRING:
        return _string(stream)
    if kind != _ARRAY:
        raise _Bad(f"it holds a value of the unknown type {kind}")
    inner, count = struct.unpack("<IQ", _take(stream, 12))
    if count > _MOST_STRINGS:
        raise _Bad(f"it claims an array of {count} values")
    if inner in _SCALARS:
        width = struct.calcsize(_SCALARS[inner])
        data = _take(stream, count * width)
        return list(struct.unpack(f"<{count}{_SCALARS[inner]}", data)) if count <= 1024 else count
    if inner != _STRING:
        raise _Bad("it holds an array of arrays")
    for _ in range(count):
        (length,) = struct.unpack("<Q", _take(stream, 8))
        if length > _LONGEST_STRING:
            raise _Bad(f"it claims a text of {length} bytes")
        _take(stream, length)
    return count


def _tensor(stream: BinaryIO) -> tuple[int, int, int]:
    _string(stream)
    (rank,) = struct.unpack("<I", _take(stream, 4))
    if not 0 < rank <= 4:
        raise _Bad(f"it claims a tensor of {rank} dimensions")
    *shape, kind, offset = struct.unpack(f"<{rank}QIQ", _take(stream, 8 * rank + 12))
    if kind not in _TYPES:
        raise _Bad(f"it holds a tensor of the unknown type {kind}")
    block, width = _TYPES[kind]
    count = math.prod(shape)
    if not 0 < count < 1 << 48 or shape[0] % block or offset >= 1 << 50:
        raise _Bad("it claims a tensor of an absurd size")
    return kind, offset, count // block * width
