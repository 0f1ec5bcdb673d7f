"""What goals of quality make of the default model and the rows of examples/capitals, each from one request.

Three goals, one after another, on one coordinator: with the answers of the training rows shuffled, so that what is
learnt is wrong; with a target that nothing reaches; and as the example has it. The first two must fail, and change
nothing that answers; the last must be completed, and be what answers.

A fourth is pursued where it is named: as the example, but once the version is promoted its file is damaged, and its
engine killed. It must fail, and the version before it answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import MODEL, machine, put_model

from chaos.callers import programs
from damages import spoiled
from modelops.api.goals import Goal
from modelops.client import Client
from support import Served, serving

HERE = Path(__file__).parents[1] / "examples" / "capitals"
TITLES = ("shuffled answers", "out of reach", "as the example")
DAMAGED = "fails after promotion"
QUESTION = "What is the capital of France?"
Rows = list[dict[str, Any]]


def rows(name: str) -> Rows:
    """The rows of a file of the example."""
    return [json.loads(line) for line in (HERE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def shuffled(good: Sequence[Mapping[str, Any]], seed: int = 0) -> Rows:
    """The same questions, each with the answer to some other."""
    answers = [row["completion"] for row in good]
    random.Random(seed).shuffle(answers)
    return [{**row, "completion": answer} for row, answer in zip(good, answers, strict=True)]


def wished(train: Rows, **more: Any) -> dict[str, Any]:
    """The objective of the example, with those rows to learn."""
    sets = {"train_dataset": train, "eval_dataset": rows("heldout"), "regression_dataset": rows("regression")}
    judged = {"metric": "exact_match", "target": 0.95, "regression_metric": "contains", "watch_seconds": 30}
    return {"type": "quality", "model_name": MODEL, **sets, **judged, **more}


class Planted:
    """A fault of what a goal has promoted: its file is damaged, and its engine killed so that it must be loaded again.

    `at` is when, in seconds since the epoch; 0 until then.
    """

    def __init__(self, served: Served, client: Client) -> None:
        self._served = served
        self._client = client
        self.at = 0.0

    def look(self, goal_id: str) -> None:
        """Plant it, if there is something promoted, and it was not yet."""
        steps = self._client.get_goal(goal_id).steps
        promoted = [step for step in steps if step.action == "promote" and step.completed_at and not step.error_message]
        if self.at or not promoted:
            return
        versions = {found.model_version: found for found in self._client.versions(MODEL)}
        spoiled(self._served.data_dir / "models" / versions[promoted[-1].result["version"]].model_path)
        self.at = time.time()
        for program in programs(self._served):
            with contextlib.suppress(psutil.NoSuchProcess):  # of the version before, which ends
                program.kill()

    def told(self, goal: Goal) -> str:
        """How long it took to undo the promotion; without that it is the end of the benchmark."""
        undone = next((step for step in goal.steps if step.action == "roll_back"), None)
        if not self.at or undone is None or undone.completed_at is None:
            sys.exit(f"'{goal.title}' {goal.status}, and nothing was rolled back: {goal.error_message}")
        began, ended = (when.timestamp() - self.at for when in (undone.started_at, undone.completed_at))
        return f"from the damage until roll_back began {began:.2f} s, until it was done {ended:.2f} s"


def pursue(
    client: Client,
    title: str,
    objective: Mapping[str, Any],
    limits: Mapping[str, Any],
    fault: Planted | None = None,
) -> tuple[Goal, float]:
    """The goal when it has ended, and the seconds that it took; the `fault` is planted meanwhile."""
    began = time.monotonic()
    goal_id, seen = client.create_goal(title, dict(objective), limits=dict(limits)).goal_id, 0
    while True:
        for event in client.watch_goal(goal_id, after=seen):
            seen = max(seen, event.number)
            if fault:
                fault.look(goal_id)
            if event.kind in ("step", "state", "warning"):
                print(f"{time.monotonic() - began:6.0f} s {event.kind}: {event.message}", file=sys.stderr)
        goal = client.get_goal(goal_id)
        if goal.completed_at:
            return goal, time.monotonic() - began


def told(goal: Goal, seconds: float, answers: str) -> str:
    """A row of the table."""
    best, lost = goal.result.get("best") or {}, goal.result.get("regression") or {}
    figures = [goal.result.get("baseline", {}).get("score"), best.get("score"), lost.get("before"), lost.get("after")]
    written = " | ".join("" if value is None else f"{value:.3f}" for value in figures)
    trained = len(goal.result.get("attempts") or ())
    return f"| {goal.title} | {goal.status} | {written} | {trained} | {seconds:.0f} | {answers} |"


def main() -> None:
    """Pursue them, and print a table."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    flags.add_argument("--steps", type=int, default=30, help="of each training that must fail (30)")
    flags.add_argument("--which", nargs="+", choices=(*TITLES, DAMAGED), default=TITLES)
    options = flags.parse_args()
    good, short = rows("train"), {"parameters": {"steps": options.steps}}
    goals = (
        (TITLES[0], wished(shuffled(good), **short), {"max_jobs": 1}, "v1"),
        (TITLES[1], wished(good, metric="perplexity", target=1.001, **short), {"max_jobs": 1}, "v1"),
        (DAMAGED, wished(good), {"max_jobs": 4}, "v1"),
        (TITLES[2], wished(good), {"max_jobs": 4}, ""),
    )
    print(machine(0))
    lines, why = ["| goal | ended | before | best | other rows before | after | trainings | s | answers |"], []
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        put_model(None, Path(folder) / "models" / f"{MODEL}.gguf")
        with (
            serving(
                Path(folder),
                load=[MODEL],
                env={"MODELOPS_ENGINE__THREADS": "0", "MODELOPS_SERVER__MAX_BODY_BYTES": str(16 << 20)},
            ) as served,
            Client(served.rest, timeout_s=300.0) as client,
        ):
            for title, objective, limits, stays in (each for each in goals if each[0] in options.which):
                fault = Planted(served, client) if title == DAMAGED else None
                goal, seconds = pursue(client, title, objective, limits, fault)
                answer = client.infer(MODEL, QUESTION, temperature=0.0, max_tokens=8)
                lines.append(told(goal, seconds, f"{answer.model_version}: {answer.output_text.strip()}"))
                why.append(f"{title}: {goal.error_message or goal.message}")
                if fault:
                    why.append(f"{title}: {fault.told(goal)}")
                if goal.status != ("failed" if stays else "completed") or (stays and answer.model_version != stays):
                    sys.exit(f"'{title}' {goal.status}, and {answer.model_version} answers: {goal.error_message}")
    print("\n".join(lines), "", *why, sep="\n")
    print(f"Load average after: {os.getloadavg()[0]:.2f} (the benchmark's own part is in it).")


if __name__ == "__main__":
    main()
