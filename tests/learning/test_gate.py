"""The parity gate, with real engines: a good adapter passes on every architecture, and no planted fault does."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pytest import MonkeyPatch

import tiny_llama
import tiny_models
from learning import loras
from modelops import settings
from modelops.api.errors import EngineFailed
from modelops.engines.base import EngineSpec
from modelops.engines.llama_cpp import Engine
from modelops.learning import parity, proving, support
from modelops.learning.parity import Parity
from modelops.learning.trainer import adapter, convert
from modelops.learning.trainer.adapter import Adapter, Pair
from modelops.learning.trainer.task import Task, load
from modelops.learning.trainer.weights import rewrite, table
from modelops.serving import sources

#: Tokens of each text that are looked at of a large model.
_FEW = 10


@dataclass(frozen=True)
class Job:
    """A job that is ready for the gate."""

    task: Task
    folder: Path
    plain: Path
    reference: Mapping[str, Any]

    @property
    def adapter(self) -> Adapter:
        """What was trained."""
        return adapter.read(self.folder / "adapter", table(self.task.base))


@pytest.fixture(scope="module")
def jobs(learning: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """A finished job on a small model of each architecture, all of which are merged as well."""
    folder = tmp_path_factory.mktemp("jobs")
    for architecture in support.ARCHITECTURES:
        file = tiny_models.write(folder / f"{architecture}.gguf", architecture, kind="Q8_0")
        loras.job(folder / architecture, file, publish="F16")
    loras.finish([folder / architecture for architecture in support.ARCHITECTURES])
    return {architecture: finished(folder / architecture) for architecture in support.ARCHITECTURES}


def finished(folder: Path) -> Job:
    (plain,) = (folder / "bases").iterdir()
    return Job(load(folder), folder, plain, loras.reference(folder))


@pytest.fixture
def llama(jobs: dict[str, Job]) -> Job:
    return jobs["llama"]


async def judged(
    job: Job,
    folder: Path,
    *,
    file: Path | None = None,
    adapters: tuple[Path, ...] = (),
    most: float = parity.MOST_DIFFERENCE,
) -> Parity:
    """What the gate says of an engine with `file`, or the plain base, and the last one of `adapters`."""
    spec = EngineSpec(
        model_name="m",
        file=file or job.plain,
        executable="",
        slots=2,
        context_length=proving.context_length(job.reference),
        threads=1,
        batch_size=64,
        cache_ram_mb=0,
        gpu_layers=-1,
        load_timeout_s=60.0,
        stop_timeout_s=2.0,
        context_checkpoints=2,
        adapters=adapters,
    )
    engine = Engine(spec, folder / "e.sock")
    await engine.start()
    try:
        measured = await proving.measure(engine, job.reference, len(adapters) - 1 if adapters else None)
    finally:
        await engine.stop()
    return parity.compare(job.reference, measured, most=most)


def written(job: Job, changed: Adapter, target: Path) -> Path:
    adapter.write(changed, table(job.task.base), target)
    return target


# --- what is right ---
@pytest.mark.parametrize("architecture", [*support.ARCHITECTURES])
async def test_a_good_adapter_passes(jobs: dict[str, Job], architecture: str, tmp_path: Path) -> None:
    job = jobs[architecture]
    found = await judged(job, tmp_path, adapters=(job.folder / "adapter.gguf",))
    assert found.passed, found.reason
    assert found.positions == job.reference["positions"] >= 100
    assert found.mean_difference < 0.004 < 0.2 < found.change
    assert found.base_difference is not None
    assert found.base_difference < 0.004


@pytest.mark.parametrize("architecture", [*support.ARCHITECTURES])
async def test_a_model_that_it_was_merged_into_passes(jobs: dict[str, Job], architecture: str, tmp_path: Path) -> None:
    job = jobs[architecture]
    found = await judged(job, tmp_path, file=job.folder / "merged.gguf")
    assert found.passed, found.reason


async def test_one_of_several_adapters_passes(llama: Job, tmp_path: Path) -> None:
    other = written(llama, replace(llama.adapter, alpha=3.0), tmp_path / "other.gguf")
    assert (await judged(llama, tmp_path, adapters=(other, other, llama.folder / "adapter.gguf"))).passed


# --- what is wrong ---
async def test_another_base_is_refused(llama: Job, tmp_path: Path) -> None:
    other = tiny_models.write(tmp_path / "other.gguf", "llama", seed=2)
    found = await judged(llama, tmp_path, file=other, adapters=(llama.folder / "adapter.gguf",))
    assert "even without the adapter, engine and trainer differ" in found.reason


async def test_another_chat_template_is_refused(llama: Job, tmp_path: Path) -> None:
    template = tiny_llama.CHATML.replace("assistant", "model")
    other = tiny_models.write(tmp_path / "other.gguf", "llama", kind="Q8_0", template=template)
    rewrite(other, tmp_path / "f16.gguf", "F16", lambda _done, _total: None)
    found = await judged(llama, tmp_path, file=tmp_path / "f16.gguf", adapters=(llama.folder / "adapter.gguf",))
    assert "the engine makes other tokens of 2 rows than the trainer did" in found.reason
    assert found.mean_difference < 0.004, "and nothing else would have shown it"


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.1, 2.0])
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
async def test_another_alpha_is_refused(jobs: dict[str, Job], architecture: str, factor: float, tmp_path: Path) -> None:
    job = jobs[architecture]
    wrong = written(job, replace(job.adapter, alpha=job.adapter.alpha * factor or 1e-6), tmp_path / "wrong.gguf")
    found = await judged(job, tmp_path, adapters=(wrong,))
    assert "the engine does not compute what was trained" in found.reason


async def test_rows_in_the_trainers_order_are_refused(llama: Job, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "permuted", lambda rows, _heads: rows)
    found = await judged(llama, tmp_path, adapters=(written(llama, llama.adapter, tmp_path / "wrong.gguf"),))
    assert "the engine does not compute what was trained" in found.reason


async def test_halves_that_are_exchanged_are_refused(llama: Job, tmp_path: Path) -> None:
    pairs = dict(llama.adapter.pairs)
    q, o = "blk.0.attn_q.weight", "blk.0.attn_output.weight"
    pairs[q], pairs[o] = pairs[o], pairs[q]
    found = await judged(
        llama, tmp_path, adapters=(written(llama, replace(llama.adapter, pairs=pairs), tmp_path / "wrong.gguf"),)
    )
    assert "the engine does not compute what was trained" in found.reason


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
async def test_an_adapter_without_its_last_tensor_is_refused(
    jobs: dict[str, Job], architecture: str, tmp_path: Path
) -> None:
    job = jobs[architecture]
    pairs = dict([*job.adapter.pairs.items()][:-1])
    found = await judged(
        job, tmp_path, adapters=(written(job, replace(job.adapter, pairs=pairs), tmp_path / "wrong.gguf"),)
    )
    assert "the engine does not compute what was trained" in found.reason


async def test_a_file_that_is_cut_short_is_refused(llama: Job, tmp_path: Path) -> None:
    short = tmp_path / "short.gguf"
    short.write_bytes((llama.folder / "adapter.gguf").read_bytes()[:-64])
    with pytest.raises(EngineFailed):
        await judged(llama, tmp_path, adapters=(short,))


async def test_an_adapter_that_does_nothing_is_refused(llama: Job, tmp_path: Path) -> None:
    pairs = {name: Pair(pair.a, 0 * pair.b) for name, pair in llama.adapter.pairs.items()}
    nothing = written(llama, replace(llama.adapter, pairs=pairs), tmp_path / "nothing.gguf")
    assert not (await judged(llama, tmp_path, adapters=(nothing,))).passed


async def test_a_merge_that_forgot_the_scale_is_refused(llama: Job, tmp_path: Path) -> None:
    wrong = replace(llama.adapter, alpha=float(loras.RANK))
    rewrite(llama.task.base, tmp_path / "merged.gguf", "F16", lambda _done, _total: None, wrong)
    found = await judged(llama, tmp_path, file=tmp_path / "merged.gguf")
    assert "the engine does not compute what was trained" in found.reason


async def test_small_changes_are_seen_in_models_of_8_bits(learning: None, tmp_path: Path) -> None:
    base = tiny_models.write(tmp_path / "llama.gguf", "llama", kind="Q8_0")
    sizes = (0.003, 0.02)
    for size in sizes:
        loras.job(tmp_path / f"{size}", base, size=size)
    loras.finish([tmp_path / f"{size}" for size in sizes])
    for size in sizes:
        job = finished(tmp_path / f"{size}")
        for share in (1.0, 0.5, 0.0):
            merged = replace(job.adapter, alpha=job.adapter.alpha * share) if share else None
            rewrite(job.task.base, tmp_path / "m.gguf", "Q8_0", lambda _done, _total: None, merged)
            found = await judged(job, tmp_path, file=tmp_path / "m.gguf", most=parity.MOST_DIFFERENCE_Q8_0)
            assert found.mean_difference < parity.MOST_DIFFERENCE_Q8_0, "which says nothing"
            assert found.passed == (share == 1.0), found
            assert abs(found.share - share) < 0.2


# --- models that people use ---
#: Gemma 3's vocabulary takes a minute to read: it is tried in the long run. Here its architecture is, as a tiny model.
SERVED = ("smollm2", "gemma3-270m") if os.environ.get("GATE_ALL") else ("smollm2",)


def file_of(name: str, folder: Path) -> Path:
    """The model's file: the user's own where it is whole, else fetched."""
    source = sources.parse(sources.KNOWN[name])
    file = settings.load(environ={}).models_dir / f"{name}.gguf"
    if not sources.has_digest(file, source.sha256):
        file = folder / f"{name}.gguf"
        asyncio.run(sources.fetch(source, file, lambda _done, _total: None))
    return file


@pytest.fixture(scope="module")
def served(learning: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """A finished job on each of them, at a few positions: these take their time."""
    folder = tmp_path_factory.mktemp("served")
    for name in SERVED:
        loras.job(folder / name, file_of(name, folder), size=0.02)
    loras.finish([folder / name for name in SERVED])
    found = {}
    for name in SERVED:
        job = finished(folder / name)
        few = [_few(sequence) for sequence in job.reference["sequences"][1:]]
        found[name] = replace(job, reference={**job.reference, "sequences": few})
    return found


def _few(sequence: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values if name == "prompt" else values[:_FEW] for name, values in sequence.items()}


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SERVED)
async def test_models_that_are_served_pass(served: dict[str, Job], name: str, tmp_path: Path) -> None:
    job = served[name]
    found = await judged(job, tmp_path, adapters=(job.folder / "adapter.gguf",))
    assert found.passed, found.reason
    assert found.mean_difference < 0.005 < 0.05 < found.change


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "fault"), [("smollm2", "rows"), *((name, "alpha") for name in SERVED)])
async def test_their_faults_are_refused(
    served: dict[str, Job], name: str, fault: str, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    job = served[name]
    if fault == "rows":
        monkeypatch.setattr(adapter, "permuted", lambda rows, _heads: rows)
    right = job.adapter
    wrong = written(job, replace(right, alpha=1.25 * right.alpha) if fault == "alpha" else right, tmp_path / "w.gguf")
    assert "does not compute what was trained" in (await judged(job, tmp_path, adapters=(wrong,))).reason


# --- the steps ---
def test_steps_that_are_done_again_change_nothing(llama: Job, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(llama.folder, again)
    for done in ("converted.json", "adapter.gguf", "merged.gguf"):
        (again / done).unlink()
    loras.finish([again])
    for name in ("converted.json", "adapter.gguf", "merged.gguf", "reference.json"):
        assert (again / name).read_bytes() == (llama.folder / name).read_bytes(), name
    assert not [*again.rglob("*.partial")]


def test_a_rewrite_of_the_base_that_is_not_whole_is_made_again(llama: Job, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(llama.folder, again)
    (again / "converted.json").unlink()
    whole = llama.plain.read_bytes()
    plain = tmp_path / "bases" / llama.plain.name
    plain.parent.mkdir()
    plain.write_bytes(whole[:-32])
    (plain.parent / f"{plain.name}.0a.partial").write_bytes(b"left by a process that was killed")
    convert.convert(replace(llama.task, bases=plain.parent), again)
    assert plain.read_bytes() == whole
    assert [*plain.parent.iterdir()] == [plain]
    written = plain.stat()
    (again / "converted.json").unlink()
    convert.convert(replace(llama.task, bases=plain.parent), again)
    assert plain.stat().st_ino == written.st_ino, "one that is whole is left"
