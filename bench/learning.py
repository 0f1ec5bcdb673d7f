"""What callers notice of a learning job on the same cores, and what the job notices of them.

A coordinator with the default model is asked by one caller at random moments (about one request every two seconds, the
same list of moments in each phase), before a job, while it trains, and after it. Given are the times to the whole
answer, of the phases without a job together and of the one with it; then the job is left alone, and ends. How long the
job would have taken by itself is not measured: what it waits for is what it gives.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import machine, put_model, quantile

from modelops.api.learning import LearningJob
from modelops.client import Client
from support import serving

MODEL = "smollm2"
HERE = Path(__file__).parents[1] / "examples" / "capitals"
LONGEST_S = 3600.0


def main() -> None:
    """Measure, and print a table."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--requests", type=int, default=60, help="of each of the three phases")
    flags.add_argument("--gap", type=float, default=2.0, help="mean seconds between the end of one and the next")
    flags.add_argument("--steps", type=int, default=30, help="of the job")
    flags.add_argument("--json", action="store_true")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        put_model(None, Path(folder) / "models" / f"{MODEL}.gguf")
        env = {"MODELOPS_ENGINE__THREADS": "0"}
        with (
            serving(Path(folder), load=[MODEL], env=env) as served,
            Client(served.rest, timeout_s=300.0) as client,
        ):
            found = measure(client, options)
    if options.json:
        print(json.dumps(found))
        return
    print(machine(0))
    for name, value in found.items():
        print(f"{name:>28}  {value}")


def measure(client: Client, options: argparse.Namespace) -> dict[str, float | int | str]:
    """All three phases, and the end of the job."""
    ask(client)  # what is only once
    before = phase(client, options)
    rows = [json.loads(line) for line in (HERE / "train.jsonl").read_text().splitlines()]
    created = client.create_job(
        "lora", MODEL, dataset=rows, parameters={"steps": options.steps, "rank": 8}, output_model_name=f"{MODEL}:b"
    )
    until(client, created.job_id, lambda job: job.step == "train" and job.metrics.get("step", 0) >= 1)
    with_job = phase(client, options)
    meanwhile = client.get_job(created.job_id)
    left_alone = time.monotonic()
    job = until(client, created.job_id, lambda job: job.status not in ("pending", "running"))
    rest_s = time.monotonic() - left_alone
    after = phase(client, options)
    without = before + after
    return {
        "requests": 3 * options.requests,
        "median without, s": round(quantile(without, 0.5), 3),
        "median with, s": round(quantile(with_job, 0.5), 3),
        "median ratio": round(quantile(with_job, 0.5) / quantile(without, 0.5), 3),
        "p95 without, s": round(quantile(without, 0.95), 3),
        "p95 with, s": round(quantile(with_job, 0.95), 3),
        "p95 ratio": round(quantile(with_job, 0.95) / quantile(without, 0.95), 3),
        "p95 before, s": round(quantile(before, 0.95), 3),
        "p95 after, s": round(quantile(after, 0.95), 3),
        "steps beside requests": int(meanwhile.metrics.get("step", 0)),
        "status then": meanwhile.status,
        "the rest of the job took, s": round(rest_s, 1),
        "the job": job.status,
    }


def phase(client: Client, options: argparse.Namespace) -> list[float]:
    """The same requests at the same moments; how long each took."""
    chance, took = random.Random(7), []
    for _ in range(options.requests):
        time.sleep(chance.expovariate(1 / options.gap))
        took.append(ask(client))
    return took


def ask(client: Client) -> float:
    """Seconds for one answer of thirty-two tokens."""
    began = time.perf_counter()
    client.infer(MODEL, "Write about the sea, the wind and the ships.", max_tokens=32, temperature=0.0)
    return time.perf_counter() - began


def until(client: Client, job_id: str, wanted: Callable[[LearningJob], bool]) -> LearningJob:
    """The job, as soon as it is as wanted, or has ended."""
    deadline = time.monotonic() + LONGEST_S
    while time.monotonic() < deadline:
        job = client.get_job(job_id)
        if wanted(job) or job.status in ("completed", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise SystemExit("the job did not get there")


if __name__ == "__main__":
    main()
