"""The coordinator's memory over 100,000 small requests, and over 10,000 that are refused.

An engine that answers at once takes what is asked over all three transports; the coordinator's resident memory is read
as the requests go by. What it holds after the first tenth is what it should still hold at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import machine
from bench.overload import Clients

from support import Served, serving, tiny_gguf


async def ask(served: Served, count: int, callers: int, *, refused: bool) -> None:
    """Ask until `count` were answered, or refused, and print what the coordinator holds after each tenth."""
    coordinator = psutil.Process(served.process.pid)
    clients = Clients(served, max_tokens=2)
    codes: Counter[str] = Counter()
    what = "refused" if refused else "answered"
    held: list[int] = []
    began = time.monotonic()

    async def one(transport: str) -> None:
        while codes[what] < count:
            outcome = await clients.ask(transport)
            if outcome.code not in ("", "overloaded"):
                raise RuntimeError(f"{transport}: {outcome.code}")
            codes["refused" if outcome.code else "answered"] += 1
            if codes[what] >= (len(held) + 1) * count / 10:
                held.append(coordinator.memory_info().rss)

    try:
        await asyncio.gather(*(one(name) for name in itertools.islice(itertools.cycle(clients.ways), callers)))
    finally:
        await clients.close()
    seconds = time.monotonic() - began
    cells = " | ".join(f"{rss / 2**20:.1f}" for rss in held)
    print(f"| {codes[what]:,} {what} | {seconds:.0f} | {cells} | {held[-1] / held[0] - 1:+.1%} |", flush=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--answered", type=int, default=100_000, help="requests that are answered (100000)")
    parser.add_argument("--refused", type=int, default=10_000, help="requests that are refused (10000)")
    options = parser.parse_args()
    machine(1)
    tenths = " | ".join(f"{tenth}0 %" for tenth in range(1, 11))
    print(f"| requests | s | MB after {tenths} | from the first tenth to the end |\n| --- |{' ---: |' * 12}")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        links = [("m", tiny_gguf(Path(folder) / "tiny.gguf"))]
        env = {"MODELOPS_ENGINE__SLOTS": "8", "MODELOPS_MODELS__MAX_QUEUE": "4"}
        with serving(Path(folder) / "data", links=links, load=["m"], fake={}, env=env) as served:
            asyncio.run(ask(served, options.answered, 12, refused=False))
            asyncio.run(ask(served, options.refused, 60, refused=True))


if __name__ == "__main__":
    main()
