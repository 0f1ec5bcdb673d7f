"""What all messages are made of: how one is checked, and the kinds of fields that several have.

Requests are checked by their own types and nowhere else, so that the bounds are the same on every transport. They are
strict (`"50"` is no number) and closed (an unknown field is refused by name).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite, isnan
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from modelops.api.errors import InvalidRequest

_MOST_FAULTS = 5  # of one request that are told: a hostile one may hold a hundred thousand


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL characters")
    return text


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode: it holds a lone surrogate") from None
    return text


def _described(schema: dict[str, Any]) -> None:
    schema.setdefault("pattern", r"^[^\u0000]*$")


_checked = (AfterValidator(_no_nul), AfterValidator(_utf8), Field(json_schema_extra=_described))
Text = Annotated[str, *_checked]
# Bounds stand before the checks: behind them, they would be told as those of any list.
Name = Annotated[str, Field(min_length=1, max_length=128), *_checked]
Stop = Annotated[str, Field(min_length=1), *_checked]
Passage = Annotated[str, Field(min_length=1, max_length=32_768), *_checked]

#: What a model may be called.
MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._:@+-]*"

#: So many objects and arrays may stand in each other: protobuf reads messages a hundred deep, and one of these is up to
#: three of them.
DEEPEST = 30


def _holdable(value: Any, levels: int = DEEPEST) -> Any:
    """The value, which is of JSON. Raises ValueError for one that not all transports can hold."""
    if isinstance(value, dict | list):
        if not levels:
            raise ValueError(f"must not be nested more than {DEEPEST} deep")
        for each in (*value, *value.values()) if isinstance(value, dict) else value:
            _holdable(each, levels - 1)
    elif isinstance(value, str):
        _utf8(value)
    elif isinstance(value, int | float):
        _double(value)
    return value


def _double(number: float) -> None:
    try:
        if isfinite(number):
            return
    except OverflowError:  # JSON has integers that no float holds
        pass
    raise ValueError("must not hold a number that no double holds")


#: An object with whatever fields; some are checked by types of their own, later.
Object = Annotated[dict[str, Any], AfterValidator(_holdable)]

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_TIME = rf"^-?(?:{_NUMBER}(?:[eE][+-]?[0-9]+)?|(?:{_NUMBER}(?:ms|h|m|s))+)$"
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_LONGEST_S = 365 * 86_400.0


def duration_s(value: object) -> object:
    """Seconds from a number or a text such as "90", "5m" or "1h30m"; negative: for ever. Else what it is."""
    if isinstance(value, str):
        if not re.fullmatch(_TIME, value):
            raise ValueError('is written as seconds or as a duration such as "5m"; -1 means for ever')
        if parts := re.findall(rf"({_NUMBER})(ms|h|m|s)", value):
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
            value = -seconds if value.startswith("-") else seconds
        else:
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and isnan(value)):
        return value  # told as what it is
    return -1.0 if value < 0 else float(min(value, _LONGEST_S))  # in this order: JSON has integers that no float holds


#: Seconds that a model stays after its last request ended; 0: it goes at once; negative: it stays.
KeepAlive = Annotated[
    float,
    Field(allow_inf_nan=False),
    BeforeValidator(duration_s, json_schema_input_type=Annotated[str, Field(pattern=_TIME)] | float),
]

_YEARS = range(1970, 9999)  # within which a time is the same in seconds, and the other way round


def _moment(value: object) -> datetime:
    """A time of the day with its offset, in UTC, from a text as RFC 3339 has it."""
    try:
        at = value if isinstance(value, datetime) else datetime.fromisoformat(value.upper())  # type: ignore[attr-defined]
        if at.tzinfo is not None and (at := at.astimezone(UTC)).year in _YEARS:
            return at
    except (AttributeError, ValueError, OverflowError):
        pass
    raise ValueError('is a time with its offset, such as "2030-01-31T12:00:00Z"')


#: A time that somebody gives.
Moment = Annotated[datetime, BeforeValidator(_moment)]

# --- how the next token is chosen, beside `temperature` and `top_p`; None: as the engine has it ---
TopK = Annotated[int, Field(ge=0, le=2**31 - 1, description="Sample from the likeliest so many; 0: from all.")]
MinP = Annotated[
    float, Field(ge=0.0, le=1.0, allow_inf_nan=False, description="Of a token's probability to the likeliest one's.")
]
RepeatPenalty = Annotated[
    float, Field(ge=0.1, le=10.0, allow_inf_nan=False, description="Divides the odds of what was said lately; 1: none.")
]
#: How many seeds there are. The number itself, less one, means "draw one" to llama.cpp.
SEEDS = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=SEEDS - 1, description="Makes sampling repeatable.")]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]


class Request(BaseModel):
    """Base of the requests."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, fields: object, context: Mapping[str, Any] | None = None) -> Self:
        """Check `fields`, a mapping from names to values; raises InvalidRequest that names each fault.

        `context` is for the types of fields that know how strict they are by it.
        """
        if not isinstance(fields, Mapping):
            raise InvalidRequest("the request must be a JSON object")
        unknown = itertools.islice((name for name in fields if name not in cls.model_fields), _MOST_FAULTS)
        faults = [_unknown_field(str(name)[:64], list(cls.model_fields)) for name in unknown]
        try:
            known = {name: fields[name] for name in cls.model_fields if name in fields}
            request = cls.model_validate(known, context=context)
        except ValidationError as error:
            raise InvalidRequest("; ".join(_explain(error) + faults)) from None
        if faults:
            raise InvalidRequest("; ".join(faults))
        return request


class Response(BaseModel):
    """Base of the answers."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


def _unknown_field(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known fields: {', '.join(known) or 'none'}"
    return f"unknown field '{name}': {hint}"


def _explain(error: ValidationError) -> list[str]:
    """What is wrong with each field at fault. The values stay out: they may be somebody's prompt."""
    faults = []
    for fault in error.errors(include_input=False, include_url=False)[:_MOST_FAULTS]:
        name = ".".join(str(part)[:64] for part in fault["loc"])
        said = fault["msg"].removeprefix("Value error, ")  # which is what the library says before our own words
        said = f"{said[0].lower()}{said[1:]}"
        if MODEL_NAME in fault.get("ctx", {}).get("pattern", ""):
            said = "must begin with a letter or a digit, and have only these and . _ : @ + - in it"
        faults.append(f"{name}: {said}" if name else said)  # what is wrong with several together names them itself
    return faults


def from_json(body: bytes) -> Any:
    """The value that `body` holds; raises InvalidRequest where it is no JSON."""
    from pydantic_core import from_json as parse

    try:
        return parse(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
