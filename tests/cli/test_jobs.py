"""`modelops jobs`: what a person reads, what a script gets, and the exit status."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.steering import STEERING, steers_nothing
from kept_jobs import CREATED, ENDED, JOB, keep
from modelops.api.learning import LearningJob
from modelops.cli import main
from modelops.cli.jobwords import state
from modelops.client import Client
from modelops.store.jobs import EventRow, JobRow
from support import Served, serving, tiny_gguf

Run = Callable[[str], Result]

TRAINED = JobRow(
    "trained",
    "lora",
    "m",
    created_at=CREATED,
    output_model_name="m:capitals",
    status="completed",
    priority=2,
    request={"parameters": {"rank": 8, "learning_rate": 0.001, "evaluation": {"metrics": ["exact_match"]}}},
    progress=1.0,
    metrics={"step": 75, "total_steps": 75, "train_loss": 0.01234567, "eval_loss": 0.5},
    result={
        "model_name": "m:capitals",
        "model_version": "v1",
        "active": True,
        "scores": {
            "held_out": {
                "before": {"exact_match": 0.0, "rows": 60, "tokens": 400, "seconds": 9.5},
                "after": {"exact_match": 0.983333, "rows": 60, "tokens": 100, "seconds": 3.5},
            },
            "regression": {"before": {"perplexity": 9.21}, "after": {"perplexity": 9.6}},
        },
        "parity": {"positions": 96, "same": 96, "mean": 0.0024, "reason": ""},
        "steps": 75,
        "train_loss": 0.0123,
        "eval_loss": None,
        "seconds": 180.25,
    },
    started_at=CREATED + 1,
    completed_at=CREATED + 200,
    attempts=2,
)
BROKEN = replace(
    JOB,
    id="broken",
    status="failed",
    step="train",
    metrics={"step": 75, "total_steps": 75, "eta_seconds": 0.0},
    result={},
    error="the loss is no number: a lower learning_rate",
)
SCRAWLED = replace(BROKEN, id="steering", output_model_name=STEERING, error=STEERING)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator that works on no jobs, with those that an earlier one has ended; `theirs.jsonl` is a file of its
    own."""
    folder = tmp_path_factory.mktemp("jobs")
    keep(folder / "data")
    said = (
        EventRow("", 1, CREATED + 2, "step", step="train", message="train"),
        EventRow("", 2, CREATED + 3, "progress", step="train", metrics={**TRAINED.metrics, "tokens_per_second": 312.4}),
        EventRow("", 3, CREATED + 4, "warning", step="train", message="two rows were too long"),
        EventRow("", 4, CREATED + 200, "state", message="completed"),
    )
    keep(folder / "data", TRAINED, said)
    keep(folder / "data", BROKEN, [EventRow("", 1, CREATED + 2, "state", message="failed: the loss is no number")])
    keep(folder / "data", SCRAWLED, [EventRow("", 1, CREATED + 2, "warning", message=STEERING)])
    (folder / "data/datasets").mkdir()
    (folder / "data/datasets/theirs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    env = {"MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0"}
    with serving(folder / "data", links=[("m", tiny_gguf(folder / "m.gguf"))], fake={}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    with Client(served.rest) as made:
        yield made


@pytest.fixture
def run(served: Served) -> Run:
    """Runs a command line, without the program's name."""
    runner = CliRunner(env={"MODELOPS_URL": served.rest, "COLUMNS": "200"})
    return lambda line: runner.invoke(main, shlex.split(line))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of two rows."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "größer", "completion": "🌊"}\n{"text": "one"}\n\n')
    return file


def said(result: Result, status: int = 0) -> str:
    """What it wrote: to standard output where it did what it should, else, one line, to standard error."""
    assert result.exit_code == status, result.output
    if not status:
        return result.stdout
    assert result.stdout == ""
    assert re.fullmatch(r"modelops: .*\n", result.stderr)
    return result.stderr


# --- create ---
def test_a_job_is_created_of_a_file_that_is_here(run: Run, client: Client, rows: Path) -> None:
    made = run(
        f"jobs create evaluate m --data {rows} --set max_tokens=8 --set metrics=f1,contains --set 'system=Be 5'"
        " --priority high"
    )
    found = re.fullmatch(r"job (\w+) is pending: evaluate of m: 2 rows, about \d+ tokens, 0 MB of disk\n", said(made))
    assert found
    assert made.stderr == f"'modelops jobs watch {found[1]}' shows how it goes\n"
    job = client.get_job(found[1])
    assert job.parameters == {"max_tokens": 8, "metrics": ["f1", "contains"], "system": "Be 5"}
    assert job.priority == "high"


def test_a_file_of_the_coordinator_is_named_by_its_path(run: Run, client: Client) -> None:
    told = said(run("jobs create evaluate m --data-path theirs.jsonl --json"))
    assert json.loads(told)["plan"]["rows"] == 1
    told = said(run("jobs create evaluate m --data-path none.jsonl"), 1)
    assert (
        "--data-path: there is no such file under the dataset roots (<data_dir>/datasets, and learning.roots)" in told
    )
    before = len(client.list_jobs())
    dry = said(run("jobs create evaluate m --data-path theirs.jsonl --dry-run"))
    assert re.fullmatch(r"nothing was created; it would be evaluate of m: 1 rows, .*\n", dry)
    assert len(client.list_jobs()) == before


def test_what_is_repeated_with_its_key_is_created_once(run: Run, rows: Path) -> None:
    line = f"jobs create evaluate m --data {rows} --idempotency-key nightly-7 --json"
    assert json.loads(said(run(line)))["job_id"] == json.loads(said(run(line)))["job_id"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "give the rows: --data FILE"),
        ("--data {rows} --data-path x", "--data and --data-path are two ways"),
        ("--data none.jsonl", "'none.jsonl' cannot be read here: No such file or directory; .* --data-path"),
        ("--data {rows} --regression none", "--regression-path"),
        ("--data {rows} --set rank", "'rank' is not written NAME=VALUE"),
        ("--data {rows} --set max_tokens=many", "parameters: max_tokens: "),
        ("--data {rows} --set max_token=5", "did you mean 'max_tokens'"),
        ("--data {rows} --set max_tokens.x=5", "max_tokens"),
        ("--data {rows} --set max_tokens=NaN", "'max_tokens' has got a value that is no JSON: there is no NaN in it"),
        ("--data {rows} --set system=\ud800", "parameters: must be valid Unicode: it holds a lone surrogate"),
        ("--data {rows} --as m:x", "--as: a job of type evaluate publishes nothing; leave it out"),
        ("--data {rows} --as 'a b'", "--as: must begin with a letter or a digit, and have only these and . _"),
        ("--data {rows} --eval {rows}", "--eval: a job of type evaluate judges the rows of --data; leave it out"),
        ("--data {wrong}", "--data: row 2: unknown field 'dataset'; "),
        (
            "--data-path ../x",
            r"--data-path leads outside the dataset roots \(<data_dir>/datasets, and learning.roots\);",
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_created(
    options: str, told: str, run: Run, client: Client, rows: Path
) -> None:
    before = len(client.list_jobs())
    wrong = rows.with_name("wrong.jsonl")
    wrong.write_text('{"text": "one"}\n{"text": "two", "dataset": ""}\n')
    assert re.search(told, said(run(f"jobs create evaluate m {options.format(rows=rows, wrong=wrong)}"), 2))
    assert len(client.list_jobs()) == before


def test_rows_that_are_too_many_to_send_are_put_where_the_coordinator_finds_them(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text(json.dumps({"text": "x" * 1000}) + "\n")
    file.write_text(file.read_text() * 1100)
    told = said(run(f"jobs create evaluate m --data {file}"), 1)
    assert "put the rows into a file under one of the dataset roots (<data_dir>/datasets, and learning.roots)" in told
    assert "and name it with --data-path" in told


def test_warnings_speak_of_what_was_written(run: Run, rows: Path) -> None:
    rows.write_text(rows.read_text().rstrip() + '\n{"text": "one"}\n')
    made = run(f"jobs create evaluate m --data {rows} --dry-run")
    assert (made.exit_code, made.stderr) == (0, "warning: 1 rows are in --data twice: lines 2 and 3\n")


# --- list and show ---
def test_the_jobs_are_listed(run: Run) -> None:
    told = said(run("jobs list"))
    assert re.search(
        r"^trained +lora +m +m:capitals +completed +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d *$", told, re.MULTILINE
    )
    assert [job["job_id"] for job in json.loads(said(run("jobs list --status completed --json")))] == ["trained", ENDED]
    assert said(run("jobs list --status running")) == "there are no running jobs\n"


def test_all_that_is_known_of_a_job_is_shown(run: Run) -> None:
    told = said(run("jobs show trained"))
    lines: dict[str, str] = dict(re.findall(r"^(\w+) +(.*)$", told, re.MULTILINE))
    assert lines["what"] == "lora of m, as m:capitals"
    assert lines["status"] == "completed"
    assert (lines["priority"], lines["attempts"]) == ("high", "2")
    assert lines["measured"] == "step 75 of 75, loss 0.01235, held-out loss 0.5"
    assert lines["parameters"] == "rank 8, learning_rate 0.001, evaluation.metrics exact_match"
    assert lines["published"] == "m:capitals v1, active"
    assert lines["parity"] == "positions 96, same 96, mean 0.0024"
    assert lines["trained"] == "steps 75, train_loss 0.0123, seconds 180.2"
    assert re.search(r"^held out +exact_match +0 +0\.9833 *$", told, re.MULTILINE)
    assert re.search(r"^regression +perplexity +9\.21 +9\.6 *$", told, re.MULTILINE)
    assert json.loads(said(run("jobs show trained --json")))["result"] == json.loads(json.dumps(TRAINED.result))
    broken = said(run("jobs show broken"))
    assert "why         the loss is no number: a lower learning_rate\nstep        train\n" in broken
    assert "measured    step 75 of 75\n" in broken, "nothing is left of one that has ended"
    assert re.search(r"^f1 +0\.5 *$", said(run(f"jobs show {ENDED}")), re.MULTILINE)
    assert "no learning job 'none'" in said(run("jobs show none"), 1)


@pytest.mark.parametrize("line", ["list", "show steering", "logs steering", "watch steering"])
def test_nothing_that_somebody_wrote_steers_the_terminal(line: str, run: Run) -> None:
    steers_nothing(run(f"jobs {line}"))


# --- what happens ---
def test_what_has_happened_is_printed_line_by_line(run: Run) -> None:
    lines = said(run("jobs logs trained")).splitlines()
    assert [line[21:].split()[:2] for line in lines] == [
        ["step", "train"],
        ["progress", "train"],
        ["warning", "train"],
        ["state", "completed"],
    ]
    assert lines[1].endswith("step 75 of 75, loss 0.01235, held-out loss 0.5, 312 tokens/s")
    assert lines[2].endswith("two rows were too long")
    told = [json.loads(line) for line in said(run("jobs logs trained --json")).splitlines()]
    assert [event["number"] for event in told] == [1, 2, 3, 4]
    assert told[-1]["job"]["status"] == "completed"


def test_logs_of_what_goes_on_end_unless_they_are_followed(run: Run, client: Client) -> None:
    job_id = client.create_job("evaluate", "m", dataset=[{"prompt": "a", "completion": "b"}]).job_id
    assert said(run(f"jobs logs {job_id}")) == ""
    assert said(run(f"jobs cancel {job_id} --reason 'no longer wanted'")) == f"job {job_id} is cancelled\n"
    for line in (f"jobs logs {job_id}", f"jobs logs -f {job_id}"):
        assert said(run(line)).endswith("cancelled: no longer wanted\n")
    assert json.loads(said(run(f"jobs cancel {job_id} --json")))["status"] == "cancelled"


def test_a_watch_says_what_came_of_it(run: Run) -> None:
    assert said(run("jobs watch trained")).endswith(
        "job trained is completed: it is 'm:capitals' v1\n"
        "  held out, exact_match: 0 → 0.9833\n"
        "  regression, perplexity: 9.21 → 9.6\n"
    )
    assert said(run(f"jobs watch {ENDED}")).endswith(f"job {ENDED} is completed\n  f1: 0.5\n")
    failed = run("jobs watch broken")
    assert failed.exit_code == 1
    assert failed.stderr == "modelops: job broken failed: the loss is no number: a lower learning_rate\n"
    told = run("jobs watch broken --json")
    assert (told.exit_code, json.loads(told.stdout)["done"]) == (1, True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "train 3%"),
        ({"step": ""}, "running 3%"),
        ({"paused": True}, "train 3%, paused"),
        ({"message": "it waits for memory: 'learning job 1' needs 9 MB"}, "train 3%, waits for memory"),
        ({"status": "completed", "message": ""}, "completed"),
    ],
)
def test_how_a_job_stands_in_a_few_words(changes: dict[str, object], told: str) -> None:
    fields = {"job_id": "1", "job_type": "lora", "model_name": "m", "status": "running", "step": "train"}
    job = LearningJob.model_validate(fields | {"progress": 0.03, "created_at": "2026-01-01T00:00:00Z"} | changes)
    assert state(job) == told
