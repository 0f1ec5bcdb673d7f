"""What requests notice of a change of the model's version: their latency with and without, under many clients.

Two versions of the default model, which are two copies of its file, let each other answer while clients on all three
transports, half of them with streams, ask without a pause. Times with changes and without follow each other in each
round, as long each, so that what else the machine does is in both. A request that fails, or is answered by a version
that was not active while it ran, ends the benchmark.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import machine, put_model, quantile

from chaos.callers import client
from chaos.swapping import Asked, Swapped, clients, judge, swap
from support import serving, wait_until

WAYS = ("without", "beside", "after")


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, default=16, help="clients at once (16)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way (5)")
    parser.add_argument("--swaps", type=int, default=5, help="changes in a round (5)")
    parser.add_argument("--max-tokens", type=int, default=12, help="length of an answer (12)")
    parser.add_argument("--threads", type=int, default=1, help="of each engine (1)")
    parser.add_argument("--file", type=Path, help="the GGUF of the default model; else the user's own, or fetched")
    asked = parser.parse_args()
    request = {"model_name": "m", "max_tokens": asked.max_tokens, "raw": True, "temperature": 0.0}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        put_model(asked.file, Path(folder) / "file" / "model.gguf")
        file = Path(folder) / "file" / "model.gguf"
        env = {"MODELOPS_ENGINE__THREADS": str(asked.threads)}
        links = [("m", file), ("other", file)]
        with serving(Path(folder) / "data", links=links, load=["m"], env=env) as served, client(served) as door:
            told = machine(asked.threads)
            door.register("m", "other.gguf")
            swaps: list[Swapped] = []
            spans: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
            with clients(served, asked.clients, lambda number: request | {"input_text": f"Count {number}."}) as asking:
                wait_until(lambda: len(asking.asked) > 2 * asked.clients, 120)
                for _ in range(asked.rounds):
                    took = 0.0
                    for way in ("beside", "after", "without"):
                        began = time.monotonic()
                        if way == "without":
                            wait_until(partial(passed, began + took), took + 10)
                        for _ in range(0 if way == "without" else asked.swaps):
                            version = ("v2", "v1")[len(swaps) % 2]
                            swaps.append(swap(door, "m", version, back=len(swaps) > 0, drain_first=way == "after"))
                        spans[way].append((began, time.monotonic()))
                        took = max(took, spans[way][-1][1] - began)
    if wrong := judge(asking.asked, "v1", swaps):
        sys.exit("\n".join(wrong[:20]))
    print(f"{told['cpu']}, {told['cores']} cores, engine threads: {told['engine_threads']}; ", end="")
    print(f"load average before: {told['load_average_before']}.")
    print(f"{asked.clients} clients, answers of {asked.max_tokens} tokens, {len(asking.asked)} requests, ", end="")
    print(f"{len(swaps)} changes, none failed.\n")
    print("| changes | requests | p50 s | p99 s | longest s | a change takes s |\n| --- " + "| ---: " * 5 + "|")
    for way in WAYS:
        print(row(way, asking.asked, spans[way], swaps))


def passed(when: float) -> bool:
    """Whether it is later than that."""
    return time.monotonic() > when


def row(way: str, asked: Sequence[Asked], spans: Sequence[tuple[float, float]], swaps: Sequence[Swapped]) -> str:
    """One way in the table: the requests that ran, wholly or in part, while it was looked at."""

    found = sorted(one.seconds for one in asked if any(a <= one.ended and one.began <= b for a, b in spans))
    took = [one.ended - one.began for one in swaps if any(a <= one.began and one.ended <= b for a, b in spans)]
    change = f"{median(took):.2f}" if took else ""
    return (
        f"| {way} | {len(found)} | {quantile(found, 0.5):.2f} | {quantile(found, 0.99):.2f} | {found[-1]:.2f} "
        f"| {change} |"
    )


if __name__ == "__main__":
    main()
