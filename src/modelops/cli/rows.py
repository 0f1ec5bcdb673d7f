"""What somebody writes on the command line for learning jobs and goals: files of rows, requests, parameters, times."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_origin

from modelops.api.errors import InvalidRequest

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from modelops.api.learning import JobType

_MOST_BYTES = 64 << 20  # what is larger is no request any more
_MOST_ROWS = 100_000
_MOST_DIGITS = 400  # what is longer is no number that anything here takes


def read_rows(file: Path, option: str = "") -> list[dict[str, Any]]:
    """The rows of a JSONL file of this machine, each of which is the line of its number: the coordinator, which gets
    the rows alone, tells by it what is wrong. Raises InvalidRequest, which names the line, also for one that is blank
    and not at the end; for a file that is too large or not here it tells what `option` would do, where it has another
    form."""
    elsewhere = f"; a file under one of the coordinator's dataset roots is given with {option}-path" if option else ""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"'{file}' cannot be read here: {error.strerror}{elsewhere}") from None
    if len(content) > _MOST_BYTES:
        raise InvalidRequest(f"'{file}' is over {_MOST_BYTES >> 20} MB, which is too much to send{elsewhere}")
    written = content.removeprefix(b"\xef\xbb\xbf").rstrip()
    found = []
    for number, line in enumerate(written.split(b"\n") if written else (), 1):
        if not line.strip():
            raise InvalidRequest(
                f"'{file}', line {number}: is blank; take it out, so that rows are told by their lines"
            )
        found.append(_row(line, f"'{file}', line {number}"))
    if len(found) > _MOST_ROWS:
        raise InvalidRequest(f"'{file}' has over {_MOST_ROWS} rows, which is too much to send{elsewhere}")
    if not found:
        raise InvalidRequest(f"'{file}' has no rows")
    return found


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = _parsed(line.decode())
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{where}: is not UTF-8") from None
    except UnicodeEncodeError:
        raise InvalidRequest(f"{where}: has half of a surrogate pair, which is no character") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"{where}: is no JSON: {error.msg.lower()}, at column {error.colno}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where}: is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise InvalidRequest(f'{where}: is no JSON object, as {{"prompt": "…", "completion": "…"}} is one')
    return row


def _parsed(written: str) -> Any:
    """What it is as JSON. Raises JSONDecodeError; or another ValueError, or a RecursionError, for what may look like
    JSON and cannot be sent as such."""
    return json.loads(written, parse_constant=_no_number, parse_float=_float, parse_int=_int)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"there is no {name} in it")


def _float(written: str) -> float:
    if math.isinf(number := float(written)):
        raise ValueError("a number is too large")
    return number


def _int(written: str) -> int:
    if len(written) > _MOST_DIGITS:
        raise ValueError("a number is too large")
    return int(written)


def read_request(file: Path) -> dict[str, Any]:
    """The request in a file of this machine. Raises InvalidRequest for what is no JSON object."""
    try:
        request = _parsed(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(f"'{file}' cannot be read here: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidRequest(f"'{file}' is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"'{file}' is no JSON: {error}") from None
    if not isinstance(request, dict):
        raise InvalidRequest(f"'{file}' is no JSON object, as a request of the API is one")
    return request


def moment(written: str | None, option: str) -> str | None:
    """A time with its offset; one without is of this machine's own clock. Raises InvalidRequest."""
    if written is None:
        return None
    try:
        return datetime.fromisoformat(written).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise InvalidRequest(f'{option} is a time, such as "2030-01-31 12:00" or "2030-01-31T12:00:00Z"') from None


def parameters(job_type: JobType, written: Sequence[str]) -> dict[str, Any]:
    """What was written as NAME=VALUE, with dots between the names of what is within each other; a list is written with
    commas. The values are not checked. Raises InvalidRequest for what is not written so, or is no JSON but looks so:
    NaN, 1e999."""
    from modelops.api.learning import DpoParameters, EvaluateParameters, LoraParameters

    types: dict[JobType, type[BaseModel]] = {
        "lora": LoraParameters,
        "dpo": DpoParameters,
        "evaluate": EvaluateParameters,
    }
    fields = types[job_type].model_fields
    found: dict[str, Any] = {}
    for one in written:
        name, equals, value = one.partition("=")
        *outer, last = name.strip().split(".")
        if not equals or not all((*outer, last)):
            raise InvalidRequest(f"'{one}' is not written NAME=VALUE, as in --set learning_rate=1e-3")
        place, known = found, fields
        for part in outer:
            place = place.setdefault(part, {})
            known = _within(known.get(part))
            if not isinstance(place, dict):
                raise InvalidRequest(f"'{one}': {part} has got a value already")
        try:
            place[last] = _value(known.get(last), value.strip())
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"'{name.strip()}' has got a value that is no JSON: {error}") from None
    return found


def _within(field: FieldInfo | None) -> dict[str, FieldInfo]:
    """The fields of what a field holds."""
    fields: Mapping[str, FieldInfo] = getattr(field.annotation, "model_fields", {}) if field else {}
    return dict(fields)


def _value(field: FieldInfo | None, written: str) -> Any:
    kind = field.annotation if field else None
    if kind is str:
        return written
    try:
        return _parsed(written)
    except json.JSONDecodeError:
        if get_origin(kind) is list:
            return [part.strip() for part in written.split(",")]
        return written
