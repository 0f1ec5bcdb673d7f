"""`modelops goals`: what a person reads, what a script gets, and the exit status."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner, Result

from cli.steering import STEERING, steers_nothing
from kept_goals import CREATED, EVENTS, GOAL, REACHED, STEPS, keep_goal, memo, request
from modelops.api.goals import Weights
from modelops.cli import main
from modelops.client import Client
from modelops.goals.values import Action, Step
from modelops.store.goals import EventRow
from support import Served, serving, tiny_gguf

Run = Callable[[str], Result]

FILE = Path(__file__).parent / "goal.json"
SERVING = {"type": "serving", "model_name": "quick", "p95_latency_ms": 250.0, "min_tokens_per_second": 40.5}
MISSED = replace(
    GOAL,
    id="missed",
    title="it is quick",
    goal_type="serving",
    status="failed",
    request=request(SERVING, warnings=["the machine is busy"]),
    memo=memo(
        *(replace(STEPS[0], number=number, action=Action("measure")) for number in (1, 2)),
        Step(3, Action("apply"), "it is the fastest", 20.0, 21.0, error="the engine did not start"),
        Step(4, Action("measure"), "once more", 30.0),
    ),
    metrics={"measurements": 4, "ways": {"now": {"tokens_per_second": 38.96}, "best": {"slots": 2, "samples": []}}},
    result={"applied": False, "gain": 1.04},
    error="nothing that was tried is as quick",
    attempts=2,
)

SCRAWLED = replace(
    MISSED,
    id="steering",
    title=STEERING,
    request=request(SERVING, description=STEERING, warnings=[STEERING]),
    memo=memo(replace(STEPS[0], why=STEERING)),
    result={"why": STEERING},
    error=STEERING,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator that pursues no goals, with those that an earlier one has ended."""
    folder = tmp_path_factory.mktemp("goals")
    keep_goal(folder / "data")
    said = (
        EventRow("", 1, CREATED + 2, "step", step="measure", message="nothing is known of it yet"),
        EventRow("", 2, CREATED + 3, "progress", step="measure", metrics={"tokens_per_second": 39.6}),
        EventRow("", 3, CREATED + 9, "state", message="failed: nothing that was tried is as quick"),
    )
    keep_goal(folder / "data", MISSED, said)
    keep_goal(folder / "data", SCRAWLED, [EventRow("", 1, CREATED + 2, "log", message=STEERING)])
    (folder / "data/datasets").mkdir()
    for name, row in (("train", "größer"), ("eval", "kleiner")):
        (folder / f"data/datasets/{name}.jsonl").write_text(json.dumps({"prompt": row, "completion": "b"}) + "\n")
    env = {"MODELOPS_GOALS__MAX_ACTIVE": "0", "MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0"}
    with serving(folder / "data", links=[("quick", tiny_gguf(folder / "quick.gguf"))], fake={}, env=env) as running:
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
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What would be sent: nothing is."""
    found: dict[str, Any] = {}

    class Sent(Exception):
        """It was about to be."""

    def create_goal(_: Client, title: str, objective: dict[str, Any], **options: Any) -> None:
        found.update(options, title=title, objective=objective)
        raise Sent

    monkeypatch.setattr(Client, "create_goal", create_goal)
    yield found
    assert found


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of two rows."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "größer", "completion": "🌊"}\n{"text": "one"}\n')
    return file


def said(result: Result, status: int = 0) -> str:
    """What it wrote: to standard output where it did what it should, else, one line, to standard error."""
    assert result.exit_code == status, result.output
    if not status:
        return result.stdout
    assert result.stdout == ""
    assert re.fullmatch(r"modelops: .*\n", result.stderr)
    return result.stderr


def titles(client: Client) -> list[str]:
    return [goal.title for goal in client.list_goals("all")]


# --- create ---
def test_models_are_to_be_kept(run: Run, client: Client) -> None:
    made = run("goals create availability quick --until 2100-01-31T12:00:00Z --priority high --max-seconds 60")
    first, *how = said(made).splitlines()
    found = re.fullmatch(r"goal (\w+) is pending: availability of quick until 2100-01-31T12:00:00Z", first)
    assert found
    assert how
    assert how[0].startswith("  1. ")
    assert made.stderr == f"'modelops goals watch {found[1]}' shows how it goes\n"
    goal = client.get_goal(found[1])
    assert (goal.title, goal.priority, goal.limits) == ("keep quick answering", "high", {"max_seconds": 60})


def test_a_dry_run_creates_nothing(run: Run, client: Client) -> None:
    before = titles(client)
    told = said(run("goals create availability quick --dry-run"))
    assert told.startswith("nothing was created; it would be availability of quick\n  1. ")
    assert json.loads(said(run("goals create availability quick --dry-run --json")))["plan"]["steps"]
    assert titles(client) == before


def test_a_request_is_sent_as_it_stands_in_a_file(run: Run, client: Client) -> None:
    goal = client.get_goal(json.loads(said(run(f"goals create --from {FILE} --json")))["goal_id"])
    assert (goal.title, goal.priority, goal.metadata) == ("it answers", "high", {"team": "search"})
    before = titles(client)
    assert said(run(f"goals create --from {FILE} --dry-run")).startswith("nothing was created; it would be")
    assert titles(client) == before


def test_what_is_repeated_with_its_key_is_created_once(run: Run) -> None:
    line = "goals create availability quick --idempotency-key nightly-7 --json"
    assert json.loads(said(run(line)))["goal_id"] == json.loads(said(run(line)))["goal_id"]


def test_quality_as_it_is_written_is_asked_for(run: Run, rows: Path, sent: dict[str, Any]) -> None:
    run(
        f"goals create quality quick --train {rows} --eval {rows} --regression-path other.jsonl --target 0.95"
        " --tolerance 0 --max-tokens 8 --set rank=8 --set evaluation.metrics=f1 --watch-seconds 5 --max-jobs 3"
        " --title capitals --by '2100-01-31 12:00'"
    )
    two = [{"prompt": "größer", "completion": "🌊"}, {"text": "one"}]
    assert sent["objective"] == {
        "type": "quality",
        "model_name": "quick",
        "train_dataset": two,
        "eval_dataset": two,
        "regression_dataset_path": "other.jsonl",
        "metric": "exact_match",
        "target": 0.95,
        "regression_tolerance": 0.0,
        "max_tokens": 8,
        "parameters": {"rank": 8, "evaluation": {"metrics": ["f1"]}},
        "watch_seconds": 5.0,
    }
    assert (sent["title"], sent["limits"]) == ("capitals", {"max_jobs": 3})
    assert datetime.fromisoformat(sent["target_completion"]) == datetime(2100, 1, 31, 12).astimezone()


def test_every_format_can_be_named(run: Run, sent: dict[str, Any]) -> None:
    named = get_args(Weights)
    run(f"goals create serving quick {' '.join(f'--format {name}' for name in named)}")
    assert sent["objective"]["formats"] == [*named]


def test_serving_as_it_is_written_is_asked_for(run: Run, tmp_path: Path, sent: dict[str, Any]) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text('{"input_text": "Hello", "max_tokens": 4}\n')
    run(
        f"goals create serving quick --prompt-tokens 800 --answer-tokens 16 --concurrency 2 --p95-ms 250 --min-tps 40"
        f" --max-memory-mb 900 --requests {file} --format Q8_0 --format Q4_0 --draft small --text-path texts.jsonl"
    )
    assert sent["objective"] == {
        "type": "serving",
        "model_name": "quick",
        "workload": {
            "prompt_tokens": 800,
            "answer_tokens": 16,
            "concurrency": 2,
            "requests": [{"input_text": "Hello", "max_tokens": 4}],
        },
        "p95_latency_ms": 250.0,
        "min_tokens_per_second": 40.0,
        "max_memory_mb": 900,
        "formats": ["Q8_0", "Q4_0"],
        "text_dataset_path": "texts.jsonl",
        "draft_model_name": "small",
    }
    assert (sent["title"], sent["limits"]) == ("serve quick well", {})


def test_the_format_may_be_kept(run: Run, sent: dict[str, Any]) -> None:
    run("goals create serving quick --keep-format")
    assert sent["objective"] == {"type": "serving", "model_name": "quick", "workload": {}, "formats": []}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("quality quick --target 0.9", "give the rows: --train FILE"),
        ("quality quick --target 0.9 --train {rows}", "give the rows: --eval FILE"),
        ("quality quick --target 0.9 --train {rows} --train-path x --eval {rows}", "two ways to say the same"),
        ("quality quick --target 1.9 --train {rows} --eval {rows}", "target: of exact_match"),
        ("quality quick --target 0.9 --train none.jsonl --eval {rows}", "cannot be read here: .* --train-path"),
        ("quality quick --target 0.9 --train {rows} --eval {rows} --set rank", "NAME=VALUE"),
        ("serving quick --concurrency 0", "objective: workload: concurrency"),
        ("serving quick --requests none.jsonl", "'none.jsonl' cannot be read here: No such file or directory$"),
        ("serving quick --format Q8_0 --keep-format", "exclude each other"),
        ("availability quick --until soon", "--until is a time"),
        ("availability quick --by 99999-01-01", "--by is a time"),
        ("availability quick --probe-seconds 0", "objective: probe_seconds"),
        ("availability quick --max-seconds nan", "max_seconds: "),
        ("availability quick --max-seconds inf", "max_seconds: "),
        ("--from none.json", "'none.json' cannot be read here"),
        ("--from {rows}", "is no JSON"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_created(
    line: str, told: str, run: Run, client: Client, rows: Path
) -> None:
    before = titles(client)
    assert re.search(told, said(run(f"goals create {line.format(rows=rows)}"), 2).rstrip())
    assert titles(client) == before


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("[]", "is no JSON object"),
        ("{}", "title"),
        ('{"title": "x", "objective": {}, "goal": 1}', "unknown field 'goal'"),
        ('{"title": "x", "objective": {"type": "availability", "models": [NaN]}}', "there is no NaN in it"),
        ("\udcff", "is not UTF-8"),
    ],
)
def test_a_file_that_holds_no_request_is_told(written: str, told: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "goal.json"
    file.write_bytes(written.encode(errors="surrogateescape"))
    assert told in said(run(f"goals create --from {file}"), 2)


def test_without_a_word_of_what_it_is_to_be_nothing_is_created(run: Run) -> None:
    told = run("goals create")
    assert (told.exit_code, "quality, serving or availability" in told.stderr) == (2, True)


def test_two_goals_for_the_same_are_told(run: Run, client: Client) -> None:
    wanted = "goals create serving quick --prompt-tokens 8 --answer-tokens 2"
    first = json.loads(said(run(f"{wanted} --json")))["goal_id"]
    assert first in said(run(wanted), 1)
    client.cancel_goal(first)


# --- list and show ---
def test_the_goals_are_listed(run: Run, client: Client) -> None:
    waits = client.create_goal("wait", {"type": "availability", "models": ["quick"]}).goal_id
    told = said(run("goals list"))
    assert re.search(rf"^{waits} +availability +wait +pending +20\d\d-\d\d-\d\d \d\d:\d\d:\d\d *$", told, re.MULTILINE)
    assert REACHED not in told
    assert re.search(
        rf"(?m)^{REACHED} +quality +capitals are known +completed ", said(run("goals list --status all")), re.MULTILINE
    )
    assert [goal["goal_id"] for goal in json.loads(said(run("goals list --status completed --json")))] == [REACHED]
    assert said(run("goals list --status active")) == "there are no active goals\n"


def test_all_that_is_known_of_a_goal_is_shown(run: Run) -> None:
    told = said(run(f"goals show {REACHED}"))
    lines: dict[str, str] = dict(re.findall(r"^(\w+) +(.*)$", told, re.MULTILINE))
    assert lines["what"] == "quality of quick: exact_match at least 0.95"
    assert (lines["title"], lines["about"], lines["status"]) == ("capitals are known", "größer", "completed")
    assert (lines["limits"], lines["jobs"], lines["counted"]) == ("max_jobs 3", "j1, j2", "jobs 1, exact_match 0.975")
    assert re.search(r"(?m)^1 +baseline +nothing is known of it yet +10 s +job_id j1, exact_match 0\.25 *$", told)
    assert re.search(r"(?m)^2 +train +it is under its target +1 min 30 s +job_id j2, model_version v2 *$", told)
    assert re.search(r"^after\.exact_match +0\.975 *$", told, re.MULTILINE)
    tried = told.partition("\ntried:\n")[2].splitlines()
    assert [line.split() for line in tried] == [
        ["MODEL_VERSION", "EXACT_MATCH", "PARAMETERS.EPOCHS"],
        ["v2", "0.975", "3"],
        ["v3", "-", "-"],
    ]
    assert json.loads(said(run(f"goals show {REACHED} --json")))["steps"][1]["action"] == "train"
    assert "no goal 'none'" in said(run("goals show none"), 1)


def test_why_a_goal_was_missed_is_shown(run: Run) -> None:
    told = said(run("goals show missed"))
    assert "what        serving of quick: 95 of 100 answers within 250 ms, at least 40.5 tokens/s\n" in told
    assert "why         nothing that was tried is as quick\n" in told
    assert "warning     the machine is busy\n" in told
    assert "attempts    2\n" in told
    assert "counted     measurements 4\n" in told
    assert "ways        now.tokens_per_second 38.96, best.slots 2\n" in told
    assert re.search(r"^3 +apply +it is the fastest +1 s +the engine did not start *$", told, re.MULTILINE)
    assert re.search(r"^4 +measure +once more +… *$", told, re.MULTILINE)


@pytest.mark.parametrize("line", ["list --status all", "show steering", "watch steering"])
def test_nothing_that_somebody_wrote_steers_the_terminal(line: str, run: Run) -> None:
    steers_nothing(run(f"goals {line}"))


# --- what happens ---
def test_a_watch_says_what_came_of_it(run: Run) -> None:
    *lines, ended, _, before, after = said(run(f"goals watch {REACHED}")).splitlines()
    assert [line[21:].split()[:2] for line in lines] == [[event.kind, event.step or event.message] for event in EVENTS]
    assert lines[0].endswith("nothing is known of it yet")
    assert lines[1].endswith("rows 1 of 2")
    assert ended == f"goal {REACHED} is completed: quality of quick: exact_match at least 0.95"
    assert [before, after] == ["  before.exact_match: 0.25", "  after.exact_match: 0.975"]
    failed = run("goals watch missed")
    assert failed.exit_code == 1
    assert failed.stderr == "modelops: goal missed failed: nothing that was tried is as quick\n"
    told = run("goals watch missed --json")
    events = [json.loads(line) for line in told.stdout.splitlines()]
    assert (told.exit_code, [event["number"] for event in events], events[-1]["done"]) == (1, [1, 2, 3], True)


def test_a_goal_is_cancelled(run: Run, client: Client) -> None:
    objective = {"type": "availability", "models": ["quick"]}
    goal_id = client.create_goal("wait", objective).goal_id
    assert said(run(f"goals cancel {goal_id} --reason 'no longer wanted'")) == f"goal {goal_id} is cancelled\n"
    ended = run(f"goals watch {goal_id}")
    assert ended.exit_code == 1
    assert ended.stderr == f"modelops: goal {goal_id} was cancelled: no longer wanted\n"
    assert json.loads(said(run(f"goals cancel {goal_id} --json")))["status"] == "cancelled"
    assert said(run(f"goals cancel {REACHED}")) == f"goal {REACHED} is completed\n"
