"""How a learning job goes, while it goes: as lines, or as a picture that is drawn over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from modelops.cli.following import bar, drawn, followed
from modelops.cli.terminal import print_line, stacked

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from modelops.api.learning import JobEvent, LearningJob
    from modelops.cli.curve import Point
    from modelops.cli.following import Watch
    from modelops.client import Client

_MOST_LINES = 10  # of the curve


def lines(client: Client, job_id: str, *, follow: bool, as_json: bool) -> LearningJob:
    """Print each event as a line; the job as it is then."""
    from modelops.cli.jobwords import line

    for event in followed(_watch(client, job_id, follow=follow), follow=follow):
        if isinstance(event, str):
            print_line(f"modelops: {event}", err=True)
        elif as_json:
            click.echo(event.model_dump_json(exclude_none=True))
        elif event.message or event.metrics or event.kind == "step":  # or it only tells that the job has not ended
            print_line(line(event))
        if not isinstance(event, str) and event.job:
            return event.job
    return client.get_job(job_id)


def live(client: Client, job: LearningJob) -> LearningJob:
    """Draw how it goes until it has ended; the job as it is then. Raises KeyboardInterrupt where somebody leaves."""
    seen = _Sight(client, job)
    drawn(_watch(client, job.job_id, follow=True), seen)
    return seen.job


def _watch(client: Client, job_id: str, *, follow: bool) -> Watch[JobEvent]:
    return lambda after: client.watch_job(job_id, after=after, follow=follow)


@dataclass
class _Sight:
    """What is known of the job by now."""

    client: Client
    job: LearningJob
    losses: list[Point] = field(default_factory=list)
    held_out: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    ended: bool = False

    def miss(self, why: str) -> None:
        """Nothing can be heard now."""
        self.problem = why

    def hear(self, event: JobEvent) -> None:
        """Something has happened."""
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

    def look(self) -> None:
        """Whether the job is paused is no event."""
        self.job = self.client.get_job(self.job.job_id)

    def picture(self, width: int) -> RenderableType:
        """All of it, so wide."""
        from rich.text import Text

        from modelops.cli.curve import curves
        from modelops.cli.jobwords import figures, plan

        job = self.job
        parts = [Text.assemble((f"job {job.job_id}  ", "bold"), plan(job), no_wrap=True)]
        parts += [_bar(job, width), Text(figures(job.metrics), no_wrap=True, overflow="ellipsis")]
        curve = curves([(self.losses, "cyan"), (self.held_out, "yellow")], min(width, 100), _MOST_LINES)
        if curve:
            parts.append(Text.assemble(("          loss", "cyan"), ("  held-out loss" * bool(self.held_out), "yellow")))
        parts += [*curve, *(Text(note, "dim") for note in self.notes)]
        if job.message:
            parts.append(Text(job.message, "yellow"))
        if self.problem:
            parts.append(Text(self.problem, "bold red"))
        return stacked(parts)


def _bar(job: LearningJob, width: int) -> Text:
    from modelops.cli.jobwords import state

    styles = {"running": "green", "completed": "bold green", "failed": "bold red"}
    where = f" in {job.step}" if job.step else ""  # of one that has failed, or was cancelled
    told = f"  {state(job)}" if job.status == "running" else f"  {job.status}{where} {job.progress:.0%}"
    style = "bold yellow" if job.paused else styles.get(job.status, "bold")
    return bar(job.progress, told, width, "yellow" if job.paused else "green", style)
