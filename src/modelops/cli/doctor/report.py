"""How findings are told: to a person as they are found, to a program as one object."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

import click

from modelops.cli.doctor.findings import Finding, State, count

_COLOURS: dict[State, str] = {"ok": "green", "warning": "yellow", "wrong": "red"}
_MARGIN = " " * 11  # as wide as the mark
_NO_LIMIT = 10_000  # columns


def tell(findings: Iterable[Finding]) -> bool:
    """Lines in groups, and a last one that sums up; whether nothing is wrong."""
    states: Counter[State] = Counter()
    area = ""
    for finding in findings:
        if finding.area != area:
            click.echo(("\n" if area else "") + click.style(finding.area, bold=True))
            area = finding.area
        states[finding.state] += 1
        mark = click.style(f"{finding.state:<9}", fg=_COLOURS[finding.state])
        click.echo(f"  {mark}{_wrapped(f'{finding.name}: {finding.found}')}")
        if finding.mend:
            click.echo(f"{_MARGIN}{click.style('mend', bold=True)}: {_wrapped(finding.mend, behind=len('mend: '))}")
    click.echo(f"\n{_summary(states)}")
    return not states["wrong"]


def tell_json(findings: Iterable[Finding]) -> bool:
    """One line of JSON; whether nothing is wrong."""
    checks = [asdict(finding) for finding in findings]
    well = all(check["state"] != "wrong" for check in checks)
    click.echo(json.dumps({"checks": checks, "ok": well}, ensure_ascii=False))
    return well


def _summary(states: Counter[State]) -> str:
    warnings = count(states["warning"], "warning")
    if states["wrong"]:
        things = "1 thing is" if states["wrong"] == 1 else f"{states['wrong']} things are"
        return f"{things} wrong" + (
            f", and there {'is' if states['warning'] == 1 else 'are'} {warnings}." if states["warning"] else "."
        )
    return f"Nothing is wrong; {warnings}." if states["warning"] else "Nothing is wrong."


def _wrapped(text: str, behind: int = 0) -> str:
    """In a terminal, lines that begin below each other; a program gets one line."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _NO_LIMIT
    margin = _MARGIN + " " * behind
    lines = textwrap.wrap(
        text,
        max(width, 60),
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).strip()
