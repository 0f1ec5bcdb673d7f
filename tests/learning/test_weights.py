"""Whole models written anew, as plain numbers or with an adapter in them."""

from __future__ import annotations

import errno
import resource
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType

import gguf_files
import tiny_models
from modelops.learning import support
from modelops.learning.trainer import weights
from modelops.learning.trainer.adapter import Adapter, Pair
from modelops.learning.trainer.report import Failed
from modelops.learning.trainer.weights import Kind, rewrite, rewritten_bytes, table
from modelops.serving.gguf_reader import BLOCKS

RANK = 4


def nothing(_done: int, _total: int) -> None:
    pass


def adapter(*names: str) -> Adapter:
    chance = np.random.default_rng(5)
    shapes = {"blk.0.attn_q.weight": (64, 64), "blk.1.ffn_down.weight": (64, 128), "blk.1.ffn_up.weight": (128, 64)}
    return Adapter(
        8.0,
        RANK,
        {
            name: Pair(
                chance.normal(0, 0.1, (RANK, shapes[name][1])).astype(np.float32),
                chance.normal(0, 0.1, (shapes[name][0], RANK)).astype(np.float32),
            )
            for name in names
        },
    )


def metadata(file: Path) -> dict[str, tuple[Any, Any]]:
    return {
        field.name: (field.types, field.contents())
        for field in GGUFReader(file).fields.values()
        if not field.name.startswith("GGUF.")
    }


def plain(file: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    return {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_the_rewrite_is_the_same_model_as_plain_numbers(tmp_path: Path, kind: str) -> None:
    source = tiny_models.write(tmp_path / "m.gguf", "gemma3", kind=kind)
    told: list[tuple[int, int]] = []
    rewrite(source, tmp_path / "f16.gguf", "F16", lambda done, total: told.append((done, total)))
    was, now = plain(source), plain(tmp_path / "f16.gguf")
    assert [*was] == [*now]
    for name, values in was.items():
        assert np.array_equal(now[name], values.astype(np.float16) if values.ndim > 1 else values), name
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "f16.gguf").tensors}
    assert {kinds[name] for name, values in was.items() if values.ndim > 1} == {"F16"}
    assert {kinds[name] for name, values in was.items() if values.ndim == 1} == {"F32"}
    size = (tmp_path / "f16.gguf").stat().st_size
    assert size == rewritten_bytes(table(source), "F16")
    assert told[-1] == (size, size)
    assert told == sorted(told)


@pytest.mark.parametrize(("kind", "number"), [("F16", 1), ("Q8_0", 7)])
def test_metadata_stays_but_for_the_type_of_the_weights(tmp_path: Path, kind: Kind, number: int) -> None:
    source = gguf_files.llama_gguf(tmp_path / "m.gguf", "Q4_1", alignment=64)  # has every type of entry
    rewrite(source, tmp_path / "new.gguf", kind, nothing)
    was, now = metadata(source), metadata(tmp_path / "new.gguf")
    assert now.pop("general.file_type") == ([GGUFValueType.UINT32], number)
    assert now.pop("general.quantization_version") == ([GGUFValueType.UINT32], 2)
    assert now == {key: value for key, value in was.items() if key != "general.file_type"}


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_an_adapter_is_added_before_the_weights_are_rounded(
    tmp_path: Path, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_WEIGHTS_AT_ONCE", 640)  # ten rows: the last ones are fewer
    source = tiny_models.write(tmp_path / "m.gguf", "llama", kind="Q4_1")
    added = adapter("blk.0.attn_q.weight", "blk.1.ffn_down.weight", "blk.1.ffn_up.weight")
    rewrite(source, tmp_path / "merged.gguf", kind, nothing, added)
    was, now = plain(source), plain(tmp_path / "merged.gguf")
    number = GGMLQuantizationType[kind]
    for name, values in was.items():
        wanted = values
        if name in added.pairs:
            pair = added.pairs[name]
            wanted = (values + 2.0 * pair.b @ pair.a).astype(np.float32)
        if values.ndim > 1:
            wanted = gguf.dequantize(gguf.quantize(wanted, number), number)
        assert np.allclose(now[name], wanted, atol=2e-3 if name in added.pairs else 0), name
    assert not np.allclose(now["blk.1.ffn_up.weight"], was["blk.1.ffn_up.weight"], atol=2e-3)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tiny_models.write(tmp_path / "m.gguf", "qwen2", kind="Q5_1")
    for name in ("a", "b"):
        rewrite(source, tmp_path / name, "Q8_0", nothing, adapter("blk.1.ffn_down.weight"))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("cut", [1, 1000, 50_000])
def test_a_base_that_is_cut_short_is_found_before_it_is_read(tmp_path: Path, cut: int) -> None:
    source = tiny_models.write(tmp_path / "m.gguf", "llama")
    source.write_bytes(source.read_bytes()[:-cut])
    with pytest.raises(Failed, match=r"'m\.gguf' is no usable GGUF file: it is cut short"):
        rewrite(source, tmp_path / "new.gguf", "F16", nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "are no numbers"), (1e6, "are too large for F16")])
def test_weights_that_cannot_be_written_leave_nothing(tmp_path: Path, bad: float, message: str) -> None:
    values = gguf_files.llama_weights()
    values["blk.1.attn_v.weight"][3, 4] = bad
    source = gguf_files.llama_gguf(tmp_path / "m.gguf", "F32", weights=values)
    with pytest.raises(Failed, match=rf"'blk\.1\.attn_v\.weight' holds weights that {message}"):
        rewrite(source, tmp_path / "new.gguf", "F16", nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    source = tiny_models.write(tmp_path / "m.gguf", "llama")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(OSError) as failed:
            rewrite(source, tmp_path / "new.gguf", "F16", nothing)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert failed.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_what_can_be_read_is_what_the_gguf_package_reads() -> None:
    readable = set()
    for kind, (values, width) in BLOCKS.items():
        try:
            found = gguf.dequantize(np.zeros((1, width), np.uint8), GGMLQuantizationType(kind))
        except NotImplementedError:
            continue
        readable |= {kind} if found.size == values else set()
    assert readable == support._READABLE
