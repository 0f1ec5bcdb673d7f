"""What sharing the cores costs and gains: engines with a thread for every core, beside each other and beside others.

One coordinator serves the default model under two names. Both are asked for a long answer at once: through the
coordinator, which lets its engines take turns, and over the engines' own sockets, of which it knows nothing, so that
nobody is paused. One model alone is the measure of both. Then one model beside a program that keeps a core busy: as a
coordinator starts it, and as OpenMP's threads wait by themselves, which spin. The ways are gone round in each round,
each for some seconds, and the table gives tokens per second of all answers together, and the longest pause between two
tokens of one answer.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import machine, put_model

from chaos.callers import programs, stream_rest
from support import Served, serving, wait_until

NAMES = ("one", "other")
TEXT = "Count from 1 to a million: 1, 2, 3,"

#: The pieces of an answer that is longer than anybody listens.
Answer = Callable[[str], Generator[object]]


@dataclass(frozen=True)
class Sample:
    """One way in one round."""

    tokens_per_second: float
    longest_pause_s: float


class Bench:
    """The coordinator, and the ways to its engines."""

    def __init__(self, served: Served, stack: ExitStack) -> None:
        self._served = served
        self._engines: dict[str, httpx.Client] = {}
        for program in programs(served):
            self._engines[flag(program, "--alias")] = stack.enter_context(
                httpx.Client(
                    transport=httpx.HTTPTransport(uds=flag(program, "--host")),
                    base_url="http://engine",
                    headers={"Authorization": f"Bearer {program.environ()['LLAMA_API_KEY']}", "Connection": "close"},
                    timeout=120,
                )
            )

    def through(self, name: str) -> Generator[object]:
        """An answer through the coordinator."""
        request = {"model_name": name, "input_text": TEXT, "raw": True, "max_tokens": 2048, "temperature": 0.0}
        with closing(stream_rest(self._served, request)) as chunks:
            yield from (chunk for chunk in chunks if chunk["text"])

    def directly(self, name: str) -> Generator[object]:
        """The same answer by the engine itself."""
        body = {"prompt": TEXT, "max_tokens": 2048, "temperature": 0.0, "stream": True}
        with self._engines[name].stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            yield from (line for line in response.iter_lines() if '"text":' in line and '"text":""' not in line)

    def until_idle(self) -> None:
        """Wait until no engine works any more for somebody who has hung up."""
        wait_until(
            lambda: not any(slot["is_processing"] for engine in self._engines.values() for slot in slots(engine)), 30
        )


def slots(engine: httpx.Client) -> list[dict[str, object]]:
    """The engine's slots, as it tells."""
    told: list[dict[str, object]] = engine.get("/slots").json()
    return told


def flag(program: psutil.Process, name: str) -> str:
    """The value of a flag that the engine was started with."""
    argv = program.cmdline()
    return argv[argv.index(name) + 1]


def sample(answer: Answer, names: Sequence[str], seconds: float) -> Sample:
    """Ask them all at once, and look at so many seconds of it from when all have begun."""
    times: dict[str, list[float]] = {name: [] for name in names}
    all_began, ended = threading.Barrier(len(names)), [float("inf")]

    def read(name: str) -> None:
        with closing(answer(name)) as pieces:
            next(pieces)
            if all_began.wait(60) == 0:
                ended[0] = time.perf_counter() + seconds
            for _ in pieces:
                times[name].append(time.perf_counter())
                if times[name][-1] > ended[0]:
                    return

    threads = [threading.Thread(target=read, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(not seen or seen[-1] < ended[0] for seen in times.values()):
        sys.exit("an answer ended early: there is nothing to compare")
    made = sum(at <= ended[0] for seen in times.values() for at in seen)
    return Sample(made / seconds, max(b - a for seen in times.values() for a, b in pairwise(seen)))


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds (7)")
    parser.add_argument("--seconds", type=float, default=5.0, help="for which each way is looked at (5)")
    parser.add_argument("--threads", type=int, default=0, help="of each engine; 0: one for each core")
    parser.add_argument("--file", type=Path, help="the GGUF of the default model; else the user's own, or fetched")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        file = Path(folder) / "file" / "model.gguf"
        put_model(asked.file, file)
        env = {"MODELOPS_ENGINE__THREADS": str(asked.threads), "MODELOPS_ENGINE__SLOTS": "1"}
        served = stack.enter_context(
            serving(Path(folder) / "data", links=[(name, file) for name in NAMES], load=NAMES, env=env)
        )
        bench = Bench(served, stack)
        # What libgomp does where nobody says otherwise.
        spins = env | {"GOMP_SPINCOUNT": "300000"}
        spinning = Bench(
            stack.enter_context(serving(Path(folder) / "spins", links=[("one", file)], load=["one"], env=spins)), stack
        )

        def beside(way: Bench) -> Sample:
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
                try:
                    return sample(way.through, NAMES[:1], asked.seconds)
                finally:
                    other.kill()

        ways: dict[str, Callable[[], Sample]] = {
            "one alone": lambda: sample(bench.through, NAMES[:1], asked.seconds),
            "both, in turns": lambda: sample(bench.through, NAMES, asked.seconds),
            "both, at once": lambda: sample(bench.directly, NAMES, asked.seconds),
            "one alone, threads spin": lambda: sample(spinning.through, NAMES[:1], asked.seconds),
            "one, beside a busy program": lambda: beside(bench),
            "one, beside a busy program, threads spin": lambda: beside(spinning),
        }
        samples: dict[str, list[Sample]] = {way: [] for way in ways}
        for _ in range(asked.rounds):
            for way, measure in ways.items():
                samples[way].append(measure())
                bench.until_idle()
                spinning.until_idle()
    told = machine(asked.threads)
    print(f"{told['cpu']}, {told['cores']} cores, engine threads: {told['engine_threads']}.")
    print(f"{asked.rounds} rounds of {asked.seconds:.0f} s; load average before: {told['load_average_before']}.\n")
    print("| | tokens/s together | least | most | longest pause s |\n| --- | ---: | ---: | ---: | ---: |")
    for way, found in samples.items():
        rates = [one.tokens_per_second for one in found]
        pause = max(one.longest_pause_s for one in found)
        print(f"| {way} | {median(rates):.1f} | {min(rates):.1f} | {max(rates):.1f} | {pause:.2f} |")
    pairs = zip(samples["both, in turns"], samples["both, at once"], strict=True)
    ratios = [turns.tokens_per_second / at_once.tokens_per_second for turns, at_once in pairs]
    print(f"\nIn turns they make {median(ratios):.2f} times as much as at once (median of the rounds).")


if __name__ == "__main__":
    main()
