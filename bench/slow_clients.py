"""What others notice of hundreds of clients that do not go on: half-open connections, and readers of a byte a second.

Times with such a crowd and without follow each other in each round, as long each, so that what else the machine does is
in both. The crowd stands before REST in one half of the rounds and before gRPC in the other; connections that are hung
up on come again. The others ask over all three transports, one after another, in a steady loop.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import machine, quantile

from bad_clients import Crowd
from contract import wires
from contract.wires import TRANSPORTS, Wire
from support import Served, serving, tiny_gguf, wait_until

ASK = {"model_name": "m", "input_text": "Hello", "max_tokens": 8, "temperature": 0.0}
#: What the slow ones ask, of a model of their own: as long an answer as there is.
LONG = ASK | {"model_name": "long", "max_tokens": 2000}
TIMES = ("without", "without again", "with")


def asked(wire: Wire, seconds: float) -> list[float]:
    """Milliseconds that each request took, one after another, for so long. Fails where one is refused."""
    until = time.monotonic() + seconds
    took = []
    while time.monotonic() < until:
        began = time.perf_counter()
        wire.ok("infer", **ASK)
        took.append((time.perf_counter() - began) * 1000)
    return took


def everybody(clients: dict[str, Wire], seconds: float) -> dict[str, list[float]]:
    """The same over all transports at once."""
    with ThreadPoolExecutor(len(clients)) as threads:
        running = {name: threads.submit(asked, wire, seconds) for name, wire in clients.items()}
        return {name: one.result() for name, one in running.items()}


def measure(served: Served, options: argparse.Namespace) -> None:
    """All rounds, and the table."""
    coordinator = psutil.Process(served.process.pid)
    figures: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    with wires.connected(served) as clients:
        everybody(clients, 2)  # everything has been used once
        for _ in range(options.rounds):
            for way in ("rest", "grpc"):
                for time_ in TIMES:
                    with crowd_before(served, way, options) if time_ == "with" else contextlib.nullcontext():
                        for name, took in everybody(clients, options.seconds).items():
                            found = quantile(took, 0.5), quantile(took, 0.99)
                            figures.setdefault((way, name, time_), []).append(found)
                print(f"{way}: {coordinator.memory_info().rss / 2**20:.0f} MB", flush=True)
    print("\n| the crowd is before | others over | p50 ms without | with | p99 ms without | with |", end="")
    print(" p99: with / without | without again / without |\n| --- | --- |" + " ---: |" * 6)
    for way in ("rest", "grpc"):
        for name in TRANSPORTS:
            without, again, with_ = (figures[way, name, time_] for time_ in TIMES)
            cells = [f"{median(one[share] for one in of):.1f}" for share in (0, 1) for of in (without, with_)]
            ratios = [[one[1] / base[1] for one, base in zip(of, without, strict=True)] for of in (with_, again)]
            told = " | ".join(f"{median(of):.2f} ({min(of):.2f} to {max(of):.2f})" for of in ratios)
            print(f"| {way} | {name} | {' | '.join(cells)} | {told} |")


@contextlib.contextmanager
def crowd_before(served: Served, way: str, options: argparse.Namespace) -> Iterator[None]:
    """The crowd has come, and what it asked for has been made: it lies there to be read, a byte a second."""
    with (
        Crowd(getattr(served, way), way, options.half_open, options.slow, LONG) as crowd,
        wires.connected(served) as clients,
    ):
        everyone = options.half_open + options.slow
        wait_until(lambda: crowd.connected >= 0.95 * everyone, 60)
        wait_until(lambda: clients["rest"].info("long").active_requests == 0, 120)
        yield


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each time (10)")
    parser.add_argument("--half-open", type=int, default=500, help="connections that do not go on (500)")
    parser.add_argument("--slow", type=int, default=100, help="clients that read a byte a second (100)")
    options = parser.parse_args()
    machine(1)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        links = [(name, tiny_gguf(Path(folder) / name, general__name=name)) for name in ("m", "long")]
        env = {"MODELOPS_ENGINE__SLOTS": "16"}
        fake = {"token_s": 0.002, "models": {"long": {"token_s": 0}}}
        with serving(Path(folder) / "data", links=links, load=["m", "long"], fake=fake, env=env) as served:
            measure(served, options)


if __name__ == "__main__":
    main()
