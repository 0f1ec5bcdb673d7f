"""Fine-tunes the default model on the capitals, with a coordinator that runs, and shows what came of it.

Where it runs, and the key, are told as to `modelops`: MODELOPS_URL, MODELOPS_API_KEY, MODELOPS_CA_FILE.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelops import Client
from modelops.api.errors import ModelOpsError

HERE = Path(__file__).resolve().parent
MODEL, TUNED = "smollm2", "smollm2:capitals"
QUESTION = "What is the capital of France?"
PARAMETERS = {
    "epochs": 2,
    "learning_rate": 1e-3,
    "evaluation": {"metrics": ["exact_match", "contains", "perplexity"]},
}


def main() -> None:
    """Ask, fine-tune, compare, ask again."""
    url = os.environ.get("MODELOPS_URL") or "http://127.0.0.1:8008"
    key, ca_file = os.environ.get("MODELOPS_API_KEY"), os.environ.get("MODELOPS_CA_FILE")
    try:
        with Client(url, api_key=key, ca_file=ca_file) as client:
            run(client)
    except ModelOpsError as error:
        raise SystemExit(f"capitals: {error.message}") from None


def run(client: Client) -> None:
    """The example. Raises ModelOpsError."""
    ask(client, MODEL)
    job = client.create_job(
        "lora",
        MODEL,
        dataset=rows("train.jsonl"),
        eval_dataset=rows("heldout.jsonl"),
        regression_dataset=rows("regression.jsonl"),
        parameters=PARAMETERS,
        output_model_name=TUNED,
    )
    watched = subprocess.run([sys.executable, "-m", "modelops.cli", "jobs", "watch", job.job_id], check=False)
    if watched.returncode:
        raise SystemExit(watched.returncode)
    result = client.get_job(job.job_id).result
    if not result["active"]:  # it was run before
        client.activate(TUNED, result["model_version"])
    print()
    print(f"{'':24}{'before':>10}{'after':>10}")
    for name, before, after in scores(result["scores"]):
        print(f"{name:<24}{before:>10}{after:>10}")
    print()
    ask(client, TUNED)


def ask(client: Client, model: str) -> None:
    """Print what the model answers."""
    answer = client.infer(model, QUESTION, temperature=0.0, max_tokens=32)
    print(f"{model}: {QUESTION} {answer.output_text}", flush=True)


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file beside this one."""
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def scores(judged: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was judged, before and after."""
    for kind, metrics in (("held_out", ("exact_match", "contains")), ("regression", ("contains", "perplexity"))):
        for metric in metrics:
            before, after = (judged[kind][when][metric] for when in ("before", "after"))
            form = "{:.2f}" if metric == "perplexity" else "{:.1%}"
            yield f"{kind} {metric}", form.format(before), form.format(after)


if __name__ == "__main__":
    main()
