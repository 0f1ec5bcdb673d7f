"""A model's weights in another format: what is in them, that they are written once, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from gguf_files import llama_gguf
from modelops.api.errors import DiskFull, InsufficientMemory
from modelops.serving import quantising
from modelops.serving.catalog import Catalog, Version
from modelops.serving.formats import Formats
from modelops.serving.loans import Loan
from modelops.serving.quant_plan import WeightType
from serving.copies import left
from serving.house import Make, catalog

#: How far another rounding may move a weight, as a share of the largest one in its block.
FARTHEST = {"Q8_0": 1 / 220, "Q4_0": 1 / 7, "F16": 1 / 2**11, "BF16": 1 / 2**8}


class Lender:
    """Lends what is asked for, and notes it; with `refuses` nothing."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.asked: list[tuple[str, int]] = []
        self._refuses = refuses

    @contextlib.asynccontextmanager
    async def borrow(self, name: str, size: int) -> AsyncIterator[Loan]:
        self.asked.append((name, size))
        if self._refuses:
            raise InsufficientMemory("nothing left")
        yield Loan(size)


@contextlib.asynccontextmanager
async def opened(root: Path, kind: str = "Q4_1") -> AsyncIterator[tuple[Catalog, Version]]:
    """A catalogue with the model `m`, whose matrices are of the type `kind`."""
    llama_gguf(root / "m.gguf", kind)
    async with catalog(root) as models:
        yield models, models.active("m")


def weights(file: Path) -> dict[str, tuple[str, np.ndarray]]:
    """By the name of its tensor: the type of the weights, and what they are."""
    return {
        tensor.name: (tensor.tensor_type.name, gguf.dequantize(tensor.data, tensor.tensor_type))
        for tensor in GGUFReader(file).tensors
    }


@pytest.mark.parametrize("kind", [*FARTHEST])
async def test_weights_are_written_again_and_stay_close(root: Path, tmp_path: Path, kind: WeightType) -> None:
    seen: list[tuple[int, int]] = []
    async with opened(root) as (models, version):
        formats, lender = Formats(models, tmp_path / "formats"), Lender()
        size = await formats.size(version, kind)
        assert left(tmp_path / "formats") == []
        file = await formats.file(version, kind, lender.borrow, lambda *progress: seen.append(progress))
    assert file.stat().st_size == size
    assert seen[-1] == (size, size)
    before, after = weights(version.file), weights(file)
    assert before.keys() == after.keys()
    for name, (stored, was) in before.items():
        became, values = after[name]
        if was.ndim == 1 or name == "output.weight":  # which has fewer bits than the output would get
            assert (became, values.tolist()) == (stored, was.tolist())
        else:
            assert became == kind
            largest = np.abs(was).reshape(-1, 32).max(axis=1)
            assert (np.abs(was - values).reshape(-1, 32).max(axis=1) <= largest * FARTHEST[kind]).all()


async def test_k_quants_are_read(tmp_path: Path) -> None:
    source, target = tmp_path / "k.gguf", tmp_path / "out" / "copy.gguf"
    blocks = np.random.default_rng(1).integers(0, 256, (4, 210), np.uint8)
    blocks[:, -2:] = np.full((4, 1), 0.01, np.float16).view(np.uint8)  # the scale of all others
    writer = GGUFWriter(source, "llama")
    writer.add_tensor("blk.0.attn_q.weight", blocks, raw_dtype=GGMLQuantizationType.Q6_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    plan = await quantising.plan(source, "Q8_0", again=True)
    await quantising.quantise(plan, target, lambda _done, _total: None)
    (_, was), (became, values) = weights(source)["blk.0.attn_q.weight"], weights(target)["blk.0.attn_q.weight"]
    assert became == "Q8_0"
    largest = np.abs(was).reshape(-1, 32).max(axis=1)
    assert (np.abs(was - values).reshape(-1, 32).max(axis=1) <= largest * FARTHEST["Q8_0"] + 1e-6).all()


async def test_a_file_is_written_once_and_memory_is_asked_for_before(root: Path, tmp_path: Path) -> None:
    async with opened(root) as (models, version):
        formats, lender = Formats(models, tmp_path / "formats"), Lender()
        both = await asyncio.gather(*(formats.file(version, "Q8_0", lender.borrow) for _ in range(2)))
        assert both[0] == both[1]
        written = both[0].stat().st_mtime_ns
        again = await Formats(models, tmp_path / "formats").file(version, "Q8_0", lender.borrow)  # after a restart
        assert again.stat().st_mtime_ns == written
        plan = await quantising.plan(version.file, "Q8_0", again=True)
        assert lender.asked == [("writing m as Q8_0", plan.memory_bytes)]


async def test_what_would_change_nothing_is_the_files_own(root: Path, tmp_path: Path) -> None:
    async with opened(root) as (models, version):
        formats, lender = Formats(models, tmp_path / "formats"), Lender()
        assert await formats.file(version, "Q4_1", lender.borrow) == version.file
        assert await formats.size(version, "Q4_1") == version.size
        assert (lender.asked, left(tmp_path / "formats")) == ([], [])


async def test_without_memory_or_room_nothing_is_written(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(root) as (models, version):
        formats = Formats(models, tmp_path / "formats")
        with pytest.raises(InsufficientMemory):
            await formats.file(version, "Q8_0", Lender(refuses=True).borrow)
        monkeypatch.setattr(quantising, "_SPARE_BYTES", 1 << 60)
        with pytest.raises(DiskFull, match=r"'m\.gguf' as Q8_0"):
            await formats.file(version, "Q8_0", Lender().borrow)
        assert left(tmp_path / "formats") == []


async def test_what_is_of_no_use_is_discarded_or_pruned(root: Path, tmp_path: Path) -> None:
    async with opened(root) as (models, version):
        formats, lender = Formats(models, tmp_path / "formats"), Lender()
        formats.discard(version)
        for kind in ("Q8_0", "Q4_0"):
            await formats.file(version, kind, lender.borrow)
        known = models.known(version)
        assert formats.prune({known.digest}) == ([], 0)
        formats.discard(version)
        assert left(tmp_path / "formats") == []
        file = await formats.file(version, "Q8_0", lender.borrow)
        size = file.stat().st_size
        assert formats.prune({"sha256:" + "0" * 64}) == ([f"rewritten weights {file.name[:12]}…"], size)
        assert left(tmp_path / "formats") == []


async def test_what_somebody_else_needs_is_not_discarded(root: Path, tmp_path: Path) -> None:
    async with opened(root) as (models, version):
        formats = Formats(models, tmp_path / "formats")
        for holder in ("mine", "theirs"):
            formats.hold(holder, version)
        file = await formats.file(version, "Q8_0", Lender().borrow)
        formats.discard(version, "mine")
        assert file.exists()
        assert formats.held("mine") == {version}
        formats.release("mine")
        assert formats.held("mine") == set()
        formats.discard(version, "theirs")
        assert not file.exists()


async def test_a_model_is_served_by_the_file_that_was_written(make: Make, tmp_path: Path) -> None:
    """Published, it is the next version: it lasts when what was tried is discarded."""
    house = await make()
    version = await house.catalog.register("m", str(llama_gguf(house.models / "sub" / "m.gguf", "Q4_1")), "llm")
    formats = Formats(house.catalog, tmp_path / "formats")
    file = await formats.file(version, "Q8_0", house.pool.borrow)
    published = await house.catalog.publish("m", file, "llm", {"format": "Q8_0"})
    formats.discard(version)
    assert (published.label, published.unchanged(), file.exists()) == ("v2", True, False)
    assert house.reserved == 0
    assert weights(published.file)["blk.0.attn_q.weight"][0] == "Q8_0"
