"""The rows of learning jobs: read from what callers give, checked, and kept in one form that everything else reads.

Knows nothing of models: whether a row is too long for one is said where its tokens are known. It is imported by the
child programs too, so it imports little.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, NoReturn, TypeVar, overload

from pydantic_core import from_json, to_json

from modelops.api.errors import DiskFull, InvalidRequest, NotFound
from modelops.api.learning import JobType
from modelops.learning import files

Turn = Mapping[str, str]

_MOST_FAULTS = 5  # of one set of rows that are told
_BOM = b"\xef\xbb\xbf"
_ROLES = ("system", "user", "assistant")
#: Where the reader of JSON says that it stopped.
_PLACE = re.compile(r" at line \d+ column (\d+)$")


@dataclass(frozen=True, slots=True)
class Example:
    """A row with the answer that is wanted after `turns`, of which the last is the user's; or with nothing but `text`.

    `line` is where it stood, from 1 on: of the file, or of the rows of a request.
    """

    line: int
    turns: tuple[Turn, ...] = ()
    answer: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Preference:
    """A row with two answers, of which `chosen` is the better one; else as `Example`."""

    line: int
    turns: tuple[Turn, ...]
    chosen: str
    rejected: str


Row = TypeVar("Row", Example, Preference)
_Any = Example | Preference


@dataclass(frozen=True)
class Dataset(Generic[Row]):
    """Rows that are good. `digest` and `size` (bytes) are those of the file that `write` makes of them."""

    rows: tuple[Row, ...]
    digest: str
    size: int


@dataclass(frozen=True)
class Overlap:
    """What held-out rows have in common with those that are trained on, as (line there, line here).

    `rows`: prompt and answer are the same; `prompts`: the prompt is, and the answer is another.
    """

    rows: tuple[tuple[int, int], ...]
    prompts: tuple[tuple[int, int], ...]


def resolve(path: str, roots: Sequence[Path], name: str = "dataset_path") -> Path:
    """The file that `path` means: absolute, or relative to a root. Links are resolved before it is judged.

    Raises InvalidRequest, in which the field is called `name`, where it leads outside the roots; NotFound.
    """
    try:
        places = [root.resolve() for root in roots]
        inside = [file for file in ((place / path).resolve() for place in places) if _under(file, places)]
        found = next((file for file in inside if file.is_file()), None)
    except (OSError, RuntimeError, ValueError):  # a link to itself, a name that no file system takes
        raise InvalidRequest(f"{name} is no path") from None
    if not inside:
        raise InvalidRequest(
            f"{name} leads outside the dataset roots; put the file under one of them, or add its folder to "
            "learning.roots"
        )
    if found is None:
        raise NotFound(f"{name}: there is no such file under the dataset roots")
    return found


def _under(file: Path, roots: Sequence[Path]) -> bool:
    return any(file.is_relative_to(root) for root in roots)


# --- reading what callers give ---
@overload
def read(source: bytes | Sequence[object], job_type: Literal["dpo"], name: str) -> Dataset[Preference]: ...
@overload
def read(source: bytes | Sequence[object], job_type: Literal["lora", "evaluate"], name: str) -> Dataset[Example]: ...
@overload
def read(source: bytes | Sequence[object], job_type: JobType, name: str) -> Dataset[Example] | Dataset[Preference]: ...
def read(source: bytes | Sequence[object], job_type: JobType, name: str) -> Dataset[Example] | Dataset[Preference]:
    """The rows of a JSONL file, or of a request. Blank lines are passed over, and rows may be of several kinds.

    `lora` and `evaluate`: messages, of which the last is the assistant's; prompt and completion, with a system turn or
    without; or text. `dpo`: prompt (a text, or messages), chosen and rejected.
    Raises InvalidRequest that says where, in the rows called `name`, something is wrong, and what; never the values.
    """
    if job_type == "dpo":
        return _dataset([Preference(*row) for row in _read(source, _preference, name)], name)
    return _dataset([Example(*row) for row in _read(source, _example, name)], name)


class _Fault(Exception):
    """What is wrong with a row."""


def _read(source: bytes | Sequence[object], row_of: Any, name: str) -> Iterator[tuple[Any, ...]]:
    faults: list[str] = []
    more = 0
    word = "line" if isinstance(source, bytes) else "row"
    lines = _lines(source) if isinstance(source, bytes) else enumerate(source, 1)
    for number, given in lines:
        try:
            row = _parsed(given) if isinstance(given, bytes) else given
            if not isinstance(row, Mapping):
                raise _Fault("is no JSON object")
            yield number, *row_of(row)
        except _Fault as fault:
            if len(faults) < _MOST_FAULTS:
                faults.append(f"{word} {number}: {fault}")
            else:
                more += 1
    if faults:
        raise InvalidRequest(f"{name}: {'; '.join(faults)}{f'; and {more} more' if more else ''}")


def _lines(source: bytes) -> Iterator[tuple[int, bytes]]:
    stream = io.BytesIO(source)
    if source.startswith(_BOM):
        stream.seek(len(_BOM))
    return ((number, line) for number, line in enumerate(stream, 1) if not line.isspace())


def _parsed(line: bytes) -> Any:
    line = line.rstrip(b"\r\n")
    try:
        row = from_json(line)
    except ValueError as error:
        try:
            line.decode()
        except UnicodeDecodeError as bad:
            raise _Fault(f"is not valid UTF-8, at byte {bad.start + 1}") from None
        raise _Fault("is no JSON: " + _PLACE.sub(r" at column \1", str(error))) from None
    json.loads(line, object_pairs_hook=_once, parse_int=str, parse_float=str)  # which the other reader cannot tell
    return row


def _once(pairs: list[tuple[str, object]]) -> None:
    """Raises _Fault where a name is there twice: of the two values one would be lost."""
    names = set()
    for name, _ in pairs:
        if name in names:
            raise _Fault(f"has {name[:64]!r} twice")
        names.add(name)


def _example(row: Mapping[str, Any]) -> tuple[tuple[Turn, ...], str, str]:
    """Turns, answer, text."""
    if "messages" in row:
        _fields(row, "messages")
        turns = _turns(row["messages"], "messages")
        if turns[-1]["role"] != "assistant":
            raise _Fault("messages must end with the assistant's turn, which is the answer")
        _asks(turns[:-1], "messages", " before the answer")
        return turns[:-1], turns[-1]["content"], ""
    if "text" in row:
        _fields(row, "text")
        return (), "", _text(row["text"], "text")
    if row.keys().isdisjoint(("prompt", "completion")):
        raise _Fault("has none of: messages; prompt and completion; text")
    _fields(row, "prompt", "completion", optional="system")
    answer = _text(row["completion"], "completion")
    turns = ({"role": "user", "content": _text(row["prompt"], "prompt")},)
    if "system" in row:
        turns = ({"role": "system", "content": _text(row["system"], "system")}, *turns)
    return turns, answer, ""


def _preference(row: Mapping[str, Any]) -> tuple[tuple[Turn, ...], str, str]:
    """Turns, chosen, rejected."""
    _fields(row, "prompt", "chosen", "rejected")
    prompt = row["prompt"]
    if isinstance(prompt, list | tuple):
        turns = _turns(prompt, "prompt")
        _asks(turns, "prompt", "")
    else:
        turns = ({"role": "user", "content": _text(prompt, "prompt", "a text, or a list of messages")},)
    chosen, rejected = _text(row["chosen"], "chosen"), _text(row["rejected"], "rejected")
    if chosen == rejected:
        raise _Fault("chosen and rejected are the same")
    return turns, chosen, rejected


def _fields(row: Mapping[str, Any], *names: str, optional: str = "", where: str = "") -> None:
    if len(row) == len(names) and all(name in row for name in names):
        return
    for name in row:
        if name not in names and name != optional:
            raise _Fault(f"{where}unknown field {str(name)[:64]!r}; {_listed(names)} may stand here")
    for name in names:
        if name not in row:
            raise _Fault(f"{where}{name} is missing")


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _turns(given: object, where: str) -> tuple[Turn, ...]:
    if not isinstance(given, list | tuple):
        raise _Fault(f"{where} must be a list of messages")
    if not given:
        raise _Fault(f"{where} is empty")
    turns = []
    for number, turn in enumerate(given):
        if not isinstance(turn, Mapping):
            raise _Fault(f"{where}[{number}] must be an object with role and content")
        _fields(turn, "role", "content", where=f"{where}[{number}]: ")
        role = turn["role"]
        if role not in _ROLES:
            raise _Fault(f"{where}[{number}].role must be system, user or assistant")
        if role == "system" and number:
            raise _Fault(f"{where}[{number}]: the system's turn must be the first")
        turns.append({"role": role, "content": _text(turn["content"], where, place=f"[{number}].content")})
    return tuple(turns)


def _asks(turns: Sequence[Turn], where: str, when: str) -> None:
    if not turns or turns[-1]["role"] != "user":
        raise _Fault(f"{where} must have a user's turn last{when}")


def _text(value: object, name: str, wanted: str = "a text", *, place: str = "") -> str:
    if not isinstance(value, str):
        raise _Fault(f"{name}{place} must be {wanted}")
    if not value or value.isspace():
        raise _Fault(f"{name}{place} is empty")
    if "\0" in value:
        raise _Fault(f"{name}{place} holds a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Fault(f"{name}{place} is not valid Unicode: it holds a lone surrogate") from None
    return value


# --- the form that they are kept in ---
def write(dataset: Dataset[Any], file: Path) -> None:
    """Write the rows to `file`, which is there, whole and on the disk, when this returns, and not before.

    Raises DiskFull; OSError where the folder cannot be written.
    """
    try:
        with files.whole(file) as partial, partial.open("wb") as out:
            out.writelines(map(_canonical, dataset.rows))
    except OSError as error:
        _no_room(error, dataset.size)


@overload
def load(file: Path, job_type: Literal["dpo"]) -> list[Preference]: ...
@overload
def load(file: Path, job_type: Literal["lora", "evaluate"]) -> list[Example]: ...
@overload
def load(file: Path, job_type: JobType) -> list[Example] | list[Preference]: ...
def load(file: Path, job_type: JobType) -> list[Example] | list[Preference]:
    """The rows that `write` has written, of a set that was read for that type. Raises OSError."""
    with file.open("rb") as lines:
        if job_type == "dpo":
            return [Preference(**_kept(line)) for line in lines]
        return [Example(**_kept(line)) for line in lines]


def kept(file: Path) -> Dataset[Example]:
    """The set, with the digest that it had, that `write` has written of rows with one answer. Raises OSError."""
    return _dataset(load(file, "evaluate"), "the file")


def _dataset(rows: list[Row], name: str) -> Dataset[Row]:
    if not rows:
        raise InvalidRequest(f"{name} has no rows; it takes one at least")
    digest, size = hashlib.sha256(), 0
    for row in rows:
        line = _canonical(row)
        size += len(line)
        digest.update(line)
    return Dataset(tuple(rows), f"sha256:{digest.hexdigest()}", size)


def _canonical(row: _Any) -> bytes:
    fields: dict[str, Any] = {"line": row.line}
    if isinstance(row, Preference):
        fields |= {"turns": row.turns, "chosen": row.chosen, "rejected": row.rejected}
    elif row.text:
        fields["text"] = row.text
    else:
        fields |= {"turns": row.turns, "answer": row.answer}
    return to_json(fields) + b"\n"


def _kept(line: bytes) -> dict[str, Any]:
    fields: dict[str, Any] = from_json(line)
    if "turns" in fields:
        fields["turns"] = tuple(fields["turns"])
    return fields


def _no_room(error: OSError, size: int) -> NoReturn:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    raise DiskFull(
        f"there is no room on the disk for the rows: {-(-size >> 20)} MB are needed; make room and try again",
        details={"resource": "disk", "needed_bytes": str(size)},
    ) from None


def with_system(dataset: Dataset[Any], system: str) -> Dataset[Any]:
    """The same rows, those of turns that have no system turn with this one."""

    def told(row: _Any) -> _Any:
        if not row.turns or row.turns[0]["role"] == "system":
            return row
        return replace(row, turns=({"role": "system", "content": system}, *row.turns))

    rows: list[Any] = [told(row) for row in dataset.rows]
    return _dataset(rows, "the rows")


# --- what they mean to a model, and to each other ---
def plain(turns: Sequence[Turn]) -> str:
    """What is put to a model that has no chat template: the turns as they stand, one after another."""
    return "".join(turn["content"] for turn in turns)


def duplicates(rows: Sequence[_Any]) -> list[tuple[int, int]]:
    """The lines of rows that are there already, as (the first one's, the other's). Case and spaces do not count."""
    first: dict[tuple[str, str], int] = {}
    found = []
    for row in rows:
        both = _prompt(row), _answer(row) + (f"\0{_folded(row.rejected)}" if isinstance(row, Preference) else "")
        if (line := first.setdefault(both, row.line)) != row.line:
            found.append((line, row.line))
    return found


def overlap(train: Sequence[_Any], held_out: Sequence[_Any]) -> Overlap:
    """Which held-out rows are trained on, too; each once. Of preferences the chosen answer counts.

    Case and spaces do not.
    """
    prompts: dict[str, int] = {}
    both: dict[tuple[str, str], int] = {}
    for row in train:
        prompt = _prompt(row)
        prompts.setdefault(prompt, row.line)
        both.setdefault((prompt, _answer(row)), row.line)
    rows, asked = [], []
    for row in held_out:
        prompt = _prompt(row)
        if line := both.get((prompt, _answer(row))):
            rows.append((line, row.line))
        elif line := prompts.get(prompt):
            asked.append((line, row.line))
    return Overlap(tuple(rows), tuple(asked))


def _prompt(row: _Any) -> str:
    if isinstance(row, Example) and row.text:
        return _folded(row.text)
    return "\0".join(part for turn in row.turns for part in (turn["role"], _folded(turn["content"])))


def _answer(row: _Any) -> str:
    return _folded(row.chosen if isinstance(row, Preference) else row.answer)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
