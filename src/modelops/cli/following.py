"""What goes on for long is followed: while its coordinator is restarted too, as events, or as a picture."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from modelops.api.errors import ModelOpsError

_AGAIN_S = 1.0  # between two tries to reach a coordinator that was there before
_LOOK_S = 1.0  # not all that changes is an event
_PASSING = ("unreachable", "overloaded")  # a coordinator that is restarted goes on


class Event(Protocol):
    """Something that has happened."""

    @property
    def number(self) -> int:
        """Events are numbered as they happen."""


E = TypeVar("E", bound=Event)
C = TypeVar("C", bound=Event, contravariant=True)
#: Begins to watch after the event of a number.
Watch: TypeAlias = Callable[[int], Generator[E]]


class Sight(Protocol[C]):
    """What somebody sees who follows it."""

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""

    def hear(self, event: C) -> None:
        """Something has happened."""

    def miss(self, why: str) -> None:
        """Nothing can be heard now."""

    def look(self) -> None:
        """Ask how it stands."""

    def picture(self, width: int) -> RenderableType:
        """All of it, so wide."""


def followed(watch: Watch[E], *, follow: bool) -> Iterator[E | str]:
    """What happens, and why nothing is heard of it for a while. Who follows it has asked for it before: a coordinator
    that does not answer is waited for, whether or not anything has happened yet."""
    from modelops.api.errors import ModelOpsError

    last = 0
    while True:
        try:
            for event in watch(last):
                last = event.number
                yield event
        except ModelOpsError as error:
            if not (follow and error.code in _PASSING):
                raise
            reason = error.message.partition(";")[0]
            yield f"{reason}; trying again"
            threading.Event().wait(_AGAIN_S)  # nobody sets it
        else:
            return


def drawn(watch: Watch[E], seen: Sight[E]) -> None:
    """Draw how it goes until it has ended. Raises KeyboardInterrupt where somebody leaves."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    heard: queue.SimpleQueue[E | str | ModelOpsError] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(watch, heard), name="events", daemon=True).start()
    with Live(console=console, auto_refresh=False) as drawing:
        due = 0.0
        while not seen.ended:
            drawing.update(seen.picture(console.width), refresh=True)
            _take(heard, seen)
            if time.monotonic() >= due:
                due = time.monotonic() + _LOOK_S
                _look(seen)
        drawing.update(seen.picture(console.width), refresh=True)


def bar(progress: float, told: str, width: int, style: str, told_style: str) -> Text:
    """How far it is, and in words."""
    from rich.text import Text

    columns = max(8, min(48, width - len(told)))
    done = round(columns * progress)
    return Text("█" * done, style, no_wrap=True).append("░" * (columns - done), "dim").append(told, told_style)


def _hear(watch: Watch[E], heard: queue.SimpleQueue[E | str | ModelOpsError]) -> None:
    from modelops.api.errors import ModelOpsError

    try:
        for event in followed(watch, follow=True):
            heard.put(event)
    except ModelOpsError as error:
        heard.put(error)
    except RuntimeError:
        pass  # the client is closed: somebody has left


def _take(heard: queue.SimpleQueue[E | str | ModelOpsError], seen: Sight[E]) -> None:
    """Wait a moment for what happens, and take all that has."""
    from modelops.api.errors import ModelOpsError

    try:
        found = heard.get(timeout=_LOOK_S / 2)
        while True:
            if isinstance(found, ModelOpsError):
                raise found
            if isinstance(found, str):
                seen.miss(found)
            else:
                seen.hear(found)
            found = heard.get_nowait()
    except queue.Empty:
        pass


def _look(seen: Sight[E]) -> None:
    from modelops.api.errors import ModelOpsError

    try:
        seen.look()
    except ModelOpsError as error:
        if error.code not in _PASSING:
            raise
