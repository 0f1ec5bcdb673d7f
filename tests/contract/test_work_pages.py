"""Every program about goals and learning jobs in docs/goals.md, docs/learning.md, docs/api.md and README.md runs as it
stands there.

Only addresses are replaced, the ids that are there as examples, and days that would have passed. The engine is a fake:
goals of quality and availability are pursued to their end, and jobs, which would be trained for minutes, are cancelled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import tiny_llama
from cli.command import environment
from modelops.client import Client
from support import Served, need, serving, wait_until

ROOT = Path(__file__).parents[2]
#: All of these pages, and of the others what is about goals and jobs.
WHOLE = ("docs/goals.md", "docs/learning.md")
PARTLY = ("docs/api.md", "README.md")
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: A command goes on while its line ends with a backslash, or a quotation is open.
COMMAND = re.compile(r"^\$ ((?:'[^']*'|\"[^\"]*\"|\\\n|[^'\"\n])*)$", re.MULTILINE)
ABOUT = re.compile(r"/goals\b|/learning/jobs\b|^modelops (?:goals|jobs) ")
#: Asks what comes of a training.
TRAINED = "modelops infer smollm2:capitals"
GOAL_ID, JOB_ID = "7c1e5a0f42b9", "4b0800101eed"
#: In all places where programs look for rows, of which each one says what the fake engine answers.
ROWS = ("train", "heldout", "regression", "capitals", "held-out", "others")
#: Where a goal lasts until some day, it lasts so long.
SOON_S = 3


@dataclass(frozen=True)
class Program:
    """A program on a page; `code` is Python, or a line of the console."""

    page: str
    python: bool
    code: str

    @property
    def of_jobs(self) -> bool:
        """Whether it is about learning jobs."""
        return re.search(r"/learning/jobs\b|^modelops jobs |create_job|CreateJob", self.code) is not None

    @property
    def creates(self) -> bool:
        """Whether there is one goal, or job, more when it has run."""
        return re.search(r"(?i:create)|-d '{\"(title|job_type)", self.code) is not None and "--dry-run" not in self.code

    def __str__(self) -> str:
        return f"{Path(self.page).stem} {' '.join(self.code.split())[:60]}"


def programs() -> Iterator[Program]:
    for page in (*WHOLE, *PARTLY):
        for language, block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
            for code in [block] if language == "python" else COMMAND.findall(block):
                if page in WHOLE or ABOUT.search(code):
                    yield Program(page, language == "python", code)


PROGRAMS = [
    pytest.param(program, id=str(program), marks=[pytest.mark.program("curl")] if "curl " in program.code else [])
    for program in programs()
    if not program.code.startswith(TRAINED)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where programs run, with the files that they name."""
    made = tmp_path_factory.mktemp("pages")
    for where in (".", "examples/capitals", "datasets", "datasets/capitals"):
        (made / where).mkdir(parents=True, exist_ok=True)
        for name in ROWS:
            rows = [json.dumps({"prompt": f"{number} of {name}?", "completion": "w0"}) for number in range(20)]
            (made / where / f"{name}.jsonl").write_text("\n".join(rows))
    asked = {"title": "it answers", "objective": {"type": "availability", "models": ["smollm2"]}}
    (made / "goal.json").write_text(json.dumps(asked))
    (made / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")  # what is refused has failed
    return made


@pytest.fixture(scope="module")
def pursuing(folder: Path) -> Iterator[Served]:
    """A coordinator that pursues goals."""
    with coordinator(folder, "pursuing") as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def waiting(folder: Path) -> Iterator[Served]:
    """One whose jobs wait for ever."""
    with coordinator(folder, "waiting", MODELOPS_LEARNING__MAX_PARALLEL_JOBS="0") as running:
        yield running
        assert "Traceback" not in running.log.read_text()


def coordinator(folder: Path, name: str, **env: str) -> AbstractContextManager[Served]:
    links = [("smollm2", tiny_llama.write(folder / name / "tiny.gguf"))]
    env["MODELOPS_LEARNING__ROOTS"] = str(folder / "datasets")
    return serving(folder / name, links=links, load=["smollm2"], fake={"tokens": 1}, env=env)


def test_every_program_is_found() -> None:
    written = "".join((ROOT / page).read_text(encoding="utf-8") for page in WHOLE)
    found = [program for program in programs() if program.page in WHOLE]
    assert len(found) == len(re.findall(r"^```python$|^\$ ", written, re.MULTILINE))
    assert {program.page for program in programs()} == {*WHOLE, *PARTLY}


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_runs(program: Program, folder: Path, request: pytest.FixtureRequest) -> None:
    if re.search("lora|quality", program.code):
        request.getfixturevalue("learning")
    served: Served = request.getfixturevalue("waiting" if program.of_jobs else "pursuing")
    with Client(served.rest) as client:
        try:
            check(program, served, client, folder)
        finally:  # two goals for one model may contradict each other
            for goal in client.list_goals():
                client.cancel_goal(goal.goal_id)
            wait_until(lambda: not client.list_goals(), what="the end of all goals")


def check(program: Program, served: Served, client: Client, folder: Path) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=SOON_S)
    code = program.code
    if GOAL_ID in code:
        lasting = {"type": "availability", "models": ["smollm2"], "until": soon.isoformat()}
        code = code.replace(GOAL_ID, client.create_goal("named", lasting).goal_id)
    if JOB_ID in code:
        rows = [{"prompt": "1?", "completion": "w0"}]
        code = code.replace(JOB_ID, client.create_job("evaluate", "smollm2", dataset=rows).job_id)
    for written, ours in (
        ("http://127.0.0.1:8008", served.rest),
        ("tcp://127.0.0.1:7211", served.zmq),
        ("127.0.0.1:7212", served.grpc),
    ):
        code = code.replace(written, ours)
    code = re.sub(r"\b\d{4}-01-31T18:00:00Z", soon.isoformat(timespec="seconds"), code)
    code = re.sub(r"\b\d{4}-01-31 18:00\b", "2100-01-31 18:00", code)
    before = {goal.goal_id for goal in client.list_goals("all")}
    with (folder / "said.txt").open("w+") as said, (folder / "complained.txt").open("w+") as complained:
        env = environment(served.rest, HOME=str(folder), CURL_HOME=str(folder))
        process = subprocess.Popen(argv(program, code), cwd=folder, env=env, stdout=said, stderr=complained)
        try:
            wait_until(lambda: has_ended(process, client, waiting=program.of_jobs), 60, "the end of the program")
        finally:
            process.kill()
            status = process.wait()
    assert status == ("--watch" in code and program.of_jobs), (folder / "complained.txt").read_text()
    assert (folder / "said.txt").read_text().strip()
    if program.of_jobs:
        assert client.list_jobs()
        return
    new = [goal for goal in client.list_goals("all") if goal.goal_id not in before]
    assert len(new) == program.creates
    for goal in new:
        if goal.objective["type"] == "quality" or goal.objective.get("until") == soon.isoformat(timespec="seconds"):
            *_, last = client.watch_goal(goal.goal_id)
            assert last.goal
            assert last.goal.status == "completed", last.goal.error_message


def argv(program: Program, code: str) -> list[str]:
    if program.python:
        return [sys.executable, "-c", code]
    if code.startswith("curl "):
        need("curl")
    return ["bash", "-e", "-c", f'modelops() {{ "{sys.executable}" -m modelops.cli "$@"; }}\n{code}']


def has_ended(process: subprocess.Popen[bytes], client: Client, *, waiting: bool) -> bool:
    """Whether it has; jobs that are `waiting` for ever are cancelled, so that whoever watches one sees its end."""
    for job in client.list_jobs("pending") if waiting else ():
        client.cancel_job(job.job_id)
    return process.poll() is not None
