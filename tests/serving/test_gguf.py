from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggufs import Tensors, make, write
from modelops.api.errors import InvalidRequest
from modelops.serving.gguf import read_header, write_skeleton
from modelops.serving.layers import Layer
from support import tiny_gguf

MAGIC = b"GGUF"
HUGE = 2**63


def head(tensors: int = 0, entries: int = 0, version: int = 3) -> bytes:
    return MAGIC + struct.pack("<IQQ", version, tensors, entries)


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def array(inner: int, count: int) -> bytes:
    return struct.pack("<IQ", inner, count)


def tensor(*shape: int, kind: int = 0, offset: int = 0, rank: int | None = None) -> bytes:
    rank = len(shape) if rank is None else rank
    return struct.pack(f"<Q1sI{len(shape)}QIQ", 1, b"t", rank, *shape, kind, offset)


def test_a_small_file_is_read(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "tiny.gguf")
    header = read_header(file)
    assert (header.architecture, header.name, header.layers) == ("llama", "tiny", 2)
    assert (header.context_length, header.embedding_length, header.vocabulary) == (2048, 64, 128)
    assert header.blocks == (Layer(weights=0, keys=32, values=32), Layer(weights=0, keys=32, values=32))
    assert header.weight_bytes == header.input_bytes == 64 * 128 // 32 * 34
    assert (header.quantised, header.chat_template, header.tied, header.adapter) == (True, "", True, False)
    assert header.file_bytes == file.stat().st_size


def test_weights_are_told_apart_by_what_they_are_for(tmp_path: Path) -> None:
    header = read_header(make(tmp_path / "m.gguf", layers=3, width=256, feed_forward=512, words=512))
    row = 256 // 32 * 34
    layer = (4 * 64 + 2 * 2 * 64 + 256 + 2 * 512) * row + 512 // 32 * 34 * 256 + 2 * 256 * 4
    assert [block.weights for block in header.blocks] == [layer] * 3
    assert (header.input_bytes, header.output_bytes, header.tied) == (512 * row, 512 * row + 256 * 4, False)
    tied = read_header(make(tmp_path / "tied.gguf", layers=3, tied=True))
    assert (tied.input_bytes, tied.output_bytes, tied.tied) == (512 * row, 256 * 4, True)


@pytest.mark.parametrize(
    ("kind", "tied", "copied"), [("q8_0", True, False), ("q4_0", True, True), ("q4_0", False, False)]
)
def test_a_tied_head_is_kept_twice_where_the_engine_reorders_it(
    tmp_path: Path, kind: str, tied: bool, copied: bool
) -> None:
    assert read_header(make(tmp_path / "m.gguf", kind=kind, tied=tied)).copied_input is copied


def split(folder: Path, entries: dict[str, Any]) -> list[Path]:
    """A model in two parts: the second has only a tensor."""
    whole: Tensors = {"token_embd.weight": ((64, 128), "f16")}
    rest: Tensors = {"blk.1.ffn_up.weight": ((64, 64), "f32"), "output.weight": ((64, 128), "f16")}
    first: dict[str, Any] = {"general.architecture": "llama", "llama.block_count": 2} | entries
    return [
        write(folder / "m-00001-of-00002.gguf", {"split.count": 2, "split.no": 0} | first, whole),
        write(folder / "m-00002-of-00002.gguf", {"split.count": 2, "split.no": 1}, rest),
    ]


def test_parts_are_read_as_one_model(tmp_path: Path) -> None:
    first, second = split(tmp_path, {})
    header = read_header(first)
    assert header.file_bytes == first.stat().st_size + second.stat().st_size
    assert (header.input_bytes, header.output_bytes, header.tied) == (64 * 128 * 2, 64 * 128 * 2, False)
    assert [block.weights for block in header.blocks] == [0, 64 * 64 * 4]
    assert header.digest != read_header(split(tmp_path / "other", {"llama.context_length": 8})[0]).digest


def test_a_part_that_is_missing_or_not_the_first_is_named(tmp_path: Path) -> None:
    first, second = split(tmp_path, {})
    with pytest.raises(InvalidRequest, match=r"name its first part, 'm-00001-of-00002\.gguf'"):
        read_header(second)
    with pytest.raises(InvalidRequest, match="is one of 2 parts, and its name does not say so"):
        read_header(first.rename(tmp_path / "alone.gguf"))
    first, second = split(tmp_path, {})
    second.unlink()
    with pytest.raises(InvalidRequest, match=r"'m-00002-of-00002\.gguf' cannot be read") as refused:
        read_header(first)
    assert str(tmp_path) not in refused.value.message


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    entries = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    header = read_header(write(tmp_path / "a.gguf", entries, {"blk.0.attn_q.weight.lora_a": ((64, 8), "f32")}))
    assert header.adapter
    assert (header.weight_bytes, header.tied) == (64 * 8 * 4, False)


def test_the_digest_is_of_the_header_alone(tmp_path: Path) -> None:
    file = make(tmp_path / "m.gguf")
    digest = read_header(file).digest
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")
    assert read_header(file).digest == digest
    assert read_header(make(tmp_path / "m.gguf", context=99)).digest != digest


def test_a_skeleton_is_the_model_without_words_and_weights(tmp_path: Path, smollm2: Path) -> None:
    (tmp_path / "s").mkdir()
    for file in (make(tmp_path / "m.gguf", "gemma3"), split(tmp_path, {})[0], smollm2):
        skeleton = write_skeleton(file, tmp_path / "s")
        before, after = read_header(file), read_header(skeleton)
        assert after == replace(
            before,
            merges=0,
            chat_template="",
            file_bytes=after.file_bytes,
            digest=after.digest,
        )
        assert all(part.stat().st_blocks * 512 < 50_000 for part in (tmp_path / "s").iterdir())


@pytest.mark.parametrize(("tensor_type", "quantised"), [(0, False), (1, False), (8, True)])
def test_quantised_is_what_holds_a_quantised_tensor(tmp_path: Path, tensor_type: int, quantised: bool) -> None:
    assert read_header(tiny_gguf(tmp_path / "m.gguf", tensor_type=tensor_type)).quantised is quantised


def test_a_chat_template_is_seen(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "m.gguf", tokenizer__chat_template="{{ messages }}")
    assert read_header(file).chat_template == "{{ messages }}"


def test_the_default_model_is_read(smollm2: Path) -> None:
    header = read_header(smollm2)
    assert (header.architecture, header.layers, header.embedding_length) == ("llama", 30, 576)
    assert {(layer.keys, layer.values, layer.window, layer.state) for layer in header.blocks} == {(192, 192, 0, 0)}
    assert (header.context_length, header.vocabulary, header.merges) == (8192, 49152, 48900)
    assert header.quantised
    assert header.chat_template
    assert 0.95 < header.weight_bytes / smollm2.stat().st_size < 1


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "cut.gguf")
    for size in reversed(range(file.stat().st_size)):
        os.truncate(file, size)
        with pytest.raises(InvalidRequest, match=r"'cut\.gguf' is no usable GGUF file"):
            read_header(file)


def test_the_default_model_cut_in_half_is_refused(smollm2: Path, tmp_path: Path) -> None:
    file = tmp_path / "half.gguf"
    with smollm2.open("rb") as whole:
        file.write_bytes(whole.read(2**22))
    with pytest.raises(InvalidRequest, match="it is cut short"):
        read_header(file)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "does not begin", id="empty"),
        pytest.param(b"Once upon a time there was a model.\n", "does not begin", id="text"),
        pytest.param(head(version=1), "format version is 1", id="old version"),
        pytest.param(head(version=0x03000000), "format version", id="wrong byte order"),
        pytest.param(head(HUGE), "claims 9223372036854775808 tensors", id="2^63 tensors"),
        pytest.param(head(1, HUGE), "entries", id="2^63 entries"),
        pytest.param(head(1, 1) + struct.pack("<Q", 10**10), "a text of 10000000000 bytes", id="10 GB key"),
        pytest.param(
            head(1, 1) + entry(b"k", 8, struct.pack("<Q", 10**10)), "a text of 10000000000 bytes", id="10 GB text"
        ),
        pytest.param(head(1, 1) + entry(b"k", 9, array(4, HUGE)), "an array of", id="2^63 numbers"),
        pytest.param(head(1, 1) + entry(b"k", 9, array(8, HUGE)), "an array of", id="2^63 texts"),
        pytest.param(
            head(1, 1) + entry(b"k", 9, array(8, 1) + struct.pack("<Q", HUGE)),
            "a text of",
            id="text in array",
        ),
        pytest.param(
            head(1, 1) + entry(b"k", 9, array(8, 2**21 + 1)) + bytes(2**20), "an array of", id="too many texts"
        ),
        pytest.param(head(1, 1) + entry(b"k", 9, array(9, 1)), "array of arrays", id="array of arrays"),
        pytest.param(head(1, 1) + entry(b"k", 99, b""), "unknown type 99", id="unknown value type"),
        pytest.param(head(1) + tensor(1, rank=0), "0 dimensions", id="no dimensions"),
        pytest.param(head(1) + tensor(1, rank=2**32 - 1), "4294967295 dimensions", id="many dimensions"),
        pytest.param(head(1) + tensor(0), "absurd size", id="zero dimension"),
        pytest.param(head(1) + tensor(2**64 - 1), "absurd size", id="negative dimension"),
        pytest.param(head(1) + tensor(*[2**62] * 4), "absurd size", id="overflowing dimensions"),
        pytest.param(head(1) + tensor(33, kind=8), "absurd size", id="part of a block"),
        pytest.param(head(1) + tensor(32, offset=HUGE), "absurd size", id="absurd offset"),
        pytest.param(head(1) + tensor(32, kind=4), "unknown type 4", id="unknown tensor type"),
        pytest.param(
            head(1, 1) + entry(b"general.alignment", 4, bytes(4)) + tensor(32), "alignment", id="zero alignment"
        ),
        pytest.param(head(), "no weights", id="no tensors"),
        pytest.param(head(1) + tensor(32) + bytes(256), "names no architecture", id="no architecture"),
    ],
)
def test_what_is_no_model_is_refused_with_the_reason_and_without_taking_memory(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as refused:
            read_header(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reason in refused.value.message
    assert str(tmp_path) not in refused.value.message
    assert peak < 2**23


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(head(2**16, 0), id="tensors"),
        pytest.param(head(1, 2**16), id="entries"),
        pytest.param(head(1, 2) + entry(b"k", 9, array(8, 2**21)), id="texts"),
        pytest.param(head(1, 2) + entry(b"k", 9, array(10, 2**23 - 99)), id="numbers"),
        pytest.param(head(1, 2) + entry(b"k", 8, struct.pack("<Q", 2**24)), id="text"),
    ],
)
def test_the_most_that_is_believed_is_refused_soon_and_in_little_memory(tmp_path: Path, content: bytes) -> None:
    """The file is 10 GB of zeros: nothing that it claims is out of bounds, and all of it is there."""
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    os.truncate(file, 10 * 2**30)
    read = f"""
import pathlib, resource, time
from modelops.api.errors import InvalidRequest
from modelops.serving.gguf import read_header
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    read_header(pathlib.Path({str(file)!r}))
except InvalidRequest:
    print(time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    told = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True).stdout
    seconds, kilobytes = map(float, told.split())
    assert seconds < 1
    assert kilobytes < 100_000


@pytest.mark.parametrize("key", ["llama.block_count", "llama.context_length", "llama.attention.head_count_kv"])
@pytest.mark.parametrize("value", [2**31, "many"])
def test_absurd_shapes_are_refused_by_name(tmp_path: Path, key: str, value: str | int) -> None:
    entries: dict[str, Any] = {key: value}
    with pytest.raises(InvalidRequest, match=f"{key} is absurd"):
        read_header(tiny_gguf(tmp_path / "m.gguf", **entries))


def test_what_cannot_be_read_is_refused_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    for name in ("missing.gguf", "folder.gguf"):
        with pytest.raises(InvalidRequest, match=f"'{name}' cannot be read") as refused:
            read_header(tmp_path / name)
        assert str(tmp_path) not in refused.value.message


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "scratch.gguf")


@settings(max_examples=300)
@given(tail=st.binary(max_size=200), tensors=st.integers(0, 3), entries=st.integers(0, 3))
def test_random_bytes_are_refused(scratch: Path, tail: bytes, tensors: int, entries: int) -> None:
    scratch.with_name("random.gguf").write_bytes(head(tensors, entries) + tail)
    with pytest.raises(InvalidRequest):
        read_header(scratch.with_name("random.gguf"))


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32), flips=st.integers(1, 8))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(scratch: Path, seed: int, flips: int) -> None:
    data = bytearray(scratch.read_bytes())
    chance = random.Random(seed)
    for _ in range(flips):
        data[chance.randrange(500)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    file = scratch.with_name("damaged.gguf")
    file.write_bytes(data)
    try:
        header = read_header(file)
    except InvalidRequest:
        return
    assert 0 < header.weight_bytes <= len(data)
