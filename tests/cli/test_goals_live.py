"""`modelops goals watch` in a terminal: drawn while the goal is pursued, left without ending it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cli.terminal import CURSOR, Terminal, terminal
from kept_goals import CREATED, GOAL, STEPS, keep_goal, memo, write_goals
from modelops.client import Client
from modelops.store.goals import GoalQueries
from support import Served, serving, tiny_gguf, wait_until

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
NOBODY = {"MODELOPS_GOALS__MAX_ACTIVE": "0"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A coordinator with the goal `wanted`, which another one pursues; it pursues none itself."""
    claimed = replace(
        GOAL,
        id="wanted",
        status="active",
        memo=memo(STEPS[0], replace(STEPS[1], ended_s=None, result={})),
        progress=0.25,
        metrics={"jobs": 1},
        result={},
        completed_at=None,
        target_completion=None,
        message="job j2 is trained",
        lease_owner="another",
        lease_until=time.time() + 3600,
        fence=1,
    )
    keep_goal(tmp_path / "data", claimed, [])
    with serving(tmp_path / "data", links=[("quick", tiny_gguf(tmp_path / "q.gguf"))], fake={}, env=NOBODY) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def progress(served: Served, done: float, message: str) -> None:
    """Whoever pursues the goal is so far."""

    async def write(queries: GoalQueries) -> None:
        await queries.note("wanted", 1, progress=done, message=message)
        await queries.tell("wanted", time.time(), "log", message=f"so far: {message}")

    asyncio.run(write_goals(served.data_dir, write))


def ended(served: Served, status: str, error: str = "") -> None:
    async def write(queries: GoalQueries) -> None:
        await queries.end("wanted", 1, status, CREATED + 200, result={"model_version": "v2"}, error=error)

    asyncio.run(write_goals(served.data_dir, write))


def shows(watching: Terminal, pattern: str) -> str:
    """Wait until it has been drawn; all that was drawn so far, in plain text."""
    return str(
        wait_until(
            lambda: re.search(pattern, told := _ESCAPES.sub("", watching.output).replace("\r", "\n")) and told,
            seconds=20,
            what=pattern,
        )
    )


def test_a_goal_is_drawn_until_it_has_ended(served: Served) -> None:
    with terminal("goals", "watch", "wanted", url=served.rest, size=(120, 30)) as watching:
        told = shows(watching, r"goal wanted  capitals are known: quality of quick: exact_match at least 0\.95")
        told = shows(watching, "job j2 is trained")
        assert re.search(r"█+░+  active 25%", told)
        assert "✓   1  baseline    nothing is known of it yet → job_id j1, exact_match 0.25" in told
        assert "…   2  train       it is under its target" in told
        progress(served, 0.5, "it is half way")
        told = shows(watching, "so far: it is half way")
        shows(watching, r"active 50%")
        ended(served, "completed")
        assert watching.ended() == 0
        assert "goal wanted is completed: quality of quick" in watching.output
        assert watching.output.rfind(CURSOR) > watching.output.rfind("\x1b[?25l")


def test_nothing_that_is_told_steers_the_terminal(served: Served) -> None:
    with terminal("goals", "watch", "wanted", url=served.rest, size=(120, 30)) as watching:
        progress(served, 0.5, "\x1b]0;half\nway")
        shows(watching, r"so far:  \]0;half way")
        assert "\x1b]0" not in watching.output


def test_who_leaves_does_not_end_the_goal(served: Served) -> None:
    with terminal("goals", "watch", "wanted", url=served.rest, size=(60, 20)) as watching:
        shows(watching, "job j2 is trained")
        watching.type("\x03")
        assert watching.ended() == 130
        assert "the goal goes on" in watching.output
        assert watching.restored()
    with Client(served.rest) as client:
        assert client.get_goal("wanted").status == "active"


def test_a_goal_that_fails_says_why_and_so_does_the_status(served: Served) -> None:
    with terminal("goals", "watch", "wanted", url=served.rest) as watching:
        shows(watching, "goal wanted")
        ended(served, "failed", "nothing reached the target")
        assert watching.ended() == 1
        assert "goal wanted failed: nothing reached the target" in watching.output


def test_a_coordinator_that_is_restarted_is_waited_for(served: Served) -> None:
    port = served.rest.rpartition(":")[2]
    with terminal("goals", "watch", "wanted", url=served.rest) as watching:
        shows(watching, "goal wanted")
        served.stop()
        shows(watching, "trying again")
        with serving(served.data_dir, fake={}, env={**NOBODY, "MODELOPS_SERVER__REST_PORT": port}) as again:
            progress(again, 0.75, "it goes on")
            shows(watching, "it goes on")
            ended(again, "completed")
            assert watching.ended() == 0
