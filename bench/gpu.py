"""How right the estimates of memory are on a GPU: what a coordinator plans to reserve, beside what the driver shows.

Each model is planned (`dry_run`), loaded by a real engine, asked a prompt that fills a step and a question for each
slot, and measured: what the driver says that the engine's processes hold of the GPU, and the RAM that is their own.
Then it is unloaded, and loaded and measured again: the second plan knows the first load. The models are generated, with
weights of zero in a sparse file.

    python bench/gpu.py --executable llama-server      # any llama-server that was built for CUDA
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from bench.memory import GENERATED

from ggufs import make
from modelops.api.types import LoadPlan
from modelops.client import Client
from modelops.serving.devices import Device, ThisMachine
from support import serving, wait_until

MB = 2**20
#: Model, context for each slot, slots, cache.
RUNS: tuple[tuple[str, int, int, str], ...] = (
    ("llama 0.4 GB", 2048, 2, "f16"),
    ("llama 0.4 GB", 32768, 4, "q8_0"),
    ("llama 3 GB Q4_0", 8192, 4, "f16"),
    ("llama 3 GB Q4_0", 2048, 8, "q8_0"),
    ("qwen3 tied", 8192, 4, "f16"),
    ("qwen3moe", 16384, 2, "f16"),
    ("cohere2", 8192, 4, "f16"),
    ("mamba", 2048, 8, "f16"),
    ("lfm2", 8192, 4, "f16"),
    ("granitehybrid", 8192, 4, "f16"),
    ("deepseek2 MLA", 8192, 4, "f16"),
)


@dataclass(frozen=True)
class Load:
    """One load, in MB: of the GPU and of RAM, planned and measured; and seconds until the GPU showed it free again."""

    planned: dict[str, int]
    measured: dict[str, float]
    freed_s: float


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--executable", required=True, help="a llama-server that was built for CUDA")
    parser.add_argument("--only", default="", help="models whose name contains this")
    options = parser.parse_args()
    (gpu, *_) = [device for device in ThisMachine().devices() if device.device != "cpu"] or sys.exit("there is no GPU")
    print(f"{gpu.name}, {gpu.total / MB:,.0f} MB, {gpu.used / MB:,.0f} MB used by others.\n")
    print("| model | context × slots | cache | GPU: planned, used | after a load | RAM | after a load | free after s |")
    print("|" + " --- |" * 8)
    loads: list[list[Load]] = []
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        names = sorted({run[0] for run in RUNS if options.only in run[0]})
        files = [
            (key(name), make(Path(folder) / f"{key(name)}.gguf", name.split()[0], **shape(name))) for name in names
        ]
        env = {"MODELOPS_ENGINE__EXECUTABLE": options.executable}
        with serving(Path(folder) / "data", links=files, env=env) as served, Client(served.rest) as asked:
            for run in RUNS:
                if options.only not in run[0]:
                    continue
                loads.append([load(asked, *run) for _ in range(2)])
                print(row(run, loads[-1]), flush=True)
    for what, number in (("on first sight", 0), ("after a load", 1)):
        for device in ("gpu0", "cpu"):
            off = [abs(two[number].planned[device] - two[number].measured[device]) for two in loads]
            share = [gap / two[number].measured[device] for gap, two in zip(off, loads, strict=True)]
            good = sum(gap <= 32 or part <= 0.05 for gap, part in zip(off, share, strict=True))
            print(f"\n{device}, {what}: median {median(share):.1%} off; {good} of {len(loads)} within 5 % or 32 MB.")


def key(name: str) -> str:
    """The model's name as a coordinator takes it."""
    return name.replace(" ", "-")


def shape(name: str) -> dict[str, Any]:
    """What its file is made of."""
    return {"width": 1024, "heads": 16} | GENERATED[name]


def load(asked: Client, model: str, context: int, slots: int, cache: str) -> Load:
    """Plan, load, ask, measure and unload."""
    wish: dict[str, Any] = {"context_length": context, "slots": slots, "cache_type": cache}
    plan = asked.load(key(model), dry_run=True, **wish).plan
    assert isinstance(plan, LoadPlan)
    asked.load(key(model), **wish)
    asked.infer(key(model), "word " * 150, max_tokens=8, raw=True)
    with ThreadPoolExecutor(slots) as threads:
        list(
            threads.map(lambda number: asked.infer(key(model), f"Hello {number}", max_tokens=8, raw=True), range(slots))
        )
    engines = engines_of(key(model))
    on_gpu = sum(size for pid, size in _gpu().used_by.items() if pid in engines)
    measured = {"gpu0": on_gpu / MB, "cpu": sum(process.memory_info().rss for process in engines.values()) / MB}
    asked.unload(key(model))
    began = time.monotonic()
    wait_until(lambda: not engines.keys() & _gpu().used_by.keys(), 10, "the memory to be shown free")
    planned = {device.device: device.memory_mb for device in plan.devices}
    return Load(planned, measured, time.monotonic() - began)


def engines_of(name: str) -> dict[int, psutil.Process]:
    """The processes that run the model `name`. Others come and go meanwhile, or are over and not yet waited for."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if f"/{name}.gguf" in str(process.cmdline()):
                found[process.pid] = process
    return found


def _gpu() -> Device:
    return ThisMachine().devices()[1]


def row(run: tuple[str, int, int, str], loads: list[Load]) -> str:
    """A row of the table."""

    def told(device: str, load: Load) -> str:
        planned, measured = load.planned[device], load.measured[device]
        return f"{planned:,} {measured:,.0f} ({(planned - measured) / measured:+.1%})"

    name, context, slots, cache = run
    first, second = loads
    return (
        f"| {name} | {context} × {slots} | {cache} | {told('gpu0', first)} | {told('gpu0', second)} "
        f"| {told('cpu', first)} | {told('cpu', second)} | {max(first.freed_s, second.freed_s):.2f} |"
    )


if __name__ == "__main__":
    main()
