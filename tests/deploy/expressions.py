"""The expressions of the dashboard, of the alerts and of the specification, and the names that stand in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.prometheus import DEPLOY, RULES

SPECIFICATION = Path(__file__).resolve().parents[2] / "docs" / "spec" / "api.md"
#: What Grafana puts in the place of its variables.
_VARIABLES = {"$__rate_interval": "2m", "$__range": "1h", "$instance": ".*", "$model": ".*"}
_NAME = re.compile(r"\b(?:moc|process|python)_\w+|\bup\b")


def dashboard() -> dict[str, Any]:
    found = json.loads((DEPLOY / "grafana" / "modelops.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def panels() -> list[dict[str, Any]]:
    """All panels that are no headings."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def targets() -> Iterator[tuple[str, str]]:
    """(the panel's title, an expression of it), as written."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def alerts() -> dict[str, str]:
    """Name → expression."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def specified() -> dict[str, str]:
    """The dashboard queries of the specification: title → query."""
    (block,) = re.findall(r"```promql\n(.*?)```", SPECIFICATION.read_text(encoding="utf-8"), re.DOTALL)
    return dict(re.findall(r"^# (.+)\n(.+)$", block, re.MULTILINE))


def filled(expression: str) -> str:
    """The expression as Grafana sends it, with everything chosen."""
    for variable, value in _VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression
    return expression


def names(expression: str) -> set[str]:
    """The metrics in it."""
    return set(_NAME.findall(re.sub(r'"[^"]*"', "", expression)))
