"""What docs/goals.md, docs/api.md and README.md ask for is a goal."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from modelops.api.goals import CancelGoalRequest, CreateGoalRequest, Goal, GoalLimits, objective_of
from modelops.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs/goals.md", ROOT / "docs/api.md", ROOT / "README.md"]
CURL = re.compile(r"\$ curl (?:-X POST )?\S+/goals(/\S+/cancel)?(?: -[H] '[^']*')*\s*\\?\s*-d '(\{.*?\})'\n", re.DOTALL)
REQUESTS = [
    pytest.param(bool(cancel), body, id=f"{page.name}-{number}")
    for page in PAGES
    for number, (cancel, body) in enumerate(CURL.findall(page.read_text(encoding="utf-8")))
]
COMMANDS = [
    pytest.param(line.split(), id=line)
    for line in re.findall(
        r"^\$ modelops (goals .*)$", (ROOT / "docs/goals.md").read_text(encoding="utf-8"), re.MULTILINE
    )
]


def check(asked: dict[str, Any]) -> None:
    request = CreateGoalRequest.parse(asked)
    objective_of(request.objective)
    GoalLimits.parse(request.limits)


def test_requests_are_found() -> None:
    assert len(REQUESTS) >= 6
    assert len(COMMANDS) >= 5


@pytest.mark.parametrize(("cancel", "body"), REQUESTS)
def test_curl_asks_for_a_goal(cancel: bool, body: str) -> None:
    if cancel:
        CancelGoalRequest.parse({"goal_id": "g", **json.loads(body)})
    else:
        check(json.loads(body))


def test_programs_ask_for_a_goal() -> None:
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "docs/goals.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(programs) == 2
    found = [
        ast.literal_eval(node)
        for program in programs
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Dict) and {"type", "title"} & {getattr(key, "value", "") for key in node.keys}
    ]
    for asked in found:
        check(asked if "title" in asked else {"title": "of gRPC", "objective": asked})
    assert len(found) >= 2


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_exist(words: list[str]) -> None:
    command: Any = main
    known: set[str] = set()
    for word in words:
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
            known = {option for one in command.params for option in one.opts}
    assert command is not main
    assert {word for word in words if word.startswith("--")} <= known


def test_what_a_page_tells_of_a_goal_is_a_field() -> None:
    page = (ROOT / "docs/goals.md").read_text(encoding="utf-8")
    for name in ("attempts", "message", "metrics", "plan", "result"):
        assert f"`{name}`" in page
        assert name in Goal.model_fields
