"""Options that give sets of rows: a file that is read here, or the path of one that the coordinator has."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

#: Where the coordinator reads files of rows.
_ROOTS = "<data_dir>/datasets, and learning.roots"


class RowSet(NamedTuple):
    """A set of rows: the option, the request's field, and what they are for."""

    option: str
    field: str
    told: str


def options(sets: Sequence[RowSet]) -> Callable[[Any], Any]:
    """A command with the options of these sets."""

    def decorate(command: Any) -> Any:
        for name, field, told in reversed(sets):
            where = f"As --{name}, but a file under one of the coordinator's dataset roots: {_ROOTS}."
            path = click.option(f"--{name}-path", f"{field}_path", metavar="PATH", help=where)
            file = click.option(
                f"--{name}", field, type=click.Path(path_type=Path), metavar="FILE", help=f"{told}: JSONL."
            )
            command = file(path(command))
        return command

    return decorate


def rows(sets: Sequence[RowSet], options: dict[str, Any]) -> dict[str, Any]:
    """The rows, or where the coordinator finds them, by the request's fields; taken out of `options`."""
    from modelops.api.errors import InvalidRequest
    from modelops.cli.rows import read_rows

    given: dict[str, Any] = {}
    for name, field, _ in sets:
        file, path = options.pop(field), options.pop(f"{field}_path")
        if file and path:
            raise InvalidRequest(f"--{name} and --{name}-path are two ways to say the same; leave one out")
        if file:
            given[field] = read_rows(file, f"--{name}")
        elif path:
            given[f"{field}_path"] = path
    return given


def by_options(told: str, sets: Sequence[RowSet], others: Mapping[str, str]) -> str:
    """What is told of the fields of a request, told of the options that they were given by: those of `sets`, and
    `others` by the name of the field. What is quoted stays as it is."""
    names = dict(others)
    for option, field, _ in sets:
        names |= {field: f"--{option}", f"{field}_path": f"--{option}-path"}
    words = rf"(?<!\w)'[^']*'(?!\w)|\b(?:{'|'.join(names)})\b(?! roots)"
    named = re.sub(words, lambda found: names.get(found[0], found[0]), told)
    return named.replace("the dataset roots", f"the dataset roots ({_ROOTS})")


@contextlib.contextmanager
def errors_by_options(sets: Sequence[RowSet], others: Mapping[str, str]) -> Iterator[None]:
    """Within it errors are told as `by_options` tells."""
    from modelops.api.errors import ModelOpsError

    try:
        yield
    except ModelOpsError as error:
        error.message = by_options(error.message, sets, others)
        raise
