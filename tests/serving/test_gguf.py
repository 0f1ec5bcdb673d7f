from __future__ import annotations

import os
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelops.api.errors import InvalidRequest
from modelops.serving.gguf import Header, read_header
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
    assert read_header(tiny_gguf(tmp_path / "tiny.gguf")) == Header(
        architecture="llama",
        name="tiny",
        layers=2,
        context_length=2048,
        embedding_length=64,
        kv_heads=2,
        key_length=16,
        value_length=16,
        vocabulary=128,
        weight_bytes=64 * 128 // 32 * 34,
        quantised=True,
        chat_template=False,
    )


@pytest.mark.parametrize(("tensor_type", "quantised"), [(0, False), (1, False), (8, True)])
def test_quantised_is_what_holds_a_quantised_tensor(tmp_path: Path, tensor_type: int, quantised: bool) -> None:
    assert read_header(tiny_gguf(tmp_path / "m.gguf", tensor_type=tensor_type)).quantised is quantised


def test_a_chat_template_is_seen(tmp_path: Path) -> None:
    assert read_header(tiny_gguf(tmp_path / "m.gguf", tokenizer__chat_template="{{ messages }}")).chat_template


def test_the_default_model_is_read(smollm2: Path) -> None:
    header = read_header(smollm2)
    assert (header.architecture, header.layers, header.embedding_length) == ("llama", 30, 576)
    assert (header.kv_heads, header.key_length, header.value_length) == (3, 64, 64)
    assert (header.context_length, header.vocabulary) == (8192, 49152)
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
    assert peak < 2**20


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


@settings(max_examples=300, deadline=None)
@given(tail=st.binary(max_size=200), tensors=st.integers(0, 3), entries=st.integers(0, 3))
def test_random_bytes_are_refused(scratch: Path, tail: bytes, tensors: int, entries: int) -> None:
    scratch.with_name("random.gguf").write_bytes(head(tensors, entries) + tail)
    with pytest.raises(InvalidRequest):
        read_header(scratch.with_name("random.gguf"))


@settings(max_examples=300, deadline=None)
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
