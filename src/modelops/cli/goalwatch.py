"""How a goal is pursued, while it is: as lines, or as a picture that is drawn over."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from modelops.cli.following import bar, drawn, followed
from modelops.cli.terminal import print_line, stacked

if TYPE_CHECKING:
    from rich.console import RenderableType

    from modelops.api.goals import Goal, GoalEvent
    from modelops.cli.following import Watch
    from modelops.client import Client

_LAST_STEPS = 8  # that are drawn
_STYLES = {"active": "green", "completed": "bold green", "failed": "bold red"}


def lines(client: Client, goal_id: str, *, as_json: bool) -> Goal:
    """Print each event as a line, until the goal has ended; the goal as it is then."""
    from modelops.cli.goalwords import line

    for event in followed(_watch(client, goal_id), follow=True):
        if isinstance(event, str):
            print_line(f"modelops: {event}", err=True)
        elif as_json:
            click.echo(event.model_dump_json(exclude_none=True))
        elif event.message or event.metrics:  # or it only tells how the goal stands
            print_line(line(event))
        if not isinstance(event, str) and event.goal:
            return event.goal
    return client.get_goal(goal_id)


def live(client: Client, goal: Goal) -> Goal:
    """Draw how it goes until it has ended; the goal as it is then. Raises KeyboardInterrupt where somebody leaves."""
    seen = _Sight(client, goal)
    drawn(_watch(client, goal.goal_id), seen)
    return seen.goal


def _watch(client: Client, goal_id: str) -> Watch[GoalEvent]:
    return lambda after: client.watch_goal(goal_id, after=after)


@dataclass
class _Sight:
    """What is known of the goal by now."""

    client: Client
    goal: Goal
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    ended: bool = False

    def miss(self, why: str) -> None:
        """Nothing can be heard now."""
        self.problem = why

    def hear(self, event: GoalEvent) -> None:
        """Something has happened."""
        self.problem = ""
        if event.message and (event.done or event.kind in ("log", "warning")):
            self.notes = [*self.notes, event.message][-3:]
        if event.goal:
            self.goal = event.goal
        self.ended = event.done

    def look(self) -> None:
        """Its steps, and what it does now, stand in the goal."""
        self.goal = self.client.get_goal(self.goal.goal_id)

    def picture(self, width: int) -> RenderableType:
        """All of it, so wide."""
        from rich.text import Text

        from modelops.cli.goalwords import counted, outcome, wish

        goal = self.goal
        style = _STYLES.get(goal.status, "bold")
        parts = [
            Text.assemble((f"goal {goal.goal_id}  ", "bold"), f"{goal.title}: {wish(goal)}", no_wrap=True),
            bar(goal.progress, f"  {goal.status} {goal.progress:.0%}", width, "green", style),
        ]
        parts += [Text(told, no_wrap=True, overflow="ellipsis") for _, told in counted(goal)]
        for step in goal.steps[-_LAST_STEPS:]:
            mark = "✗" if step.error_message else "✓" if step.completed_at else "…"
            told = Text.assemble(f"{mark} {step.number:>3}  ", (f"{step.action:<10}  ", "cyan"), step.reason)
            if step.completed_at and (came := outcome(step)):
                told.append(f" → {came}", "dim")
            parts.append(told)
        parts += [Text(note, "dim") for note in self.notes]
        if goal.message:
            parts.append(Text(goal.message, "yellow"))
        if self.problem:
            parts.append(Text(self.problem, "bold red"))
        return stacked(parts)
