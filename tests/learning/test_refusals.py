"""What is wrong with a job is said when it is created, or ends it with the reason; and nothing of it is left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.callers import client
from ggufs import make as make_gguf
from modelops.api.errors import DiskFull, InsufficientMemory, InvalidRequest, NotFound
from modelops.api.learning import LearningJob
from modelops.client import Client
from support import Served, serving, wait_until

ROWS = [{"prompt": f"the colour of {n}?", "completion": "red"} for n in range(8)]


@pytest.fixture(scope="module")
def house(learning: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator on which jobs are created and none is begun."""
    folder = tmp_path_factory.mktemp("house")
    with serving(folder, links=[("tiny", tiny)], env={"MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0"}) as served:
        yield served


@pytest.fixture
def asked(house: Served) -> Iterator[Client]:
    with client(house) as asked:
        yield asked
        assert asked.list_jobs() == []
        assert not list((house.data_dir / "learning" / "jobs").iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    ("field", "rows", "said"),
    [
        ("dataset", [], "dataset"),
        ("dataset", [*ROWS, {"prompt": "a question"}], "line 9|row 9"),
        ("dataset", [*ROWS, 3, "red"], "^dataset: row 9: is no JSON object; row 10: is no JSON object$"),
        ("dataset", [{"prompt": 3, "completion": "red"}], "line 1|row 1"),
        ("dataset", [{"messages": [{"role": "user", "content": "no answer"}]}], "line 1|row 1"),
        ("eval_dataset", [{"completion": "red"}], "eval_dataset"),
        ("regression_dataset", [{"chosen": "red"}], "regression_dataset"),
    ],
)
def test_bad_rows_are_named(asked: Client, field: str, rows: list[Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        asked.create_job("lora", "tiny", **{"dataset": ROWS} | {field: rows})
    assert "a question" not in refused.value.message, "values stay out of what is said"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": \xff}\n', "line 2"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n', "line 2"),
        (b"\n\n", "no rows|empty|at least one"),
    ],
)
def test_a_file_is_read_line_by_line(house: Served, asked: Client, content: bytes, said: str) -> None:
    folder = house.data_dir / "datasets"
    folder.mkdir(exist_ok=True)
    (folder / "bad.jsonl").write_bytes(content)
    with pytest.raises(InvalidRequest, match=said):
        asked.create_job("lora", "tiny", dataset_path="bad.jsonl")


def test_only_files_under_the_dataset_roots_are_read(house: Served, asked: Client, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    folder = house.data_dir / "datasets"
    folder.mkdir(exist_ok=True)
    (folder / "leads-out.jsonl").unlink(missing_ok=True)
    (folder / "leads-out.jsonl").symlink_to(tmp_path / "rows.jsonl")
    for path in (str(tmp_path / "rows.jsonl"), "../state.db", "leads-out.jsonl"):
        with pytest.raises(InvalidRequest, match="outside the dataset roots") as refused:
            asked.create_job("lora", "tiny", dataset_path=path)
        assert str(tmp_path) not in refused.value.message
    with pytest.raises(NotFound, match="no such file"):
        asked.create_job("lora", "tiny", dataset_path="missing.jsonl")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"job_type": "evaluate", "output_model_name": "tiny:x"}, "publishes nothing"),
        ({"job_type": "evaluate", "eval_dataset": ROWS}, "judges the rows of dataset"),
        ({"dataset_path": "rows.jsonl"}, "not both"),
        ({"dataset": None}, "give dataset_path"),
        ({"output_model_name": "other:x"}, "'other:x' is not 'tiny:NAME'"),
        ({"output_model_name": "tiny:"}, "'tiny:' is not 'tiny:NAME'"),
        ({"parameters": {"rank": 0}}, "parameters: rank"),
        ({"parameters": {"learning_rat": 0.1}}, "did you mean 'learning_rate'"),
        (
            {"parameters": {"evaluation": {"foo": 1}}},
            "^parameters.evaluation: unknown field 'foo': known fields: metrics",
        ),
        ({"parameters": {"evaluation": {"metric": []}}}, "unknown field 'metric': did you mean 'metrics'?"),
        ({"parameters": {"evaluation": 3}}, "^parameters: evaluation: "),
        ({"parameters": {"use_dora": True}}, "parameters.use_dora: a GGUF adapter cannot hold that"),
        ({"parameters": {"modules_to_save": ["lm_head"]}}, "a GGUF adapter cannot hold that"),
        ({"job_type": "dpo"}, "chosen"),
        ({"eval_dataset": [{"text": "a text"}]}, "perplexity"),
    ],
)
def test_what_makes_no_sense_is_refused(asked: Client, changes: dict[str, Any], said: str) -> None:
    fields = {"job_type": "lora", "dataset": ROWS} | changes
    with pytest.raises(InvalidRequest, match=said):
        asked.create_job(fields.pop("job_type"), "tiny", **fields)


def test_what_cannot_be_trained_is_said_at_creation(house: Served, asked: Client) -> None:
    make_gguf(house.data_dir / "models" / "strange.gguf", architecture="mamba")
    with pytest.raises(InvalidRequest, match="mamba"):
        asked.create_job("lora", "strange", dataset=ROWS)
    with pytest.raises(NotFound):
        asked.create_job("lora", "nothing", dataset=ROWS)


def test_what_never_fits_is_refused_with_the_bill(learning: None, tiny: Path, tmp_path: Path) -> None:
    env = {"MODELOPS_MEMORY__BUDGET_MB": "100", "MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0"}
    with serving(tmp_path, links=[("tiny", tiny)], env=env) as served, client(served) as asked:
        with pytest.raises(InsufficientMemory, match="'training' needs") as refused:
            asked.create_job("lora", "tiny", dataset=ROWS)
        assert not isinstance(refused.value, DiskFull)
        assert {"needed_mb", "free_mb"} <= refused.value.details.keys()
        assert not list((tmp_path / "learning" / "jobs").iterdir())


def test_what_may_never_fit_as_far_as_it_is_guessed_is_warned_of(learning: None, smollm2: Path, tmp_path: Path) -> None:
    def planned(budget_mb: int) -> LearningJob:
        folder = tmp_path / str(budget_mb)
        env = {"MODELOPS_MEMORY__BUDGET_MB": str(budget_mb), "MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0"}
        with serving(folder, links=[("smollm2", smollm2)], env=env) as served, client(served) as asked:
            return asked.create_job("lora", "smollm2", dataset=ROWS, dry_run=True)

    plan = planned(64_000).plan
    assert plan
    found = planned(plan.memory_mb - 100)
    assert found.plan == plan
    assert any("it may need more memory than there ever is for it" in warning for warning in found.warnings)
    with pytest.raises(InsufficientMemory):
        planned(plan.memory_mb // 4)


def test_what_does_not_fit_now_is_warned_of_and_not_refused(learning: None, tiny: Path, tmp_path: Path) -> None:
    others = 3000  # MB; 600 are left, of which the reserve is 512
    env = {
        "MODELOPS_MEMORY__SIMULATED_DEVICES": f"cpu={others + 600}/{others}",
        "MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0",
    }
    with serving(tmp_path, links=[("tiny", tiny)], env=env) as served, client(served) as asked:
        for dry in (True, False):
            job = asked.create_job("lora", "tiny", dataset=ROWS, dry_run=dry)
            (told,) = [warning for warning in job.warnings if "memory" in warning]
            assert told.startswith("it would wait for memory now: 'training' needs ")
            assert f"other programs: {others} MB" in told


@pytest.mark.parametrize(
    ("over_length", "become"), [("refuse", "what ends the job: line 9"), ("drop", "left out: line 9")]
)
def test_rows_that_are_surely_too_long_are_warned_of(house: Served, over_length: str, become: str) -> None:
    rows = [*ROWS, {"prompt": "long " * 2000, "completion": "red"}]
    with client(house) as asked:

        def warned(max_length: int) -> list[str]:
            given = {"max_length": max_length, "over_length": over_length}
            job = asked.create_job("lora", "tiny", dataset=rows, parameters=given, dry_run=True)
            return [warning for warning in job.warnings if "max_length" in warning]

        (told,) = warned(512)
        assert told.endswith(become)
        assert warned(2048) == [], "it may fit: nobody has counted its tokens yet"


def test_what_is_doubtful_is_warned_of(house: Served) -> None:
    with client(house) as asked:
        job = asked.create_job("lora", "tiny", dataset=[*ROWS, ROWS[0]], eval_dataset=[ROWS[3]], dry_run=True)
        assert any("twice" in warning and "lines 1 and 9" in warning for warning in job.warnings)
        assert any("eval_dataset are in dataset too" in warning and "4" in warning for warning in job.warnings)
        assert job.plan
        assert (job.plan.rows, job.plan.eval_rows) == (9, 1)
        assert job.plan.memory_mb > 100
        assert asked.list_jobs() == []


def test_what_shows_only_when_it_is_done_ends_the_job_with_the_reason(
    learning: None, tiny: Path, tmp_path: Path
) -> None:
    rows = [*ROWS, {"prompt": "long " * 60, "completion": "red"}]
    with serving(tmp_path, links=[("tiny", tiny)], env={"MODELOPS_LEARNING__THREADS": "1"}) as served:
        with client(served) as asked:
            made = asked.create_job(
                "lora", "tiny", dataset=rows, parameters={"max_length": 64}, output_model_name="tiny:x"
            )
            wait_until(lambda: asked.get_job(made.job_id).status == "failed", 100.0, "the end of the job")
            job = asked.get_job(made.job_id)
            assert "line 9" in job.error_message
            assert job.step == "prepare"
            assert [model.model_name for model in asked.models(all=True)] == ["tiny"]
        assert not list((tmp_path / "learning" / "jobs").iterdir())
        assert not (tmp_path / "models" / "published").exists()
