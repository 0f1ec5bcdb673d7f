"""The picture that `modelops top` draws: from a look and its rates to lines that fit a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.styled import Styled
from rich.table import Table
from rich.text import Text

from modelops.api.types import DeviceStatus, ModelInfo
from modelops.cli.looks import Look, Rate, Rates
from modelops.cli.terminal import legible

_GAP = 2  # between columns
_NAME = 16  # columns of a model's name that are worth more than another column
_BAR = 40  # columns, at most
_BESIDE, _BESIDE_ALL = 46, 62  # columns of a device's line beside its bar, without and with what models hold
_MOST_REASONS = 3
_NO_LIMIT = 10_000  # lines
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
_HEALTH = {"healthy": "bold green", "degraded": "bold yellow", "unhealthy": "bold red"}
_STATUS = {"loaded": "green", "loading": "cyan", "unloading": "cyan", "failed": "bold red"}


@dataclass(frozen=True)
class Row:
    """One model, in words."""

    name: str
    version: str
    status: str
    breaker: str
    active: str
    waiting: str
    written: str
    read: str
    memory: str
    asked: str
    expires: str
    style: str = ""  # of its status


@dataclass(frozen=True)
class Column:
    """One column of the models. Where there is no room for all, the one with the lowest `worth` goes first."""

    title: str
    cell: Callable[[Row], str]
    worth: int
    right: bool = True


COLUMNS = (
    Column("MODEL", lambda row: row.name, 9, right=False),
    Column("VERSION", lambda row: row.version, 2, right=False),
    Column("STATUS", lambda row: row.status, 8, right=False),
    Column("BREAKER", lambda row: row.breaker, 7, right=False),
    Column("ACTIVE", lambda row: row.active, 9),
    Column("WAITING", lambda row: row.waiting, 6),
    Column("WRITTEN/S", lambda row: row.written, 9),
    Column("READ/S", lambda row: row.read, 5),
    Column("MEMORY", lambda row: row.memory, 4),
    Column("ASKED", lambda row: row.asked, 1),
    Column("EXPIRES", lambda row: row.expires, 3),
)


# --- words ---
def duration(seconds: float, parts: int = 1) -> str:
    """A time in its largest unit, and in the next one too with 2 `parts`: "3 h", "3 h 5 min"."""
    left, words = max(0, int(seconds)), list[str]()
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        if words or count or size == 1:
            words.append(f"{count} {unit}")
        if len(words) == parts:
            break
    return " ".join(words)


def size(mb: int) -> str:
    """An amount of memory, short."""
    return f"{mb} MB" if mb < 10_000 else f"{mb / 1024:.1f} GB"


def per_second(rate: float, rates: Rates) -> str:
    """A rate; where none is known, or there is none, a dash."""
    if not rates.seconds or not rate:
        return "-"
    return f"{rate:.1f}" if rate < 100 else f"{rate:.0f}"


# --- models ---
def rows(look: Look, rates: Rates) -> list[Row]:
    """The models, the busiest first: by requests, then by tokens, then by when they were last asked."""

    def busy(model: ModelInfo) -> tuple[float, float, float, str]:
        rate = rates.models.get(model.model_name, Rate())
        used = model.last_used_at.timestamp() if model.last_used_at else 0.0
        return -(model.active_requests + model.queued_requests), -(rate.written + rate.read), -used, model.model_name

    return [_row(model, rates, look.at) for model in sorted(look.models, key=busy)]


def _row(model: ModelInfo, rates: Rates, now: datetime) -> Row:
    rate = rates.models.get(model.model_name, Rate())
    asked = f"{duration((now - model.last_used_at).total_seconds())} ago" if model.last_used_at else ""
    expires = duration((model.expires_at - now).total_seconds()) if model.expires_at else ""
    return Row(
        name=legible(model.model_name),
        version=model.model_version,
        status=f"{model.status} {model.progress:.0%}" if model.progress else model.status,
        breaker="" if model.breaker == "closed" else model.breaker.replace("_", " "),
        active=f"{model.active_requests}/{model.slots}" if model.slots else str(model.active_requests),
        waiting=str(model.queued_requests),
        written=per_second(rate.written, rates),
        read=per_second(rate.read, rates),
        memory=size(model.memory_usage_mb) if model.memory_usage_mb else "",
        asked=asked,
        expires="pinned" if model.pinned else expires,
        style=_STATUS.get(model.status, ""),
    )


def fitting(rows: Sequence[Row], width: int) -> list[Column]:
    """The columns for which there is room, in their order. No column stands without anything in it."""
    chosen = [column for column in COLUMNS if any(map(column.cell, rows))]
    for column in sorted(chosen, key=lambda column: column.worth):
        if column.worth == COLUMNS[0].worth or sum(_width(one, rows) + _GAP for one in chosen) - _GAP <= width:
            break
        chosen.remove(column)
    return chosen


def _width(column: Column, rows: Sequence[Row]) -> int:
    natural = max(cell_len(text) for text in (column.title, *map(column.cell, rows)))
    return min(natural, _NAME) if column is COLUMNS[0] else natural


def _models(rows: Sequence[Row], shown: int, width: int) -> RenderableType:
    columns = fitting(rows, width)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    others = sum(_width(column, rows) + _GAP for column in columns[1:])
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
            max_width=max(1, width - others) if column is COLUMNS[0] else None,
        )
    for row in rows[:shown]:
        styles = {"STATUS": row.style, "BREAKER": "bold red", "MODEL": "bold"}
        table.add_row(*(Text(column.cell(row), styles.get(column.title, "")) for column in columns))
    return table


# --- devices ---
def bar(device: DeviceStatus, width: int) -> Text:
    """A device's memory: what models hold, what else is used, and what is free."""

    def cells(mb: int) -> int:
        share = mb / device.total_mb if device.total_mb else 0.0
        return min(width, max(1, round(width * share))) if share > 0 else 0

    held = cells(device.reserved_mb)
    other = min(width - held, cells(device.used_mb - device.reserved_mb))
    drawn = Text("█" * held, "green")
    return drawn.append("▒" * other, "yellow").append("░" * (width - held - other), "dim")


def _devices(devices: Sequence[DeviceStatus], width: int) -> RenderableType:
    table, beside = Table.grid(padding=(0, _GAP, 0, 0)), _BESIDE_ALL if width >= _BESIDE_ALL + 8 else _BESIDE
    for right in (False, False, False, True, True):
        table.add_column(no_wrap=True, justify="right" if right else "left")
    for device in devices:
        table.add_row(
            Text(device.device, "bold"),
            bar(device, max(0, min(_BAR, width - beside))),
            f"{size(device.used_mb)} of {size(device.total_mb)} used"
            + (f", models {size(device.reserved_mb)}" if beside == _BESIDE_ALL else ""),
            f"{device.utilization_percent:.0f} %",
            f"{device.temperature_celsius:.0f} °C" if device.temperature_celsius else "",
        )
    return table


# --- the whole ---
def picture(
    look: Look, rates: Rates, url: str, width: int, height: int | None = None, *, problem: str = "", foot: str = ""
) -> RenderableType:
    """All of it, in `width` columns and, unless it is None, `height` lines. With a `problem` it is old, and dimmed.

    What has no room is counted; a few devices and the busiest models always have some.
    """
    head, devices, models = _head(look, rates, url), look.status.devices, rows(look, rates)
    above = [_line((text, "bold red")) for text in textwrap.wrap(problem, width)]
    # Apart from these there are three lines: two that are empty, and the columns' names.
    left = (height or _NO_LIMIT) - len(head) - len(above) - 3 - (2 if foot else 0)
    shown = _shown(len(devices), max(2, left // 2))
    parts: list[RenderableType] = [*head, _line(), _devices(devices[:shown], width), *_more(devices[shown:], "device")]
    left -= min(len(devices), shown + 1)
    reasons = [_line((f"{model.model_name}: {model.message}", "yellow")) for model in look.models if model.message]
    reasons = reasons[: min(_MOST_REASONS, max(0, left // 3))]
    shown = _shown(len(models), left - len(reasons))
    parts += [_line(), _models(models, shown, width) if models else _line(("no model is loaded", "dim"))]
    parts += [*_more(models[shown:], "model"), *reasons]
    below = [_line(), _line((foot, "dim"))] if foot else []
    return Group(*above, Styled(Group(*parts), "dim" if problem else ""), *below)


def _shown(count: int, room: int) -> int:
    """How many of so many lines are shown in the room for them: where not all are, one line says how many more."""
    return count if count <= room else max(0, room - 1)


def _more(left_out: Sequence[object], what: str) -> list[Text]:
    number = len(left_out)
    return [_line((f"and {number} more {what}{'' if number == 1 else 's'}", "dim"))] if number else []


def _head(look: Look, rates: Rates, url: str) -> list[Text]:
    status, health = look.status, look.health
    name, state = (f"ModelOps Coordinator {status.version}", "bold"), (health.status, _HEALTH[health.status])
    lines = [
        _line(name, "  ", state, f"  up {duration(status.uptime_seconds, 2)}  ", (url, "dim")),
        _line(
            *("requests ", (str(status.active_requests), "bold"), " active, "),
            *((str(status.queued_requests), "bold yellow" if status.queued_requests else "bold"), " waiting"),
            *("  jobs ", (str(status.learning_jobs_running), "bold")),
            *("  goals ", (str(status.goals_active), "bold")),
            *("  tokens/s ", (per_second(rates.total.written, rates), "bold cyan"), " written, "),
            *((per_second(rates.total.read, rates), "bold cyan"), " read"),
        ),
    ]
    down = [f"{part}: {state}" for part, state in health.components.items() if state != "healthy"]
    return [*lines, _line(("; ".join(down), "yellow"))] if down else lines


def _line(*words: str | tuple[str, str]) -> Text:
    """One line of words with their styles; it ends where the terminal does."""
    line = Text.assemble(*words, no_wrap=True, overflow="ellipsis")
    line.plain = legible(line.plain)
    return line
