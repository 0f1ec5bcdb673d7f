"""What a goal of serving makes of the default model, beside llama-server with its default parameters.

For a workload of long prompts and one of long answers a goal is pursued by a coordinator in a process of its own, whose
settings are the default ones. Then, in one run and by the same program, the same workload is put to an engine that is
run as was applied, to one as the coordinator runs it by default, and to the same llama-server (the package's, or
`--executable`) with its default parameters: as they are, and with as many slots as there are requests at once. They
take turns, each time in another order, with the same prompts; each figure is compared with that of the default server
in the same round, and the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import MODEL, machine, put_model, quantile

from chaos.callers import client
from modelops.api.goals import Goal, Workload
from modelops.goals.measuring import Watched, giving_way, measure
from modelops.goals.space import Measured, Way
from modelops.goals.surveying import run_as
from modelops.learning.engines import OwnEngines, Planned
from modelops.learning.yielding import Yielding
from modelops.serving.devices import ThisMachine
from modelops.serving.loans import Loan
from modelops.serving.wishes import Wish
from modelops.settings import Settings
from support import serving

ROOT = Path(__file__).parents[1]
WORKLOADS = {
    "prompts": {"prompt_tokens": 800, "answer_tokens": 16, "concurrency": 2},
    "answers": {"prompt_tokens": 64, "answer_tokens": 256, "concurrency": 4},
}
DEFAULT, SLOTS = "default server", "the same, with slots"
BEFORE, APPLIED = "coordinator, before", "coordinator, applied"
ARMS = (DEFAULT, SLOTS, BEFORE, APPLIED)
#: Stands where a llama-server would: takes its model and its socket from the flags, and nothing else.
PROGRAM = (
    "#!{python}\nimport sys\nsys.path.insert(0, {root!r})\nfrom bench.serving_goals import serve\n"
    "serve({slots}, {executable!r})\n"
)


@dataclass(frozen=True)
class Found:
    """What a goal came to: the goal, how long it took, and the file that is served."""

    goal: Goal
    seconds: float
    file: Path


def serve(slots: int, executable: str) -> None:
    """A server with its default parameters, until SIGTERM: `executable`, else the package's; 0 slots: as many as it has
    by default."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--model", required=True)
    flags.add_argument("--host", required=True)
    asked, _ = flags.parse_known_args()
    os.environ.pop("GOMP_SPINCOUNT", None)  # an engine of ours waits otherwise than by default
    if executable:
        given = [
            executable,
            "--model",
            asked.model,
            "--host",
            asked.host,
            *(["--parallel", str(slots)] if slots else []),
        ]
        os.execv(executable, given)  # the program that was named on the command line
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = asked.model, [asked.host], 1
    params.api_keys = [os.environ.pop("LLAMA_API_KEY")]
    if slots:
        params.n_parallel = slots
    server = xllamacpp.Server(params)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0 if server else 1)


def pursue(folder: Path, workload: Mapping[str, Any], options: argparse.Namespace) -> Found:
    """Let a coordinator pursue the goal; it stops when this returns."""
    env = {
        "MODELOPS_ENGINE__THREADS": "0",
        "MODELOPS_ENGINE__EXECUTABLE": options.executable,
        "MODELOPS_GOALS__SAMPLE_S": str(options.sample_s),
    }
    wanted = {"type": "serving", "model_name": MODEL, "workload": workload, "watch_seconds": options.watch_seconds}
    if options.text:
        wanted["text_dataset"] = [{"text": options.text}]
    began = time.monotonic()
    with serving(folder, load=[MODEL], env=env) as served, client(served) as asked:
        goal_id = asked.create_goal("the fastest", wanted).goal_id
        for event in asked.watch_goal(goal_id):
            print(f"{time.monotonic() - began:6.0f} s {event.kind}: {event.message}", file=sys.stderr)
        goal = asked.get_goal(goal_id)
        if goal.status != "completed":
            sys.exit(f"the goal {goal.status}: {goal.error_message or goal.message}")
        return Found(goal, time.monotonic() - began, folder / "models" / asked.model(MODEL).model_path)


async def compare(folder: Path, found: Found, workload: Workload, options: argparse.Namespace) -> list[list[Measured]]:
    """Rounds, each with a figure of each arm, in the order of ARMS."""
    own = OwnEngines(
        Settings.model_validate({"data_dir": folder, "engine": {"executable": options.executable}}),
        ThisMachine(),
        folder,
    )
    present = Way.from_json(found.goal.result["present"]["way"])
    best = present
    if found.goal.result["applied"]:
        best = Way.from_json(found.goal.result["best"]["way"])
    original = folder / "models" / f"{MODEL}.gguf"
    before = await own.plan(MODEL, original, wish=run_as(present, Wish(), ""))
    applied = await own.plan(MODEL, found.file, wish=run_as(best, Wish(), ""))
    planned = {
        DEFAULT: _plain(before, folder, 0, options.executable),
        SLOTS: _plain(before, folder, workload.concurrency, options.executable),
        BEFORE: before,
        APPLIED: applied,
    }
    async with contextlib.AsyncExitStack() as stack:
        engines: dict[str, Watched] = {}
        for name, each in planned.items():
            engine = await stack.enter_async_context(own.run(each, Loan(each.size)))
            engines[name] = stack.enter_context(giving_way(engine, Yielding(0.0)))
        rounds: list[list[Measured]] = []
        for turn in range(options.rounds):
            order = [*ARMS[turn % len(ARMS) :], *ARMS[: turn % len(ARMS)]][:: -1 if turn % 2 else 1]
            made = {
                name: await measure(engines[name], workload, options.requests, turn, patience_s=60.0, thrown=_again)
                for name in order
            }
            rounds.append([made[name] for name in ARMS])
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
    return rounds


async def _again() -> None:
    """A sample was thrown away."""


def _plain(planned: Planned, folder: Path, slots: int, executable: str) -> Planned:
    program = folder / f"server-{slots}"
    program.write_text(PROGRAM.format(python=sys.executable, root=str(ROOT), slots=slots, executable=executable))
    program.chmod(0o755)
    return replace(planned, spec=replace(planned.spec, executable=str(program)))


def table(rounds: Sequence[Sequence[Measured]]) -> str:
    """A row for each arm, in Markdown."""
    lines = [
        "| | requests per second | tokens per second | of prompts | p95 ms | MB | by the default server's (quarters) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, name in enumerate(ARMS):
        own = [each[number] for each in rounds]
        ratios = [each[number].requests_per_second / each[0].requests_per_second for each in rounds]
        lines.append(
            f"| {name} | {median(one.requests_per_second for one in own):.3f} "
            f"| {median(one.tokens_per_second for one in own):.1f} "
            f"| {median(one.prompt_tokens_per_second for one in own):.0f} "
            f"| {median(one.p95_latency_ms for one in own):.0f} | {median(one.memory_mb for one in own):.0f} "
            f"| {median(ratios):.2f} ({quantile(ratios, 0.25):.2f} to {quantile(ratios, 0.75):.2f}) |"
        )
    return "\n".join(lines)


def tried(goal: Goal) -> str:
    """What the goal has tried, in Markdown, the best first."""
    lines = ["| way | by the present way's | tokens per second | p95 ms |", "| --- | ---: | ---: | ---: |"]
    for row in sorted(goal.result["tried"], key=lambda row: -row["ratio"]):
        told = row["measured"]
        figures = told.get("error") or f"{told['tokens_per_second']:.1f} | {told['p95_latency_ms']:.0f}"
        lines.append(f"| {row['way']} | {row['ratio']:.2f} | {figures} |")
    lost = [
        f"{each['weights'] or each['cache_type']} {each['increase']:+.2%}{'' if each['kept'] else ' (not kept)'}"
        for each in goal.result["perplexity"]
        if "increase" in each
    ]
    return "\n".join([*lines, "", f"Perplexity: {', '.join(lost) or 'nothing was rewritten'}."])


def _program(name: str) -> str:
    """The whole path of an executable program; of none, none."""
    if not name:
        return ""
    if found := shutil.which(name):
        return str(Path(found).resolve())
    raise argparse.ArgumentTypeError(f"'{name}' is no executable program")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workloads", nargs="+", choices=[*WORKLOADS], default=[*WORKLOADS])
    parser.add_argument("--rounds", type=int, default=8, help="of the comparison (8)")
    parser.add_argument("--requests", type=int, default=8, help="of each arm in a round (8)")
    parser.add_argument("--sample-s", type=float, default=4.0, help="shortest measurement of the goal (4)")
    parser.add_argument("--watch-seconds", type=float, default=5.0, help="that the applied way is watched (5)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the workloads' lengths, for a trial (1)")
    parser.add_argument(
        "--executable", default="", type=_program, help="a llama-server that runs all of it; else the package's"
    )
    parser.add_argument("--text", default="", help="what formats are judged by; else the text that is built in")
    parser.add_argument("--file", type=Path, help=f"the GGUF of {MODEL}; else the user's own, or fetched")
    options = parser.parse_args()
    told = machine(0)
    print(
        f"{told['cpu']}, {told['cores']} cores, Python {told['python']}, load average before: "
        f"{told['load_average_before']}.\n"
    )
    for name in options.workloads:
        lengths = {
            key: max(1, round(value * options.scale)) if key.endswith("tokens") else value
            for key, value in WORKLOADS[name].items()
        }
        with tempfile.TemporaryDirectory(prefix="bench-") as place:
            folder = Path(place)
            put_model(options.file, folder / "models" / f"{MODEL}.gguf")
            found = pursue(folder, lengths, options)
            rounds = uvloop.run(compare(folder, found, Workload.model_validate(lengths), options))
        result, steps = found.goal.result, found.goal.steps
        measured = sum(len(step.arguments.get("ways", ())) * step.arguments.get("pairs", 0) for step in steps)
        print(f"### {name}: {', '.join(f'{key} {value}' for key, value in lengths.items())}\n")
        applied = result["changes"] if result["applied"] else "nothing"
        print(f"Applied: {applied}, after {measured} measurements in {found.seconds:.0f} s; ", end="")
        print(f"in the goal's own pairs {result.get('gain', 1.0):.2f} times as good as before.\n")
        print(table(rounds), "\n")
        print(tried(found.goal), "\n")
    print(f"Load average after: {os.getloadavg()[0]:.2f} (the benchmark's own part is in it).")


if __name__ == "__main__":
    main()
