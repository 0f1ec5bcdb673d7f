"""What can be fine-tuned, by the header of its file alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType

import gguf_files
import ggufs
import tiny_models
from modelops.api.errors import InvalidRequest
from modelops.learning import support


@pytest.mark.parametrize("architecture", [*support.ARCHITECTURES])
def test_models_of_these_architectures_can_be(tmp_path: Path, architecture: str) -> None:
    support.check(tiny_models.write(tmp_path / "m.gguf", architecture, kind="Q8_0"))


def test_the_default_model_can_be(smollm2: Path) -> None:
    support.check(smollm2)


@pytest.mark.parametrize(
    ("architecture", "entries", "why"),
    [
        ("llama", {"llama.rope.scaling.type": ("linear", GGUFValueType.STRING)}, "rope.scaling"),
        ("gemma3", {"gemma3.rope.scaling.factor": (8.0, GGUFValueType.FLOAT32)}, "rope.scaling"),
        ("llama", {"llama.attention.key_length": (32, GGUFValueType.UINT32)}, "llama.rope.dimension_count"),
        ("qwen2", {"qwen2.rope.dimension_count": (8, GGUFValueType.UINT32)}, "qwen2.rope.dimension_count"),
    ],
)
def test_what_transformers_passes_over_is_said(
    tmp_path: Path, architecture: str, entries: dict[str, tuple[Any, GGUFValueType]], why: str
) -> None:
    file = tiny_models.write(tmp_path / "m.gguf", architecture, entries=entries)
    with pytest.raises(InvalidRequest, match=rf"'m\.gguf' cannot be fine-tuned: Transformers does not read .*{why}"):
        support.check(file)


@pytest.mark.parametrize(
    ("architecture", "options", "why"),
    [
        (
            "cohere2",
            {},
            "its architecture is 'cohere2'; what can be is of the architecture llama, qwen2, qwen3, gemma2",
        ),
        ("qwen3moe", {"experts": (4, 2)}, "it is a mixture of experts"),
        ("llama", {"experts": (4, 2)}, "it is a mixture of experts"),
        ("qwen3", {"head": 64}, "Transformers does not read its qwen3.attention.key_length"),
        ("gemma2", {"head": 128}, "Transformers does not read its gemma2.attention.key_length"),
        ("llama", {"entries": {"attention.value_length": 32}}, "Transformers does not read its llama.attention.value"),
        ("llama", {"entries": {"attention.head_count_kv": [2, 1]}}, "Transformers does not read its llama.attention."),
        ("llama", {"entries": {"attention.head_count": [4, 2]}}, "its layers have different numbers of heads"),
    ],
)
def test_other_models_cannot_be(tmp_path: Path, architecture: str, options: dict[str, Any], why: str) -> None:
    file = ggufs.make(tmp_path / "m.gguf", architecture, **options)
    with pytest.raises(InvalidRequest, match=rf"'m\.gguf' cannot be fine-tuned: {why}"):
        support.check(file)


@pytest.mark.parametrize(
    ("name", "why"),
    [("rope_freqs.weight", "rope_freqs"), ("blk.0.attn_q.bias", "does not read its 'blk.0.attn_q.bias'")],
)
def test_tensors_that_nobody_would_read_are_said(tmp_path: Path, name: str, why: str) -> None:
    tensors: ggufs.Tensors = {"token_embd.weight": ((64, 32), "f16"), name: ((64,), "f32")}
    head = {"embedding_length": 64, "block_count": 1, "attention.head_count": 4}
    entries: ggufs.Metadata = {"general.architecture": "llama", **{f"llama.{key}": head[key] for key in head}}
    with pytest.raises(InvalidRequest, match=why):
        support.check(ggufs.write(tmp_path / "m.gguf", entries, tensors))


def test_a_model_in_parts_and_a_file_that_is_none_cannot_be(tmp_path: Path) -> None:
    parts = gguf_files.llama_gguf(tmp_path / "parts.gguf", tensors_per_part=10)
    with pytest.raises(InvalidRequest, match="is in parts, which Transformers does not read"):
        support.check(parts)
    (tmp_path / "none.gguf").write_bytes(b"GGU")
    with pytest.raises(InvalidRequest, match="is no usable GGUF file"):
        support.check(tmp_path / "none.gguf")


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    entries = {"general.architecture": "llama", "general.type": "adapter"}
    tensors: ggufs.Tensors = {"blk.0.attn_q.weight.lora_a": ((64, 4), "f32")}
    with pytest.raises(InvalidRequest, match="it is an adapter; name the model"):
        support.check(ggufs.write(tmp_path / "a.gguf", entries, tensors))


def test_whether_it_is_installed_is_found_without_importing_it() -> None:
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from modelops.learning import support; support.installed(); print('torch' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "False"


def test_it_is_not_installed_where_one_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "_PACKAGES", ("json", "asyncio"))
    assert support.installed()
    monkeypatch.setattr(support, "_PACKAGES", ("json", "no_such_package"))
    assert not support.installed()
    assert "pip install 'modelops-coordinator[learning]'" in support.MISSING
