"""From PEFT's folder to the engine's file, and what is refused on the way."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

import tiny_models
from modelops.learning.trainer import adapter
from modelops.learning.trainer.adapter import Adapter, Pair
from modelops.learning.trainer.report import Failed
from modelops.learning.trainer.weights import table
from modelops.serving.gguf_reader import Table

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False, "rank_pattern": {}}
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return table(tiny_models.write(tmp_path_factory.mktemp("base") / "m.gguf", "llama"))


def pair(rows: int, columns: int, rank: int = 4) -> Pair:
    chance = np.random.default_rng(rows)
    return Pair(
        chance.normal(size=(rank, columns)).astype(np.float32), chance.normal(size=(rows, rank)).astype(np.float32)
    )


# --- what a configuration may say ---
def test_the_scale_is_read() -> None:
    assert adapter.scaling({**PLAIN, "lora_alpha": 6.5}) == (6.5, 4)
    assert Adapter(6.0, 4, {}).scale == 1.5


def test_another_scale_is_said_by_another_alpha() -> None:
    alpha, rank = adapter.scaling({**PLAIN, "use_rslora": True})
    assert alpha / rank == pytest.approx(8 / math.sqrt(4))


@pytest.mark.parametrize(
    "more",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"bias": "all"},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"fan_in_fan_out": True},
        {"trainable_token_indices": [1]},
        {"target_parameters": ["experts"]},
        {"layer_replication": [[0, 2]]},
        {"use_qalora": True},
        {"alora_invocation_tokens": [5]},
        {"something_new": {"a": 1}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_a_gguf_cannot_hold_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(Failed, match=f"a GGUF adapter cannot hold what '{next(iter(more))}' does") as failed:
        adapter.scaling({**PLAIN, **more})
    assert failed.value.code == "unsupported"


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq"])
def test_an_adapter_for_another_base_is_refused(begun: str) -> None:
    with pytest.raises(Failed, match=f"with init_lora_weights '{begun}' the adapter would need another base"):
        adapter.scaling({**PLAIN, "init_lora_weights": begun})


@pytest.mark.parametrize("more", [{"peft_type": "IA3"}, {"r": 0}, {"r": "4"}, {"lora_alpha": math.nan}])
def test_what_is_no_lora_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(Failed):
        adapter.scaling({**PLAIN, **more})


# --- where its weights belong ---
def test_rows_are_turned_pairwise() -> None:
    rows = np.arange(16, dtype=np.float32).reshape(8, 2)
    turned = adapter.permuted(rows, 2)
    assert turned[:, 0].tolist() == [0, 4, 2, 6, 8, 12, 10, 14]


def test_pairs_are_named_and_ordered_as_the_base_has_them(base: Table) -> None:
    given = {DOWN: pair(64, 128), Q: pair(64, 64)}
    placed = adapter.placed(given, 4, base)
    assert [*placed] == ["blk.0.attn_q.weight", "blk.1.ffn_down.weight"]
    assert placed["blk.1.ffn_down.weight"] is given[DOWN]
    assert np.array_equal(placed["blk.0.attn_q.weight"].b, adapter.permuted(given[Q].b, 4))
    assert placed["blk.0.attn_q.weight"].a is given[Q].a


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "gemma2", "gemma3"])
def test_other_architectures_keep_their_rows(tmp_path: Path, architecture: str) -> None:
    other = table(tiny_models.write(tmp_path / "m.gguf", architecture))
    given = pair(4 * tiny_models.HEAD[architecture], 64)
    assert adapter.placed({Q: given}, 4, other) == {"blk.0.attn_q.weight": given}


@pytest.mark.parametrize(
    ("pairs", "code", "message"),
    [
        ({"model.embed_tokens": pair(267, 64)}, "unsupported", "a LoRA on 'model.embed_tokens'"),
        ({"lm_head": pair(267, 64)}, "unsupported", "a LoRA on 'lm_head'"),
        ({"model.layers.0.mlp.strange": pair(64, 64)}, "unsupported", "a LoRA on 'model.layers.0.mlp.strange'"),
        ({"model.layers.2.self_attn.q_proj": pair(64, 64)}, "unsupported", "a LoRA on 'model.layers.2"),
        ({Q: pair(64, 32)}, "internal", "does not fit the model: 'blk.0.attn_q.weight' has another shape"),
        ({DOWN: pair(32, 128)}, "internal", "does not fit the model"),
        ({DOWN: pair(64, 128, 2)}, "internal", "does not fit the model"),
        ({DOWN: Pair(pair(64, 128).a, pair(64, 128).b * np.float32(np.inf))}, "diverged", "are no numbers"),
    ],
)
def test_what_does_not_belong_there_is_refused(base: Table, pairs: dict[str, Pair], code: str, message: str) -> None:
    with pytest.raises(Failed, match=message) as failed:
        adapter.placed(pairs, 4, base)
    assert failed.value.code == code


def test_the_file_holds_what_the_engine_looks_for(base: Table, tmp_path: Path) -> None:
    trained = Adapter(12.0, 4, adapter.placed({DOWN: pair(64, 128)}, 4, base))
    adapter.write(trained, base, tmp_path / "a.gguf")
    adapter.write(trained, base, tmp_path / "again.gguf")
    read = GGUFReader(tmp_path / "a.gguf")
    values = {field.name: field.contents() for field in read.fields.values() if not field.name.startswith("GGUF.")}
    assert values == {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 12.0,
    }
    weights = {tensor.name: tensor.data for tensor in read.tensors}
    assert [*weights] == ["blk.1.ffn_down.weight.lora_a", "blk.1.ffn_down.weight.lora_b"]
    assert np.array_equal(weights["blk.1.ffn_down.weight.lora_b"], pair(64, 128).b)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "again.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "again.gguf"]


# --- what PEFT leaves ---
_PEFT = """
import sys, torch
from peft import LoraConfig, get_peft_model
from modelops.learning.trainer import base
config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
model = get_peft_model(base.model(base.Path(sys.argv[1]), "cpu"), config)
model.save_pretrained(sys.argv[2])
"""


@pytest.fixture(scope="module")
def saved(learning: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What PEFT itself saved."""
    folder = tmp_path_factory.mktemp("saved")
    file = tiny_models.write(folder / "m.gguf", "llama")
    subprocess.run([sys.executable, "-c", _PEFT, str(file), str(folder / "adapter")], check=True, capture_output=True)
    return folder / "adapter"


def copied(saved: Path, target: Path) -> Path:
    target.mkdir()
    for file in saved.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_what_peft_saves_is_read(saved: Path, base: Table) -> None:
    found = adapter.read(saved, base)
    assert (found.alpha, found.rank, len(found.pairs)) == (8.0, 4, 14)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "the trained adapter cannot be read"),
        ("gone", "the trained adapter cannot be read"),
        ("no json", "the trained adapter cannot be read"),
        ("half", "the trained adapter is damaged: of '.*' one half is missing"),
        ("more", "a GGUF adapter cannot hold 'base_model.model.lm_head.weight'"),
    ],
)
def test_a_damaged_adapter_is_no_adapter(saved: Path, base: Table, tmp_path: Path, fault: str, message: str) -> None:
    from safetensors.numpy import load_file, save_file

    folder = copied(saved, tmp_path / "adapter")
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(weights)
    match fault:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "gone":
            weights.unlink()
        case "no json":
            config.write_text("{")
        case "half":
            save_file(dict([*tensors.items()][:-1]), weights)
        case "more":
            save_file({**tensors, "base_model.model.lm_head.weight": np.zeros((2, 2), np.float32)}, weights)
    with pytest.raises(Failed, match=message):
        adapter.read(folder, base)


def test_a_configuration_of_another_kind_is_refused(saved: Path, base: Table, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "adapter")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    with pytest.raises(Failed, match="use_dora"):
        adapter.read(folder, base)
