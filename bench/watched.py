"""What counting and logging cost: the gateway benchmark's requests, paired over two coordinators.

One counts everything, writes its log as JSON into a file, and is scraped every five seconds; the other has
metrics.enabled off and logs errors only. Each has an engine of its own, of which one is idle while the other is asked.
One client asks both in turn, request by request; several clients ask them turn by turn. Ratios are of the same round,
medians over the rounds; the last lines compare the quiet one with itself, which is what the machine's noise makes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.gateway import PROMPTS, Arms, Load, Sample, Served, cpu_seconds, machine, sample, sampled, serving

WATCHED = {"MODELOPS_LOG__FORMAT": "json"}
QUIET = {"MODELOPS_METRICS__ENABLED": "false", "MODELOPS_LOG__LEVEL": "error"}
TRANSPORTS = ("rest", "rest-stream", "grpc", "zmq")
_SCRAPED_EVERY_S = 5.0


@dataclass(frozen=True)
class Side:
    """One coordinator, and the callers to it."""

    served: Served
    arms: Arms


async def in_turn(one: Side, other: Side, arm: str, requests: int) -> tuple[Sample, Sample]:
    """One client that asks both, request by request, for answers of one token."""
    sides = (one, other)
    callers = [side.arms.caller(arm) for side in sides]
    latencies: tuple[list[float], list[float]] = ([], [])
    tokens, used = [0, 0], [0.0, 0.0]
    for number in range(requests):
        for which in (0, 1) if number % 2 else (1, 0):
            pid = sides[which].served.process.pid
            computed, began = cpu_seconds(pid), time.perf_counter()
            tokens[which] += await callers[which].ask(PROMPTS[0], 1)
            latencies[which].append((time.perf_counter() - began) * 1000)
            used[which] += cpu_seconds(pid) - computed
    for caller in callers:
        await caller.close()
    first, second = (
        sampled(latencies[which], tokens[which], sum(latencies[which]) / 1000, used[which]) for which in (0, 1)
    )
    return first, second


async def by_turns(one: Side, other: Side, arm: str, load: Load, *, swapped: bool) -> tuple[Sample, Sample]:
    """Several clients, first at one and then at the other."""
    found = {}
    for side in (other, one) if swapped else (one, other):
        found[id(side)] = await sample(side.arms, arm, load, side.served.process)
    return found[id(one)], found[id(other)]


@contextlib.asynccontextmanager
async def scraped(served: Served) -> AsyncIterator[list[float]]:
    """Ask for the page now and then, as Prometheus does; how long each took, in ms."""
    took: list[float] = []

    def scrape() -> None:
        began = time.perf_counter()
        with urllib.request.urlopen(f"{served.rest}/metrics", timeout=10) as page:
            page.read()
        took.append((time.perf_counter() - began) * 1000)

    async def scraping() -> None:
        while True:
            await asyncio.to_thread(scrape)
            await asyncio.sleep(_SCRAPED_EVERY_S)

    task = asyncio.create_task(scraping())
    try:
        yield took
    finally:
        task.cancel()
        await asyncio.wait([task])


def row(arm: str, pairs: Sequence[tuple[Sample, Sample]]) -> str:
    """A line of the table: the medians of the first of each pair, and of its ratios to the second."""

    def ratio(name: str) -> float:
        return float(median(getattr(one, name) / getattr(other, name) for one, other in pairs))

    def own(name: str) -> float:
        return float(median(getattr(one, name) for one, _ in pairs))

    added = median(one.cpu_ms - other.cpu_ms for one, other in pairs) * 1000
    return (
        f"| {arm} | {own('p50'):.2f} | {ratio('p50'):.3f} | {ratio('p99'):.3f} | {own('tokens_per_second'):.1f} "
        f"| {ratio('tokens_per_second'):.3f} | {own('cpu_ms'):.2f} | {added:+.0f} |"
    )


async def measure(watched: Served, quiet: Served, again: Served, asked: Any) -> None:
    """Ask, and print a table for each number of clients."""
    on, off, same = (Side(served, Arms(served)) for served in (watched, quiet, again))
    async with scraped(watched) as pages:
        for clients in asked.clients:
            load = Load(clients, 1 if clients == 1 else max(8, 3 * clients), 1 if clients == 1 else 48, asked.rounds)
            if clients == 1:
                print(f"One client; answers of 1 token; {asked.requests} requests of each in a round; ", end="")
            else:
                print(f"{clients} clients; answers of 48 tokens; {load.requests} requests of each in a round; ", end="")
            print(f"{asked.rounds} rounds.\n")
            print("| | p50 ms | ratio | p99 ratio | tokens/s | ratio | CPU ms/request | added µs |")
            print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
            for arm, one, other in [*((arm, on, off) for arm in TRANSPORTS), ("noise (rest)", same, off)]:
                name = "rest" if arm.startswith("noise") else arm
                pairs = []
                for number in range(asked.rounds + 1):
                    if clients == 1:
                        pair = await in_turn(one, other, name, asked.requests)
                    else:
                        pair = await by_turns(one, other, name, load, swapped=bool(number % 2))
                    pairs.append(pair)
                print(row(arm, pairs[1:]), flush=True)  # the first warms up
            print()
        print(f"A page for Prometheus: {median(pages):.1f} ms, of {len(pages)}.")
    for side in (on, off, same):
        await side.arms.close()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8], help="clients at once (1 8)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds (7)")
    parser.add_argument("--requests", type=int, default=150, help="of one client, for each, per round (150)")
    parser.add_argument("--threads", type=int, default=0, help="the engines' threads; 0: as the coordinator decides")
    asked = parser.parse_args()
    told = machine(asked.threads)
    print(
        f"{told['cpu']}, {told['cores']} cores, engine threads: {told['engine_threads']}, "
        f"Python {told['python']}, load average before: {told['load_average_before']}.\n"
    )
    with (
        serving(None, asked.threads, WATCHED) as watched,
        serving(None, asked.threads, QUIET) as quiet,
        serving(None, asked.threads, QUIET) as again,
    ):
        uvloop.run(measure(watched, quiet, again, asked))
    print(f"Load average after: {os.getloadavg()[0]:.2f} (the benchmark's own part is in it).")


if __name__ == "__main__":
    main()
