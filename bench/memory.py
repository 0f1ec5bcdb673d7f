"""How right the estimates of memory are: the engine's projection, our formula and the correction, beside what is used.

Each configuration is read, probed, loaded by a real engine with one thread, asked a prompt that fills a whole step (for
one of them the whole context: a short prompt leaves most of a long context's mask untouched) and then one question for
each slot, and measured: resident memory of the engine's processes, without the pages of weights that it mapped and then
copied into another order. "Corrected" is
foretold from one earlier load of the same file with other settings; for the first configuration of each file, from a
load with the same settings, which is repeated. "Kept" is what the coordinator would record of this load.

The generated files have weights of zero, in a sparse file. An engine maps and reads them like any others: the pages of
a hole count as resident. Everything is made in a temporary folder and removed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from ggufs import make
from modelops import settings
from modelops.engines.base import CacheType, EngineSpec, Prompt
from modelops.engines.llama_cpp import Engine
from modelops.engines.probe import Projection, project
from modelops.serving import sources
from modelops.serving.estimates import Past, choose, measured_bytes, projected_bytes, unused_bytes
from modelops.serving.gguf import Header, read_header, write_skeleton
from modelops.serving.memory import MB, Need, need

_ANSWER = 96  # tokens, so that a probe takes a good part of the answer's time
GENERATED: dict[str, dict[str, Any]] = {
    "llama 0.4 GB": {"layers": 16, "width": 1536, "feed_forward": 4096, "heads": 24, "kv_heads": 8, "words": 32000},
    "llama 3 GB Q4_0": {
        "layers": 28,
        "width": 4096,
        "feed_forward": 11008,
        "heads": 32,
        "kv_heads": 32,
        "kind": "q4_0",
    },
    "qwen3 tied": {"layers": 14, "feed_forward": 3072, "kv_heads": 8, "head": 128, "words": 151936, "tied": True},
    "qwen3moe": {"layers": 8, "feed_forward": 768, "kv_heads": 4, "words": 32000, "experts": (32, 8)},
    "gemma2 Q4_K tied": {
        "layers": 12,
        "feed_forward": 4096,
        "kv_heads": 4,
        "words": 128000,
        "kind": "q4_k",
        "tied": True,
    },
    "cohere2": {
        "layers": 12,
        "feed_forward": 3072,
        "kv_heads": 4,
        "words": 64000,
        "tied": True,
        "entries": {"attention.sliding_window": 1024},
    },
    "mamba": {"layers": 24, "words": 50000},
    "lfm2": {"layers": 16, "feed_forward": 4096, "kv_heads": 8, "words": 64000, "tied": True},
    "granitehybrid": {"layers": 16, "feed_forward": 3072, "kv_heads": 4, "words": 49000},
    "deepseek2 MLA": {"layers": 12, "feed_forward": 4096, "kv_heads": 16, "words": 64000},
}


@dataclass(frozen=True)
class Run:
    """One configuration: `context` tokens for each slot; `prompt`, tokens of the first prompt, 0: a step and a few."""

    name: str
    context: int
    slots: int
    batch: int
    cache: CacheType
    prompt: int = 0


_RUNS = (
    Run("smollm2", 4096, 4, 128, "f16"),
    Run("smollm2", 512, 1, 128, "f16"),
    Run("smollm2", 2048, 2, 512, "q8_0"),
    Run("smollm2", 8192, 8, 512, "f16"),
    Run("smollm2", 8192, 4, 64, "q8_0"),
    Run("smollm2", 32768, 1, 256, "f16"),
    Run("gemma3-270m", 4096, 4, 128, "f16"),
    Run("gemma3-270m", 512, 1, 64, "f16"),
    Run("gemma3-270m", 32768, 1, 512, "f16", prompt=32000),
    Run("gemma3-270m", 8192, 8, 256, "q8_0"),
    Run("gemma3-270m", 32768, 8, 512, "f16"),
    Run("llama 0.4 GB", 2048, 2, 128, "f16"),
    Run("llama 0.4 GB", 32768, 1, 256, "q8_0"),
    Run("llama 0.4 GB", 1000, 8, 256, "f16"),
    Run("llama 3 GB Q4_0", 2048, 1, 32, "f16"),
    Run("llama 3 GB Q4_0", 8192, 1, 32, "q8_0"),
    Run("qwen3 tied", 2048, 4, 128, "f16"),
    Run("qwen3 tied", 16384, 1, 128, "f16"),
    Run("qwen3moe", 4096, 2, 128, "f16"),
    Run("qwen3moe", 16384, 2, 256, "q8_0"),
    Run("gemma2 Q4_K tied", 4096, 2, 128, "f16"),
    Run("gemma2 Q4_K tied", 32768, 1, 256, "f16"),
    Run("cohere2", 2048, 2, 128, "f16"),
    Run("cohere2", 32768, 2, 256, "f16"),
    Run("mamba", 2048, 1, 128, "f16"),
    Run("mamba", 2048, 8, 256, "f16"),
    Run("lfm2", 4096, 2, 128, "f16"),
    Run("lfm2", 32768, 4, 256, "q8_0"),
    Run("granitehybrid", 4096, 2, 128, "f16"),
    Run("granitehybrid", 16384, 4, 256, "f16"),
    Run("deepseek2 MLA", 4096, 2, 128, "f16"),
    Run("deepseek2 MLA", 32768, 1, 256, "f16"),
)


@dataclass(frozen=True)
class Result:
    """What was found: sizes in bytes, the probe's time in seconds."""

    run: Run
    computed: Need
    projected: int
    corrected: int
    kept: int
    measured: int
    probe_s: float


async def main() -> None:
    """Measure, print the tables, say which targets hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gemma", type=Path, help="a Gemma 3 270M file, where it is not one of the known sources")
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--pairs", type=int, default=24, help="answers with and without a probe beside them")
    options = parser.parse_args()
    runs = [run for run in _RUNS if options.only in run.name]
    with tempfile.TemporaryDirectory(prefix="modelops-memory-") as folder:
        files = await _files({run.name for run in runs}, options.gemma, Path(folder))
        results: list[Result] = []
        for run in runs:
            if run.name not in files:
                print(f"{run.name} is skipped: its file is not there (see --gemma)", file=sys.stderr)
                continue
            results.append(await _measure(run, files[run.name], results, Path(folder)))
            print(_row(results[-1]), file=sys.stderr, flush=True)
        print(_table(results))
        print(_targets(results))
        if "smollm2" in files:
            print(await _beside(files["smollm2"], options.pairs, Path(folder)))


async def _files(names: set[str], gemma: Path | None, folder: Path) -> dict[str, Path]:
    files = {
        name: make(folder / f"{name.replace(' ', '-')}.gguf", name.split()[0], **{"width": 1024, "heads": 16} | shape)
        for name, shape in GENERATED.items()
    }
    known = settings.load(environ={}).models_dir
    for name in ("smollm2", "gemma3-270m"):
        if name in names and (source := sources.KNOWN.get(name)):
            files[name] = known / f"{name}.gguf"
            parsed = sources.parse(source)
            if not sources.has_digest(files[name], parsed.sha256):
                files[name] = folder / f"{name}.gguf"
                await sources.fetch(parsed, files[name], lambda _done, _total: None)
    if gemma:
        files["gemma3-270m"] = gemma
    return {name: file for name, file in files.items() if name in names}


def _spec(file: Path, run: Run) -> EngineSpec:
    return EngineSpec(
        model_name=file.stem,
        file=file,
        executable="",
        slots=run.slots,
        context_length=run.context,
        threads=1,
        batch_size=run.batch,
        cache_ram_mb=0,
        gpu_layers=0,
        load_timeout_s=300,
        stop_timeout_s=5,
        cache_type=run.cache,
    )


async def _measure(run: Run, file: Path, before: Sequence[Result], folder: Path) -> Result:
    spec = _spec(file, run)
    header = read_header(spec.file)
    computed = need(
        header,
        slots=spec.slots,
        context_length=spec.context_length,
        batch_size=spec.batch_size,
        cache_ram_mb=spec.cache_ram_mb,
        cache_type=spec.cache_type,
    )
    started = time.perf_counter()
    projection = await _probe(spec, folder)
    probe_s = time.perf_counter() - started
    if projection is None:
        raise SystemExit(f"{run.name}: the engine gave no projection")
    projected = projected_bytes(projection, computed)
    measured, kept = await _load(run, spec, header, projection, computed, folder)
    first = next((result for result in before if result.run.name == run.name), None)
    if first:
        past = Past(first.computed.total, first.projected, first.kept)
        corrected = choose(computed, projected, None, past).total
    else:
        corrected = choose(computed, projected, Past(computed.total, projected, kept), None).total
        measured, _ = await _load(run, spec, header, projection, computed, folder)
    return Result(run, computed, projected, corrected, kept, measured, probe_s)


async def _probe(spec: EngineSpec, folder: Path) -> Projection | None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        return await project(replace(spec, file=write_skeleton(spec.file, Path(place))))


@asynccontextmanager
async def _running(spec: EngineSpec, folder: Path) -> AsyncIterator[Engine]:
    engine = Engine(spec, folder / "engine.sock")
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def _load(
    run: Run, spec: EngineSpec, header: Header, projection: Projection, computed: Need, folder: Path
) -> tuple[int, int]:
    """What an engine takes: measured here, and as the coordinator keeps it."""
    async with _running(spec, folder) as engine:
        # A generated vocabulary has a token for each letter, a real one for each word.
        word = "x" if run.name in GENERATED else "a "
        await _ask(engine, word * min(run.context - 64, run.prompt or min(run.batch, 512) + 8), 4)
        await asyncio.gather(*(_ask(engine, f"What is {slot}?", 4) for slot in range(spec.slots)))
        resident = engine.memory_bytes() - unused_bytes(projection, header, computed, engine.taken_bytes())
        return resident, measured_bytes(engine.taken_bytes(), projection, computed)


async def _ask(engine: Engine, text: str, tokens: int, on_piece: Callable[[], None] = lambda: None) -> None:
    prompt = Prompt(text=text, system="", raw=True, max_tokens=tokens, temperature=0, top_p=1, stop=(), seed=1)
    async for _ in engine.generate(prompt):
        on_piece()


async def _beside(file: Path, pairs: int, folder: Path) -> str:
    """Whether a probe slows an engine that is answering."""
    spec = _spec(file, Run("", 2048, 1, 128, "f16"))
    ratios: list[float] = []
    gaps: list[float] = []
    async with _running(spec, folder) as engine:
        await _ask(engine, "Once upon a time", 32)
        for pair in range(pairs):
            took: dict[bool, float] = {}
            for probed in (True, False) if pair % 2 else (False, True):
                times = [time.perf_counter()]

                def on_piece(times: list[float] = times) -> None:
                    times.append(time.perf_counter())

                asking = [_ask(engine, "Once upon a time", _ANSWER, on_piece)]
                await asyncio.gather(*asking, *([_probe(spec, folder)] if probed else []))
                took[probed] = times[-1] - times[0]
                if probed:
                    gaps.append(max(b - a for a, b in pairwise(times[1:])))
            ratios.append(took[True] / took[False])
    return (
        f"\nAn answer of {_ANSWER} tokens beside a probe took {median(ratios):.3f} times as long as one without "
        f"(median of {pairs} pairs, {min(ratios):.3f} to {max(ratios):.3f}); the longest pause between two tokens was "
        f"{max(gaps) * 1000:.0f} ms."
    )


def _off(found: int, measured: int) -> str:
    return f"{found / MB:,.0f} ({(found - measured) / measured:+.1%})"


def _row(result: Result) -> str:
    run, measured = result.run, result.measured
    return (
        f"| {run.name} | {run.context} × {run.slots} | {run.batch} | {run.cache} "
        f"| {measured / MB:,.0f} | {_off(result.projected, measured)} | {_off(result.computed.total, measured)} "
        f"| {_off(result.corrected, measured)} | {_off(result.kept, measured)} | {result.probe_s:.2f} |"
    )


def _table(results: Sequence[Result]) -> str:
    head = "| model | context × slots | batch | cache | measured MB | probe | formula | corrected | kept | probe s |"
    return "\n".join([head, "|" + " --- |" * 10, *map(_row, results)])


def _targets(results: Sequence[Result]) -> str:
    def within(found: Callable[[Result], int], share: float, least_mb: float) -> float:
        good = [abs(found(r) - r.measured) <= max(share * r.measured, least_mb * MB) for r in results]
        return sum(good) / len(good)

    def middle(found: Callable[[Result], int]) -> float:
        return median(abs(found(result) - result.measured) / result.measured for result in results)

    probe, formula, corrected = (
        lambda r: r.projected,
        lambda r: r.computed.total,
        lambda r: r.corrected,
    )
    slowest = max(result.probe_s for result in results)
    return "\n".join(
        [
            "",
            f"{len(results)} configurations.",
            "",
            "| figure | median error | target | reached by |",
            "| --- | --- | --- | --- |",
            f"| probe, first sight | {middle(probe):.1%} | within 5 % or 32 MB, 95 % | {within(probe, 0.05, 32):.0%} |",
            f"| formula | {middle(formula):.1%} | within 10 % | {within(formula, 0.1, 0):.0%} |",
            f"| corrected | {middle(corrected):.1%} | within 3 % or 16 MB | {within(corrected, 0.03, 16):.0%} |",
            f"| probe's time | {median(r.probe_s for r in results):.2f} s | under 0.5 s | at most {slowest:.2f} s |",
        ]
    )


if __name__ == "__main__":
    asyncio.run(main())
