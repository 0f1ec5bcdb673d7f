"""How a learning job goes, while it goes: as lines, or as a picture that is drawn over."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from modelops.api.errors import ModelOpsError
    from modelops.api.learning import JobEvent, LearningJob
    from modelops.cli.curve import Point
    from modelops.client import Client

_AGAIN_S = 1.0  # between two tries to reach a coordinator that was there before
_LOOK_S = 1.0  # whether the job is paused is no event
_MOST_LINES = 10  # of the curve
_PASSING = ("unreachable", "overloaded")  # a coordinator that is restarted goes on with the job


def lines(client: Client, job_id: str, *, follow: bool, as_json: bool) -> LearningJob:
    """Print each event as a line; the job as it is then."""
    from modelops.cli.jobwords import line

    for event in _events(client, job_id, follow=follow):
        if isinstance(event, str):
            click.echo(f"modelops: {event}", err=True)
        elif as_json:
            click.echo(event.model_dump_json(exclude_none=True))
        elif event.message or event.metrics or event.kind == "step":  # or it only tells that the job has not ended
            click.echo(line(event))
        if not isinstance(event, str) and event.job:
            return event.job
    return client.get_job(job_id)


def live(client: Client, job: LearningJob) -> LearningJob:
    """Draw how it goes until it has ended; the job as it is then. Raises KeyboardInterrupt where somebody leaves."""
    from rich.console import Console
    from rich.live import Live

    console, seen = Console(), _Sight(job)
    heard: queue.SimpleQueue[JobEvent | str | ModelOpsError] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(client, job.job_id, heard), name="events", daemon=True).start()
    with Live(console=console, auto_refresh=False) as drawing:
        due = 0.0
        while not seen.ended:
            drawing.update(seen.picture(console.width), refresh=True)
            _take(heard, seen)
            if time.monotonic() >= due:
                due = time.monotonic() + _LOOK_S
                _look(client, seen)
        drawing.update(seen.picture(console.width), refresh=True)
    return seen.job


def _events(client: Client, job_id: str, *, follow: bool) -> Iterator[JobEvent | str]:
    """What happens to the job, and why nothing is heard of it for a while. Who follows it has asked for it before:
    a coordinator that does not answer is waited for, whether or not anything has happened to the job yet."""
    from modelops.api.errors import ModelOpsError

    last = 0
    while True:
        try:
            for event in client.watch_job(job_id, after=last, follow=follow):
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


def _hear(client: Client, job_id: str, heard: queue.SimpleQueue[JobEvent | str | ModelOpsError]) -> None:
    from modelops.api.errors import ModelOpsError

    try:
        for event in _events(client, job_id, follow=True):
            heard.put(event)
    except ModelOpsError as error:
        heard.put(error)
    except RuntimeError:
        pass  # the client is closed: somebody has left


def _take(heard: queue.SimpleQueue[JobEvent | str | ModelOpsError], seen: _Sight) -> None:
    """Wait a moment for what happens, and take all that has."""
    from modelops.api.errors import ModelOpsError

    try:
        found = heard.get(timeout=_LOOK_S / 2)
        while True:
            if isinstance(found, ModelOpsError):
                raise found
            seen.hear(found)
            found = heard.get_nowait()
    except queue.Empty:
        pass


def _look(client: Client, seen: _Sight) -> None:
    from modelops.api.errors import ModelOpsError

    try:
        seen.job = client.get_job(seen.job.job_id)
    except ModelOpsError as error:
        if error.code not in _PASSING:
            raise


@dataclass
class _Sight:
    """What is known of the job by now."""

    job: LearningJob
    step: str = ""
    losses: list[Point] = field(default_factory=list)
    held_out: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    ended: bool = False

    def hear(self, event: JobEvent | str) -> None:
        """Something has happened, or nothing can be heard."""
        if isinstance(event, str):
            self.problem = event
            return
        self.problem = ""
        if event.kind in ("log", "warning") and event.message:
            self.notes = [*self.notes, event.message][-3:]
        metrics = event.metrics
        if isinstance(at := metrics.get("step"), int):
            for name, points in (("train_loss", self.losses), ("eval_loss", self.held_out)):
                value = metrics.get(name)
                if isinstance(value, int | float) and (not points or points[-1][1] != value or name == "train_loss"):
                    points.append((at, value))
        if event.job:
            self.job = event.job
        self.ended = event.done

    def picture(self, width: int) -> RenderableType:
        """All of it, so wide."""
        from rich.console import Group
        from rich.text import Text

        from modelops.cli.curve import curves
        from modelops.cli.jobwords import figures, plan

        job = self.job
        parts: list[RenderableType] = [Text.assemble((f"job {job.job_id}  ", "bold"), plan(job), no_wrap=True)]
        parts += [_bar(job, width), Text(figures(job.metrics), no_wrap=True, overflow="ellipsis")]
        drawn = curves([(self.losses, "cyan"), (self.held_out, "yellow")], min(width, 100), _MOST_LINES)
        if drawn:
            parts.append(Text.assemble(("          loss", "cyan"), ("  held-out loss" * bool(self.held_out), "yellow")))
        parts += [*drawn, *(Text(note, "dim") for note in self.notes)]
        if job.message:
            parts.append(Text(job.message, "yellow"))
        if self.problem:
            parts.append(Text(self.problem, "bold red"))
        return Group(*parts)


def _bar(job: LearningJob, width: int) -> Text:
    from rich.text import Text

    from modelops.cli.jobwords import state

    styles = {"running": "green", "completed": "bold green", "failed": "bold red"}
    told = f"  {state(job)}" if job.status == "running" else f"  {job.status} {job.progress:.0%}"
    columns = max(8, min(48, width - len(told)))
    done = round(columns * job.progress)
    bar = Text("█" * done, "yellow" if job.paused else "green", no_wrap=True).append("░" * (columns - done), "dim")
    return bar.append(told, "bold yellow" if job.paused else styles.get(job.status, "bold"))
