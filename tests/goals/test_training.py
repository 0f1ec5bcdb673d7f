"""Goals of quality from a request to what is served, with a model that is trained in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from goals.taught import (
    ENV,
    HELD_OUT,
    LONG,
    OBJECTIVE,
    TRAIN,
    actions,
    asking,
    at,
    ended,
    nothing_is_left,
    wished,
)
from modelops.api.errors import Conflict, InvalidRequest, NotFound
from modelops.api.goals import Goal
from modelops.client import Client
from support import Served, serving, wait_until

pytestmark = pytest.mark.timeout(300)

POISONED = [{"prompt": row["prompt"], "completion": "blue"} for row in TRAIN]


@pytest.fixture(scope="module")
def taught(learning: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Goal]]:
    """A coordinator that was wished to know the colours, and that goal."""
    with serving(tmp_path_factory.mktemp("taught"), links=[("tiny", tiny)], env=ENV) as served:
        with asking(served) as asked:
            goal = ended(asked, wished(asked).goal_id)
        yield served, goal


@pytest.fixture
def served(taught: tuple[Served, Goal]) -> Iterator[Served]:
    """The same coordinator, with the first version active again."""
    with asking(taught[0]) as asked:
        asked.activate("tiny", "v1")
    yield taught[0]
    with asking(taught[0]) as asked:
        assert not asked.list_goals()
        nothing_is_left(taught[0], asked)


def labels(asked: Client) -> list[str]:
    return [version.model_version for version in asked.versions("tiny")]


def active(asked: Client) -> str:
    return next(version.model_version for version in asked.versions("tiny") if version.active)


def test_a_model_is_taught_until_it_reaches_the_target_and_then_it_is_served(taught: tuple[Served, Goal]) -> None:
    _, goal = taught
    assert goal.status == "completed", goal.error_message
    assert actions(goal) == ["baseline", "train", "promote", "confirm"]
    assert all(step.reason and not step.error_message for step in goal.steps)
    assert len(goal.learning_job_ids) == 3
    result = goal.result
    assert (result["baseline"]["version"], result["best"]["version"], result["promoted"]) == ("v1", "v2", "v2")
    assert result["baseline"]["score"] < 0.9 <= result["served_score"]
    (attempt,) = result["attempts"]
    assert attempt["passed"]
    assert attempt["p_loses"] == pytest.approx(1.0)
    assert attempt["regression_before"] is not None


def test_what_reaches_the_target_already_is_not_trained(served: Served) -> None:
    with asking(served) as asked:
        asked.activate("tiny", "v2")
        goal = ended(asked, wished(asked).goal_id)
        assert goal.status == "completed"
        assert actions(goal) == ["baseline"]
        assert goal.result["promoted"] == ""
        assert goal.result["best"] == goal.result["baseline"]


def test_what_was_taught_wrong_answers_is_never_promoted(served: Served) -> None:
    with asking(served) as asked:
        asked.activate("tiny", "v2")
        before = labels(asked)
        more = [{"prompt": f"tint of {n}", "completion": "green"} for n in range(8)]
        goal = ended(
            asked, wished(asked, {"max_jobs": 1}, train_dataset=POISONED, eval_dataset=HELD_OUT + more).goal_id
        )
        assert goal.status == "failed"
        assert "promote" not in actions(goal)
        (attempt,) = goal.result["attempts"]
        assert attempt["p_loses"] < 0.001
        assert "it loses to v2 on the held-out rows" in "; ".join(attempt["reasons"])
        assert goal.result["best"] == goal.result["baseline"]
        assert f"is {goal.result['baseline']['score']:.4g} with v2, and 0.9 is wanted" in goal.error_message
        assert (active(asked), labels(asked)) == ("v2", before), "what is no better is not kept"


def test_when_another_version_is_activated_meanwhile_that_is_judged_anew(served: Served) -> None:
    with asking(served) as asked:
        goal_id = wished(asked, {"max_jobs": 1}, target=1.0, parameters=LONG).goal_id
        job_id = str(at(asked, goal_id, "train").steps[-1].result["job_id"])
        wait_until(lambda: asked.get_job(job_id).status == "running", 20.0, "the training")
        asked.activate("tiny", "v2")
        goal = ended(asked, goal_id)
        assert actions(goal)[:4] == ["baseline", "train", "cancel_job", "baseline"]
        assert "v2 is active now" in goal.steps[2].reason
        assert asked.get_job(job_id).status == "cancelled"
        assert goal.result["baseline"]["version"] == "v2"
        assert active(asked) == "v2"


@pytest.mark.parametrize("step", ["baseline", "train"])
def test_a_goal_that_is_cancelled_leaves_nothing(served: Served, step: str) -> None:
    with asking(served) as asked:
        before = labels(asked)
        goal_id = wished(asked, parameters=LONG).goal_id
        wait_until(lambda: actions(asked.get_goal(goal_id))[-1:] == [step], 60.0, step)
        asked.cancel_goal(goal_id, "enough")
        goal = ended(asked, goal_id)
        assert (goal.status, goal.error_message) == ("cancelled", "enough")
        assert (labels(asked), active(asked)) == (before, "v1")


def test_a_model_that_is_removed_ends_the_goal(learning: None, tiny: Path, tmp_path: Path) -> None:
    with serving(tmp_path, links=[("tiny", tiny)], env=ENV) as served, asking(served) as asked:
        learning_goal = wished(asked, parameters=LONG).goal_id
        job_id = str(at(asked, learning_goal, "train").steps[-1].result["job_id"])
        asked.unload("tiny", force=True)
        with pytest.raises(Conflict, match=f"by the learning job {job_id}; cancel that"):
            asked.remove("tiny")
        asked.cancel_goal(learning_goal)
        ended(asked, learning_goal)
        goal_id = wished(asked, watch_seconds=60.0).goal_id
        at(asked, goal_id, "promote")
        asked.unload("tiny", force=True)
        asked.remove("tiny")
        goal = ended(asked, goal_id)
        assert (goal.status, goal.error_message) == ("failed", "the model 'tiny' was removed")
        nothing_is_left(served, asked)


# --- what is refused ---
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model_name": "nobody"}, NotFound, "there is no model 'nobody'"),
        ({"train_dataset": None}, InvalidRequest, "give train_dataset_path"),
        ({"eval_dataset": None}, InvalidRequest, "give eval_dataset_path"),
        ({"eval_dataset": TRAIN[3:5]}, InvalidRequest, r"in line 1 \(line 4 of train_dataset\), 2 \(line 5 of"),
        ({"eval_dataset": [{"prompt": " The colour OF 2?", "completion": "no"}]}, InvalidRequest, "line 3 of train"),
        ({"eval_dataset_path": "/etc/passwd", "eval_dataset": None}, InvalidRequest, "outside the dataset roots"),
        ({"eval_dataset": [{"text": "red"}]}, InvalidRequest, "judged by their perplexity"),
        ({"parameters": {"rank": 0}}, InvalidRequest, "parameters: rank"),
        ({"parameters": {"use_dora": True}}, InvalidRequest, "use_dora"),
    ],
)
def test_what_cannot_be_pursued_is_refused_when_it_is_created(
    served: Served, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with asking(served) as asked, pytest.raises(error, match=message):
        wished(asked, **fields)


def test_a_plan_says_what_it_takes_and_what_is_missing(served: Served) -> None:
    with asking(served) as asked:
        bare = OBJECTIVE | {"regression_dataset": None, "eval_dataset": HELD_OUT[:5]}
        goal = asked.create_goal("colours", bare, limits={"max_jobs": 2}, dry_run=True)
        assert goal.plan
        assert (goal.plan.rows, goal.plan.eval_rows, goal.plan.max_jobs) == (24, 5, 2)
        assert goal.plan.memory_mb > 0
        assert len(goal.plan.steps) == 4
        assert any("without regression_dataset" in warning for warning in goal.warnings)
        assert any("5 held-out rows tell little" in warning for warning in goal.warnings)
        again = OBJECTIVE | {"eval_dataset": HELD_OUT[:2] * 15}
        goal = asked.create_goal("colours", again, limits={"max_jobs": 0}, dry_run=True)
        assert goal.plan
        assert [step.split()[0] for step in goal.plan.steps] == ["judge", "train"]
        assert goal.plan.steps[1] == "train nothing (max_jobs is 0): where it does not reach that, the goal has failed"
        assert goal.plan.seconds == 0
        assert any("30 held-out rows, 2 of them different, tell little" in warning for warning in goal.warnings)


def test_two_goals_for_the_same_model_contradict_each_other(served: Served) -> None:
    with asking(served) as asked:
        goal_id = wished(asked, parameters=LONG).goal_id
        with pytest.raises(Conflict, match=goal_id):
            wished(asked)
        asked.cancel_goal(goal_id)
        assert ended(asked, goal_id).status == "cancelled"
