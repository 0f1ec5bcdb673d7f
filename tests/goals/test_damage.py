"""Goals of quality whose version is damaged on the disk once it is served, with a model that is trained in a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.callers import programs
from damages import Damage, deleted, spoiled, truncated
from goals.taught import ENV, actions, asking, at, ended, nothing_is_left, wished
from support import Served, serving, wait_until

pytestmark = pytest.mark.timeout(300)

#: What fails once it is promoted begins to be rolled back so soon.
ROLLS_BACK_S = 2.0


@pytest.fixture(scope="module")
def served(learning: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("damaged"), links=[("tiny", tiny)], env=ENV) as served:
        yield served


@pytest.mark.parametrize("damage", [truncated, spoiled, deleted])
def test_a_version_whose_file_is_damaged_once_it_is_served_is_rolled_back(served: Served, damage: Damage) -> None:
    with asking(served) as asked:
        goal_id = wished(asked, watch_seconds=60.0).goal_id
        version = str(at(asked, goal_id, "promote").steps[-1].result["version"])
        wait_until(lambda: len(programs(served)) == 1, what="the end of the engine before")
        (engine,) = programs(served)
        (file,) = (served.data_dir / "models" / "published").iterdir()
        damage(file)
        damaged_at = time.time()
        engine.kill()  # what was read before does not help it
        assert [model.model_name for model in asked.models(all=True)] == ["tiny"]
        assert {found.model_version for found in asked.versions("tiny")} <= {"v1", version}
        goal = ended(asked, goal_id)
        assert actions(goal) == ["baseline", "train", "promote", "roll_back", "discard"]
        undone = goal.steps[-2]
        assert undone.started_at.timestamp() - damaged_at < ROLLS_BACK_S
        why = f"{version} was damaged when it was served: its file is gone, or not what was published any more"
        assert (goal.status, goal.error_message, undone.reason) == ("failed", why, why)
        assert [(found.model_version, found.active) for found in asked.versions("tiny")] == [("v1", True)]
        assert asked.infer("tiny", "the colour of 3?", max_tokens=2).model_version == "v1"
        nothing_is_left(served, asked)
        assert not file.exists()
