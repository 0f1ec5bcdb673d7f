"""The container of a GGUF file: its entries and its tensors, and where each of them lies.

Owns the format and the distrust of it: every count and length in the file is bounded before anything is allocated for
it. Only the table is read, no weight, and nothing is known here of what an entry means to a model.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

#: The last version is the one that is written; 2 differs from it by nothing but the number.
VERSIONS = (2, 3)

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct(f"<{code}") for kind, code in _CODES.items()}
_U32, _U64 = _SCALARS[4], _SCALARS[10]
_START, _ARRAY_START = struct.Struct("<4sIQQ"), struct.Struct("<IQ")
_TENSOR = {rank: struct.Struct(f"<{rank}QIQ") for rank in range(1, 5)}
_STRING, _ARRAY = 8, 9
_MOST_ENTRIES = 1 << 16
_MOST_TENSORS = 1 << 16
_LONGEST_STRING = 1 << 24  # of one, and of all that are kept
_MOST_STRINGS = 1 << 21  # in all; the largest vocabularies have some 300,000 tokens and 500,000 merges
_LONGEST_TABLE = 1 << 26
_LONGEST_LIST = 1024  # numbers of an array that are kept; a model has fewer layers
_BLOCK = 1 << 20

#: ggml type → (values in a block, bytes of a block), for every type that a file may hold.
BLOCKS: dict[int, tuple[int, int]] = {
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


class BadGguf(Exception):
    """What is wrong with the file, in words that do not name it."""


@dataclass(frozen=True)
class Entry:
    """A key and its value; of an array of strings, or of many numbers, only the length. `record` are its bytes."""

    key: str
    value: Any
    record: range


@dataclass(frozen=True)
class Tensor:
    """A tensor: `shape` begins with the length of a row, `kind` is ggml's type, `start` is its place in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    nbytes: int


@dataclass(frozen=True)
class Table:
    """All that a file says before its weights. `record` are the bytes of the tensors' entries, `start` is where the
    weights begin, `digest` the SHA-256 of all before them.
    """

    version: int
    entries: tuple[Entry, ...]
    tensors: tuple[Tensor, ...]
    alignment: int
    record: range
    start: int
    digest: bytes

    @property
    def values(self) -> dict[str, Any]:
        """The entries' values by their keys."""
        return {entry.key: entry.value for entry in self.entries}


def read_table(stream: BinaryIO, size: int) -> Table:
    """The table of the GGUF of `size` bytes that `stream` is at the beginning of. Raises BadGguf."""
    reader = _Reader(stream, size)
    if size < 4 or stream.peek(4)[:4] != b"GGUF":  # type: ignore[attr-defined]
        raise BadGguf("it does not begin with the letters GGUF")
    _, version, tensor_count, entry_count = reader.unpack(_START)
    if version not in VERSIONS:
        raise BadGguf(f"its format version is {version}; 2 and 3 are known")
    if tensor_count > _MOST_TENSORS or entry_count > _MOST_ENTRIES:
        raise BadGguf(f"it claims {tensor_count} tensors and {entry_count} entries")
    entries = tuple(_entry(reader) for _ in range(entry_count))
    alignment = next((entry.value for entry in entries if entry.key == "general.alignment"), 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise BadGguf("its alignment is absurd")
    begin = reader.position
    claims = [_tensor(reader) for _ in range(tensor_count)]
    start = math.ceil(reader.position / alignment) * alignment
    tensors = tuple(Tensor(name, shape, kind, start + offset, nbytes) for name, shape, kind, offset, nbytes in claims)
    end = max((tensor.start + tensor.nbytes for tensor in tensors), default=0)
    if end > size:
        raise BadGguf(f"it is cut short: {size} bytes of {end}")
    return Table(version, entries, tensors, alignment, range(begin, reader.position), start, reader.digest())


def entry(key: str, value: str | int) -> bytes:
    """An entry as it stands in a file: a text, or a number of 32 bits."""
    kind, content = (_STRING, _text(value)) if isinstance(value, str) else (4, _U32.pack(value))
    return _text(key) + _U32.pack(kind) + content


def start(version: int, tensors: int, entries: int) -> bytes:
    """The first bytes of a file."""
    return _START.pack(b"GGUF", version, tensors, entries)


def _text(value: str) -> bytes:
    raw = value.encode()
    return _U64.pack(len(raw)) + raw


class _Reader:
    """The table's bytes, a block at a time, all of which go into a digest."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.size = size
        self._stream = stream
        self._data = b""
        self._at = 0
        self._before = 0  # bytes of earlier blocks
        self._strings = 0
        self._kept = 0
        self._sha = hashlib.sha256()

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._before + self._at

    def digest(self) -> bytes:
        """Of what was taken."""
        self._sha.update(self._data[: self._at])
        return self._sha.digest()

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self._claim(count)
        return self._data[start : start + count]

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        """The next values."""
        start = self._claim(form.size)  # first: it may replace the data
        return form.unpack_from(self._data, start)

    def length(self) -> int:
        """The length of the text that follows."""
        return _bounded(self.unpack(_U64)[0])

    def string(self) -> str:
        """The next text."""
        length = self.length()
        self._kept = _bounded(self._kept + length)
        return self.take(length).decode("utf-8", "replace")

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        while count:
            step = min(count, _BLOCK)
            self._claim(step)
            count -= step

    def skip_strings(self, count: int) -> None:
        """Pass over `count` texts."""
        self._strings += count
        if self._strings > _MOST_STRINGS:
            raise BadGguf(f"it claims an array of {count} values")
        unpack = _U64.unpack_from
        while count:
            # As many as lie whole in the block: a call for each of 500,000 would take most of the time.
            data, at, last = self._data, self._at, len(self._data) - 8
            while count and at <= last:
                (length,) = unpack(data, at)
                if at + length > last:
                    break  # or it is absurd, which is found below
                at += 8 + length
                count -= 1
            self._at = at
            if count:
                self.skip(self.length())
                count -= 1

    def _claim(self, count: int) -> int:
        """Where the next `count` bytes begin in the data, which holds them."""
        if self._at + count > len(self._data):
            self._fill(count)
        start = self._at
        self._at += count
        return start

    def _fill(self, count: int) -> None:
        self._before += self._at
        if self._before + count > _LONGEST_TABLE:
            raise BadGguf("what it says before its weights takes more than 64 MB")
        self._sha.update(self._data[: self._at])
        rest = self._data[self._at :]
        self._data, self._at = rest + self._stream.read(max(count - len(rest), _BLOCK)), 0
        if len(self._data) < count:
            raise BadGguf("it is cut short")


def _bounded(length: int) -> int:
    if length > _LONGEST_STRING:
        raise BadGguf(f"it claims a text of {length} bytes")
    return length


def _entry(reader: _Reader) -> Entry:
    begin = reader.position
    key = reader.string()
    value = _value(reader, reader.unpack(_U32)[0])
    return Entry(key, value, range(begin, reader.position))


def _value(reader: _Reader, kind: int) -> Any:
    if kind in _SCALARS:
        return reader.unpack(_SCALARS[kind])[0]
    if kind == _STRING:
        return reader.string()
    if kind != _ARRAY:
        raise BadGguf(f"it holds a value of the unknown type {kind}")
    inner, count = reader.unpack(_ARRAY_START)
    if inner == _STRING:
        reader.skip_strings(count)
        return count
    if inner not in _SCALARS:
        raise BadGguf("it holds an array of arrays")
    form = _SCALARS[inner]
    if count * form.size > min(_LONGEST_TABLE, reader.size):
        raise BadGguf(f"it claims an array of {count} values")
    if count > _LONGEST_LIST:
        reader.skip(count * form.size)
        return count
    return [value for (value,) in form.iter_unpack(reader.take(count * form.size))]


def _tensor(reader: _Reader) -> tuple[str, tuple[int, ...], int, int, int]:
    """Name, shape, type, offset behind the table, size."""
    name = reader.string()
    (rank,) = reader.unpack(_U32)
    if rank not in _TENSOR:
        raise BadGguf(f"it claims a tensor of {rank} dimensions")
    *shape, kind, offset = reader.unpack(_TENSOR[rank])
    if kind not in BLOCKS:
        raise BadGguf(f"it holds a tensor of the unknown type {kind}")
    block, width = BLOCKS[kind]
    count = math.prod(shape)
    if not 0 < count < 1 << 48 or shape[0] % block or offset >= 1 << 50:
        raise BadGguf("it claims a tensor of an absurd size")
    return name, tuple(shape), kind, offset, count // block * width
