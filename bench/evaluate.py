"""How many tokens per second an evaluation gets out of an engine, beside what the engine gives when asked directly.

Both ask the very same engine, which a pool in this process has loaded, the same prompts, greedily: `evaluate` through
the pool as a job does it, and directly over the engine's own socket, each answer whole, always a few more at once than
it has slots. They take turns block by block, and each goes first in every second one, so that what the machine does
meanwhile is in both. The figure is the median over the blocks of one's tokens per second by the other's. How many
answers differ is told, too: what is computed beside each other is rounded in another order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.gateway import MODEL, machine, put_model, quantile

from modelops.api.learning import EvaluateParameters
from modelops.engines.http import request
from modelops.engines.llama_cpp import Engine
from modelops.learning.asking import PoolAsker
from modelops.learning.datasets import Example
from modelops.learning.evaluate import evaluate
from modelops.settings import Settings
from serving.house import House, house

#: More at once than there are slots, as `evaluate` has it.
WAITING = 2
LONGEST = 2**20  # bytes of an answer
WHAT = ["the capital", "the largest city", "the language", "the currency", "a famous dish", "a river", "a mountain"]
WHERE = ["France", "Japan", "Peru", "Kenya", "Norway", "India", "Chile", "Egypt", "Spain", "Ghana", "Nepal", "Cuba"]
HOW = ["Name {} of {}.", "What is {} of {}?", "Tell me about {} of {} in one sentence.", "In {1}, what is {0} called?"]


@dataclass(frozen=True)
class Arm:
    """What one of the two made of a block."""

    answers: tuple[str, ...]
    tokens: int
    seconds: float
    cpu_s: float  # of this process, which asks; the engine's are not in it

    @property
    def rate(self) -> float:
        """Tokens of answers per second."""
        return self.tokens / self.seconds


def rows(count: int) -> list[Example]:
    """Each another, and the same ones in each run."""
    found = []
    for number in range(count):
        how, what, where = HOW[number % 4], WHAT[number % 7], WHERE[number % 12]
        asked = f"{how.format(what, where)} (Question {number + 1}.)"
        found.append(Example(number + 1, ({"role": "user", "content": asked},), "It is not known."))
    return found


async def judged(home: House, block: Sequence[Example], max_tokens: int) -> Arm:
    """The block by `evaluate`, as a job has it judged."""
    parameters = EvaluateParameters(metrics=["exact_match", "f1", "rouge_l"], max_tokens=max_tokens)
    began = time.process_time()
    found = await evaluate(block, parameters, PoolAsker(home.pool, MODEL), lambda _done, _total: None)
    cpu_s = time.process_time() - began
    return Arm(tuple(one.answer for one in found.judged), found.tokens, found.seconds, cpu_s)


async def direct(engine: Engine, block: Sequence[Example], max_tokens: int) -> Arm:
    """The block by the engine alone."""
    argv = engine.argv()
    socket, key = Path(argv[argv.index("--host") + 1]), engine.environment()["LLAMA_API_KEY"]
    found: dict[int, tuple[str, int]] = {}
    left = iter(block)

    async def one() -> None:
        for row in left:
            body = {"messages": [*row.turns], "max_tokens": max_tokens, "temperature": 0.0}
            async with request(socket, "POST", "/v1/chat/completions", key, json.dumps(body).encode()) as answer:
                told = json.loads(await answer.read_all(LONGEST))
            found[row.line] = told["choices"][0]["message"]["content"], told["usage"]["completion_tokens"]

    began, cpu_began = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(engine.spec.slots + WAITING):
            group.create_task(one())
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    told = [found[row.line] for row in block]
    return Arm(tuple(text for text, _ in told), sum(tokens for _, tokens in told), seconds, cpu_s)


async def measure(folder: Path, options: argparse.Namespace) -> float:
    """Ask all, print; the median ratio."""
    engine = {"slots": options.slots, "threads": options.threads}
    settings = Settings.model_validate({"data_dir": folder, "engine": engine})
    async with house(folder, settings, folder / "starts") as home:
        await home.load(MODEL, 120.0, pinned=True)
        async with home.lease(MODEL) as lease:
            asked = lease.engine
        arms: list[Callable[[Sequence[Example]], Awaitable[Arm]]] = [
            lambda block: judged(home, block, options.max_tokens),
            lambda block: direct(asked, block, options.max_tokens),
        ]
        every = rows(options.rows)
        for arm in arms:  # each has been used once
            await arm(every[: options.slots])
        pairs: list[tuple[Arm, Arm]] = []
        for turn in range(options.rounds):
            for first in range(0, len(every), options.block):
                block, order = every[first : first + options.block], [0, 1][:: -1 if len(pairs) % 2 else 1]
                made = {number: await arms[number](block) for number in order}
                pairs.append((made[0], made[1]))
                print(f"round {turn + 1}: {first + len(block)} of {len(every)}", file=sys.stderr)
    ratios = sorted(one.rate / other.rate for one, other in pairs)
    print("| | tokens per second, median | tokens | seconds | the asking process's own, of CPU |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, side in (("evaluate", 0), ("the engine directly", 1)):
        made_by = [pair[side] for pair in pairs]
        rate, tokens = median(one.rate for one in made_by), sum(one.tokens for one in made_by)
        seconds, cpu_s = sum(one.seconds for one in made_by), sum(one.cpu_s for one in made_by)
        print(f"| {name} | {rate:.1f} | {tokens} | {seconds:.1f} | {cpu_s:.1f} |")
    print(
        f"\nratio {median(ratios):.3f} (quarters {quantile(ratios, 0.25):.3f} and {quantile(ratios, 0.75):.3f}, all "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f}), median of {len(ratios)} blocks of {options.block} rows"
    )
    answers = [both for pair in pairs for both in zip(pair[0].answers, pair[1].answers, strict=True)]
    print(f"answers that differ: {sum(one != other for one, other in answers)} of {len(answers)}")
    return median(ratios)


def main() -> None:
    """Measure, and print; status 1 where the ratio is less than wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=500, help="rows (500)")
    parser.add_argument("--rounds", type=int, default=2, help="times that they are asked (2)")
    parser.add_argument("--block", type=int, default=50, help="rows of a block (50)")
    parser.add_argument("--max-tokens", type=int, default=32, help="most tokens of an answer (32)")
    parser.add_argument("--slots", type=int, default=4, help="of the engine (4)")
    parser.add_argument("--threads", type=int, default=0, help="the engine's threads; 0: as the coordinator decides")
    parser.add_argument("--least", type=float, default=0.9, help="the least ratio that is good (0.9)")
    parser.add_argument("--file", type=Path, help=f"the GGUF of {MODEL}; else the user's own, or fetched")
    options = parser.parse_args()
    told = machine(options.threads)
    print(
        f"{told['cpu']}, {told['cores']} cores, engine threads: {told['engine_threads']}, "
        f"Python {told['python']}, load average before: {told['load_average_before']}.\n"
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        put_model(options.file, Path(folder) / "models" / f"{MODEL}.gguf")
        ratio = uvloop.run(measure(Path(folder), options))
    print(f"Load average after: {os.getloadavg()[0]:.2f} (the benchmark's own part is in it).")
    sys.exit(0 if ratio >= options.least else 1)


if __name__ == "__main__":
    main()
