"""Quantised copies: what is in them, and that they are always the same."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import psutil
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from hypothesis import given, settings
from hypothesis import strategies as st

import perplexity
from gguf_files import llama_gguf, llama_weights, plain_gguf, sparse_gguf
from modelops.api.errors import DiskFull, InvalidRequest
from modelops.serving import quantising, quantizer
from modelops.serving.quant_plan import QuantType
from modelops.serving.quantising import QuantisingFailed, quantise
from serving.copies import copied, left
from support import tiny_gguf

KINDS: tuple[QuantType, ...] = get_args(QuantType)
#: How far a weight may be moved, as a share of the largest one in its block of 32.
FARTHEST = {"Q8_0": 1 / 220, "Q5_1": 1 / 30, "Q5_0": 1 / 15, "Q4_1": 1 / 14, "Q4_0": 1 / 7}


@pytest.fixture(autouse=True)
def no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child treats warnings as errors too."""
    monkeypatch.setenv("PYTHONWARNINGS", "error")


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# --- the copy ---
@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_copy_is_as_planned_and_close_to_the_source(tmp_path: Path, kind: QuantType, stored: str) -> None:
    odd = {"blk.0.odd.weight": np.linspace(-1, 1, 48 * 3, dtype=np.float32).reshape(3, 48)}
    source = llama_gguf(tmp_path / "m.gguf", stored, weights=llama_weights() | odd)
    target = tmp_path / "cache" / "copy.gguf"
    seen: list[tuple[int, int]] = []
    plan = await quantising.plan(source, kind)
    await quantise(plan, target, lambda done, total: seen.append((done, total)))
    assert target.stat().st_size == plan.target_bytes
    assert seen[0] == (0, plan.target_bytes)
    assert seen[-1] == (plan.target_bytes, plan.target_bytes)

    before, after = GGUFReader(source), GGUFReader(target)
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        was, became = (gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in (old, new))
        assert was.shape == became.shape
        if was.ndim == 1:
            assert new.tensor_type == GGMLQuantizationType.F32
            assert (was == became).all()
        elif "odd" in old.name:
            assert new.tensor_type.name == ("F16" if stored == "F32" else stored)
            assert np.abs(was - became).max() < 1e-3
        else:
            used = "Q8_0" if old.name == "output.weight" else kind
            assert new.tensor_type.name == used
            largest = np.abs(was).reshape(-1, 32).max(axis=1)
            assert (np.abs(was - became).reshape(-1, 32).max(axis=1) <= largest * FARTHEST[used]).all()


@pytest.mark.parametrize("alignment", [32, 128])
async def test_metadata_is_kept_with_its_types(tmp_path: Path, alignment: int) -> None:
    target = tmp_path / "copy.gguf"
    await copied(llama_gguf(tmp_path / "m.gguf", alignment=alignment), target, "Q5_1")
    before, after = (
        {name: (field.types, field.contents()) for name, field in GGUFReader(file).fields.items()}
        for file in (tmp_path / "m.gguf", target)
    )
    u32 = [gguf.GGUFValueType.UINT32]
    changed = {
        "general.file_type": (u32, 9),
        "general.quantization_version": (u32, 2),
        "GGUF.kv_count": (after["GGUF.kv_count"][0], before["GGUF.kv_count"][1] + 1),
    }
    assert after == before | changed
    assert GGUFReader(target).alignment == alignment
    assert all(tensor.data_offset % alignment == 0 for tensor in GGUFReader(target).tensors)


async def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    source = llama_gguf(tmp_path / "m.gguf")
    for kind in KINDS:
        await copied(source, tmp_path / "1", kind)
        await copied(source, tmp_path / "2", kind)
        assert digest(tmp_path / "1") == digest(tmp_path / "2")


async def test_two_runs_for_one_target_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = llama_gguf(tmp_path / "m.gguf")
    await asyncio.gather(*(copied(source, tmp_path / "cache" / "copy.gguf") for _ in range(2)))
    await copied(source, tmp_path / "alone")
    assert left(tmp_path / "cache") == [tmp_path / "cache" / "copy.gguf"]
    assert digest(tmp_path / "cache" / "copy.gguf") == digest(tmp_path / "alone")


@pytest.mark.parametrize(("empty_first", "count"), [(False, 5), (True, 6)])
async def test_parts_become_one_file(tmp_path: Path, empty_first: bool, count: int) -> None:
    first = llama_gguf(tmp_path / "parts" / "m.gguf", tensors_per_part=5, empty_first=empty_first)
    assert len(left(first.parent)) == count
    await copied(llama_gguf(tmp_path / "m.gguf"), tmp_path / "of one")
    await copied(first, tmp_path / "of many")
    assert digest(tmp_path / "of one") == digest(tmp_path / "of many")


@pytest.mark.parametrize(
    ("given", "missing", "reason"),
    [
        (2, 0, r"'m-00002-of-00005\.gguf' .* first"),
        (1, 4, r"'m-00004-of-00005\.gguf' cannot be read: No such file"),
    ],
)
async def test_parts_that_are_not_all_there_are_refused(tmp_path: Path, given: int, missing: int, reason: str) -> None:
    llama_gguf(tmp_path / "m.gguf", tensors_per_part=5)
    (tmp_path / f"m-0000{missing}-of-00005.gguf").unlink(missing_ok=True)
    with pytest.raises(InvalidRequest, match=reason) as refused:
        await quantising.plan(tmp_path / f"m-0000{given}-of-00005.gguf", "Q8_0")
    assert str(tmp_path) not in refused.value.message


async def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    first = llama_gguf(tmp_path / "m.gguf", tensors_per_part=5)
    (tmp_path / "m-00003-of-00005.gguf").write_bytes((tmp_path / "m-00005-of-00005.gguf").read_bytes())
    with pytest.raises(InvalidRequest, match="or of another model"):
        await quantising.plan(first, "Q8_0")


async def test_a_part_that_is_not_named_as_one_is_refused(tmp_path: Path) -> None:
    alone = llama_gguf(tmp_path / "m.gguf", tensors_per_part=5).rename(tmp_path / "alone.gguf")
    with pytest.raises(InvalidRequest, match="the other parts are not beside it"):
        await quantising.plan(alone, "Q8_0")


# --- sources that cannot be quantised ---
def poisoned(value: float) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    weights = llama_weights()
    weights["blk.1.ffn_up.weight"] = weights["blk.1.ffn_up.weight"].copy()
    weights["blk.1.ffn_up.weight"][7, 7] = value
    return weights


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "'m.gguf' cannot be quantised: its tensor 'blk.1.ffn_up.weight' holds weights that are no numbers"),
        (-np.inf, "holds weights that are no numbers"),
        (1e30, "holds weights that are too large"),
    ],
)
async def test_weights_that_no_type_can_hold_are_refused(tmp_path: Path, value: float, reason: str) -> None:
    source = llama_gguf(tmp_path / "m.gguf", "F32", weights=poisoned(value))
    with pytest.raises(InvalidRequest, match=reason):
        await copied(source, tmp_path / "cache" / "copy.gguf")
    assert left(tmp_path / "cache") == []


@pytest.mark.parametrize("kind", KINDS)
async def test_weights_next_to_nothing_become_nothing(tmp_path: Path, kind: QuantType) -> None:
    weights = llama_weights() | {"blk.0.attn_q.weight": np.full((64, 64), 1e-42, np.float32)}
    await copied(llama_gguf(tmp_path / "m.gguf", "F32", weights=weights), tmp_path / "copy.gguf", kind)
    stored = next(tensor for tensor in GGUFReader(tmp_path / "copy.gguf").tensors if "attn_q" in tensor.name)
    assert (gguf.dequantize(stored.data, stored.tensor_type) == 0).all()


async def test_a_source_that_is_quantised_already_is_left_alone(tmp_path: Path) -> None:
    plan = await quantising.plan(tiny_gguf(tmp_path / "m.gguf", tensor_type=8), "Q8_0")
    assert plan.quantised
    with pytest.raises(InvalidRequest, match=r"'m\.gguf' is quantised already"):
        await quantise(plan, tmp_path / "cache" / "copy.gguf", lambda _done, _total: None)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: os.truncate(file, file.stat().st_size - 1), "'m.gguf' is no usable GGUF file: it is cut short"),
        (lambda file: os.utime(file, (1, 1)), "'m.gguf' changed while it was quantised"),
        (lambda file: file.unlink(), "'m.gguf' cannot be read: No such file"),
        (lambda file: llama_gguf(file, "BF16", weights=poisoned(0)), "'m.gguf' changed while it was quantised"),
    ],
    ids=["cut", "touched", "gone", "replaced"],
)
async def test_a_source_that_changed_since_it_was_planned_is_refused(
    tmp_path: Path, change: Callable[[Path], object], reason: str
) -> None:
    source = llama_gguf(tmp_path / "m.gguf")
    plan = await quantising.plan(source, "Q8_0")
    change(source)
    with pytest.raises(InvalidRequest, match=reason):
        await quantise(plan, tmp_path / "cache" / "copy.gguf", lambda _done, _total: None)
    assert left(tmp_path / "cache") == []


def child(*arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "modelops.serving.quantizer", *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("size", [0, 3, 100, 5000, 200_000])
def test_the_child_refuses_a_damaged_source_in_words(tmp_path: Path, size: int) -> None:
    source = llama_gguf(tmp_path / "m.gguf")
    os.truncate(source, size)
    ended = child(source, tmp_path / "copy.gguf", "Q8_0")
    assert ended.returncode == os.EX_DATAERR
    assert re.fullmatch(r"error: 'm\.gguf' is no usable GGUF file: .*\n", ended.stdout)
    assert ended.stderr == ""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_gguf(tmp_path_factory.mktemp("whole") / "m.gguf")


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 8))
def test_a_damaged_header_is_planned_or_refused_and_nothing_else(whole: Path, seed: int, flips: int) -> None:
    file = whole.with_name("damaged.gguf")
    data = bytearray(whole.read_bytes())
    chance = random.Random(seed)
    for _ in range(flips):
        data[chance.randrange(8000)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    file.write_bytes(data)
    with contextlib.suppress(InvalidRequest):
        plan = quantizer.read_plan(file, "Q8_0")
        assert all(step.tensor.start + step.tensor.nbytes <= len(data) for step in plan.steps)


# --- the disk ---
async def test_a_copy_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = sparse_gguf(tmp_path / "huge.gguf", 4 << 40)
    plan = await quantising.plan(source, "Q8_0")
    with pytest.raises(DiskFull, match=r"no room on the disk for 'huge\.gguf' as Q8_0: 4\d{6} MB are") as refused:
        async with asyncio.timeout(10.0):  # or it would go on until the disk is full indeed
            await quantise(plan, tmp_path / "cache" / "copy.gguf", lambda _done, _total: None)
    assert int(refused.value.details["needed_bytes"]) > plan.target_bytes > int(refused.value.details["free_bytes"])
    assert str(tmp_path) not in refused.value.message
    assert left(tmp_path / "cache") == []


def test_the_child_tells_that_the_disk_is_full(tmp_path: Path) -> None:
    ended = child(llama_gguf(tmp_path / "m.gguf"), "/dev/full", "Q8_0")
    assert (ended.returncode, ended.stderr) == (os.EX_CANTCREAT, "")
    assert ended.stdout.splitlines()[-1] == "error: No space left on device"


async def test_a_copy_that_outgrows_the_disk_leaves_nothing(tmp_path: Path) -> None:
    plan = await quantising.plan(llama_gguf(tmp_path / "m.gguf"), "Q8_0")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # To the child, the longest file that it may write is what a full disk is.
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskFull, match="there is no room on the disk"):
            await quantise(plan, tmp_path / "cache" / "copy.gguf", lambda _done, _total: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert left(tmp_path / "cache") == []


async def test_a_folder_that_cannot_be_written_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(
        QuantisingFailed, match=r"'m\.gguf' could not be quantised: (Not a directory|File exists)"
    ) as failed:
        await copied(llama_gguf(tmp_path / "m.gguf"), tmp_path / "cache" / "copy.gguf")
    assert str(tmp_path) not in failed.value.message


# --- the default model ---
@pytest.fixture(scope="module")
def plain(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model as F16: 271 MB."""
    return plain_gguf(smollm2, tmp_path_factory.mktemp("plain") / "plain.gguf")


@pytest.mark.engine
@pytest.mark.timeout(300)  # some 900 tokens, twice, on one thread
async def test_a_real_model_predicts_as_well_as_before(
    plain: Path, tmp_path: Path, begun: Callable[[], list[psutil.Process]]
) -> None:
    memory: list[int] = []

    def look(_done: int, _total: int) -> None:
        with contextlib.suppress(psutil.Error, IndexError):
            status = Path(f"/proc/{begun()[-1].pid}/status").read_text()
            memory.append(int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0]) * 1024)

    plan = await quantising.plan(plain, "Q8_0")
    await quantise(plan, tmp_path / "copy.gguf", look)
    assert (tmp_path / "copy.gguf").stat().st_size == plan.target_bytes < plain.stat().st_size * 0.54
    assert 10_000_000 < max(memory) < plan.memory_bytes < 80_000_000

    found = []
    for file in (plain, tmp_path / "copy.gguf"):
        async with perplexity.engine(file, tmp_path) as ask:
            counted = await ask("/completion", {"prompt": "One, two, three, four,", "n_predict": 4, "temperature": 0})
            assert counted["content"].startswith(" five")
            found.append(await perplexity.perplexity(ask))
    print(f"perplexity {found[0]:.3f} before, {found[1]:.3f} as Q8_0")
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[0] < 25  # the measure itself is sound


@pytest.mark.engine
@pytest.mark.parametrize("kind", KINDS)
async def test_the_engine_takes_a_copy_of_every_type(tmp_path: Path, kind: QuantType) -> None:
    await copied(llama_gguf(tmp_path / "m.gguf"), tmp_path / "copy.gguf", kind)
    async with perplexity.engine(tmp_path / "copy.gguf", tmp_path) as ask:
        answer = await ask("/completion", {"prompt": "abc", "n_predict": 3, "ignore_eos": True})
    assert answer["tokens_predicted"] == 3
