"""What docs/goals.md tells of a goal is there; what is asked for on it is run by tests/contract/test_work_pages.py."""

from __future__ import annotations

from pathlib import Path

from modelops.api.goals import Goal

PAGE = Path(__file__).parents[2] / "docs/goals.md"


def test_what_a_page_tells_of_a_goal_is_a_field() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in ("attempts", "message", "metrics", "plan", "result"):
        assert f"`{name}`" in page
        assert name in Goal.model_fields
