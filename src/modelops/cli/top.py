"""`modelops top`: what a coordinator does, while it does it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from modelops.cli.common import client_command

if TYPE_CHECKING:
    from modelops.cli.looks import Look, Rates
    from modelops.client import Client

_LEAST_S, _MOST_S = 0.2, 3600.0
_ANSWER_S = 10.0  # a coordinator that does not say how it is within this time does not answer
_FINAL = ("unauthenticated", "permission_denied")  # trying again would not help
_NO_LIMIT = 10_000  # columns


def _seconds(_: click.Context, __: click.Parameter, value: float) -> float:
    if not _LEAST_S <= value <= _MOST_S:  # also what is no number
        raise click.BadParameter(f"is between {_LEAST_S:g} and {_MOST_S:g} seconds")
    return value


@client_command("top", timeout_s=_ANSWER_S)
@click.option(
    "--interval",
    type=float,
    default=1.0,
    metavar="SECONDS",
    callback=_seconds,
    help="Between two looks, 0.2 at least.  [default: 1]",
)
@click.option("--once", is_flag=True, help="Print one picture as text, and end.")
def top(client: Client, interval: float, once: bool, as_json: bool) -> None:
    """Watch devices, models, requests and tokens per second, live.

    q or Ctrl-C ends it. Where standard output is no terminal it prints one picture; with --json, one object for each
    interval.
    """
    from modelops.cli.screen import is_terminal

    if as_json:
        for found, rates in _watched(client, interval):
            click.echo(_line(found, rates))
            if once:
                return
    elif once or not is_terminal():
        _print(client, *next(_watched(client, interval)))
    else:
        _live(client, interval)


def _watched(client: Client, interval: float) -> Iterator[tuple[Look, Rates]]:
    """A look after each interval, and the rates of that interval."""
    from modelops.cli.looks import look, rates

    due, before = time.monotonic() + interval, look(client)
    while True:
        threading.Event().wait(max(0.0, due - time.monotonic()))  # nobody sets it
        due, after = time.monotonic() + interval, look(client)
        yield after, rates(before, after)
        before = after


def _line(found: Look, rates: Rates) -> str:
    told = {
        "at": found.health.model_dump(mode="json")["timestamp"],
        "status": found.status.model_dump(mode="json"),
        "models": [model.model_dump(mode="json") for model in found.models],
        "rates": rates.as_json(),
    }
    return json.dumps(told, ensure_ascii=False)


def _print(client: Client, found: Look, rates: Rates) -> None:
    from rich.console import Console

    from modelops.cli.picture import picture

    console = Console()
    if not console.is_terminal:
        console.width = _NO_LIMIT
    console.print(picture(found, rates, client.url, console.width))


# --- live ---
class _Sight:
    """What was seen last; with a problem, it is old."""

    def __init__(self, client: Client) -> None:
        from modelops.cli.looks import Rates, look

        self._client = client
        self.look = look(client)
        self.rates = Rates()
        self.problem = ""

    def renew(self) -> None:
        """Look again. Raises what another try would not help against."""
        from modelops.api.errors import ModelOpsError
        from modelops.cli.looks import Rates, look, rates

        try:
            found = look(self._client)
        except ModelOpsError as error:
            if error.code in _FINAL:
                raise
            reason = error.message.partition(";")[0]  # not what to do: that is done already
            lost = "cannot be reached: " if error.code == "unreachable" else ""
            self.problem = f"{lost}{reason}; trying again"
            return
        # Over a gap, rates would be means of a time in which nobody looked.
        self.rates = Rates() if self.problem else rates(self.look, found)
        self.look, self.problem = found, ""


def _live(client: Client, interval: float) -> None:
    """Until somebody ends it."""
    sight = _Sight(client)  # before the screen is taken: what is wrong from the start ends it, as any command
    try:
        while _shown(sight, client.url, interval) == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
    except KeyboardInterrupt:
        pass


def _shown(sight: _Sight, url: str, interval: float) -> str:
    """Show it until a key says otherwise: "ended", or "stopped", to go on when the shell says so."""
    from modelops.cli.picture import picture
    from modelops.cli.screen import STOP, full_screen

    foot = f"every {interval:g} s; q ends"
    with full_screen() as screen:
        due = time.monotonic() + interval
        while True:
            size = (screen.width, screen.height)
            screen.draw(picture(sight.look, sight.rates, url, *size, problem=sight.problem, foot=foot))
            keys = screen.pressed(due - time.monotonic())
            if "q" in keys.lower():
                return "ended"
            if STOP in keys:
                return "stopped"
            if time.monotonic() >= due:
                due = time.monotonic() + interval
                sight.renew()
