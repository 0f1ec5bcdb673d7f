"""What a person sees: tables, bars, spinners; plain text where nobody watches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

    from modelops.api.messages import Response
    from modelops.api.types import ModelEvent

_NO_LIMIT = 10_000  # columns


def print_json(answer: Response) -> None:
    """The answer as one line of JSON."""
    click.echo(answer.model_dump_json())


def legible(text: str) -> str:
    """The text as one line, without what would steer the terminal: titles, reasons and an engine's last words may hold
    anything. It gets no shorter."""
    return "".join(character if character.isprintable() else " " for character in text)


def print_line(text: str = "", *, err: bool = False) -> None:
    """One line, whatever is in it."""
    click.echo(legible(text), err=err)


def stacked(lines: Iterable[Text]) -> Group:
    """Lines below each other, to be drawn, whatever is in them."""
    from rich.console import Group

    drawn = [line.copy() for line in lines]
    for line in drawn:
        line.plain = legible(line.plain)
    return Group(*drawn)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under their columns' names, whatever is in them. What does not fit a terminal's line is broken, and never
    cut off."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(legible(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console.width = _NO_LIMIT  # programs that read lines want a row in one
    console.print(table)


@contextlib.contextmanager
def spinner(what: str, silent: bool) -> Iterator[None]:
    """Something moves while the work goes on."""
    from rich.console import Console

    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


@contextlib.contextmanager
def bar(what: str, silent: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar that moves with each call of (bytes done, bytes in all; 0 where that is not known)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    if silent:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def watching(model: str, events: Iterable[ModelEvent]) -> bool:
    """Show how a model comes, with a bar; False, and its reason on standard error, where it does not."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    event = None
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(f"loading {model}", total=None)
        for event in events:
            done = event.model.progress or None  # None: how far it is, is not known
            told = f"{model}: {event.model.message or event.model.status}"
            progress.update(task, description=told, completed=done or 0, total=1 if done else None)
    if event is None or event.model.status == "loaded":
        return event is not None
    why = event.model.message or f"it is {event.model.status}"
    click.echo(f"modelops: '{model}' was not loaded: {why}", err=True)
    return False
