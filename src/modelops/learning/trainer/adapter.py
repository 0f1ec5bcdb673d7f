"""From PEFT's adapter to the engine's: a LoRA in a GGUF file.

Owns what of a LoRA means the same to both, and refuses the rest. The names of tensors are the gguf package's; where
the weights of an architecture stand in another order in a GGUF, those rows of B do too. Whether all this is right is
not decided here: the parity gate asks the engine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modelops.learning import files
from modelops.learning.support import ARCHITECTURES
from modelops.learning.trainer.report import Failed
from modelops.serving.gguf_reader import Table

Matrix = npt.NDArray[np.float32]

#: What of a configuration is read, and what changes nothing of what the weights mean.
_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "init_lora_weights")
_HARMLESS = {
    *_READ,
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("megatron_core", "qalora_group_size", "runtime_config"),  # set, but nothing without others that are not
}
#: Ways to begin that leave the base as it is. Others change it, and the adapter is for what they made of it.
_BEGINNINGS = (True, False, "gaussian", "orthogonal")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<which>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Pair:
    """A matrix that is added to one of the base's: `b @ a`, times the adapter's scale. `a` has a row for each rank."""

    a: Matrix
    b: Matrix


@dataclass(frozen=True)
class Adapter:
    """A LoRA by the names of the base's tensors, in their order; its scale is `alpha / rank`."""

    alpha: float
    rank: int
    pairs: Mapping[str, Pair]

    @property
    def scale(self) -> float:
        """What `b @ a` is multiplied with."""
        return self.alpha / self.rank


def read(folder: Path, base: Table) -> Adapter:
    """PEFT's adapter in `folder`, for the model whose table is `base`.

    Raises Failed: `unsupported` for what a GGUF adapter cannot hold, `internal` where it does not fit the base or is
    damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise Failed("internal", f"the trained adapter cannot be read ({type(error).__name__})") from error
    alpha, rank = scaling(config)
    modules: dict[str, dict[str, Matrix]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if not found:
            raise Failed("unsupported", f"a GGUF adapter cannot hold '{key}'")
        modules.setdefault(found["module"], {})[found["which"]] = tensor.astype(np.float32)
    pairs = {}
    for module, parts in modules.items():
        if parts.keys() != {"A", "B"}:
            raise Failed("internal", f"the trained adapter is damaged: of '{module}' one half is missing")
        pairs[module] = Pair(parts["A"], parts["B"])
    return Adapter(alpha, rank, placed(pairs, rank, base))


def scaling(config: Mapping[str, Any]) -> tuple[float, int]:
    """Alpha and rank of a LoRA's configuration. Raises Failed for what a GGUF adapter cannot hold.

    With `use_rslora` the scale is alpha / sqrt(rank), which another alpha says as well.
    """
    if config.get("peft_type") != "LORA":
        raise Failed("unsupported", f"the adapter is no LoRA, but '{config.get('peft_type')}'")
    for name, value in config.items():
        if name not in _HARMLESS and value and value != "none":
            raise Failed("unsupported", f"a GGUF adapter cannot hold what '{name}' does; leave it out")
    if (begun := config.get("init_lora_weights", True)) not in _BEGINNINGS:
        raise Failed(
            "unsupported", f"with init_lora_weights '{begun}' the adapter would need another base; leave it out"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise Failed("internal", "the trained adapter is damaged: its rank or alpha is no number")
    return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0), rank


def placed(pairs: Mapping[str, Pair], rank: int, base: Table) -> dict[str, Pair]:
    """The pairs by the names of the base's tensors, in the base's order, with their rows as it has them. Raises Failed
    where they do not fit it.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = str(base.values.get("general.architecture"))
    known = ARCHITECTURES.get(architecture)
    if not known:
        raise Failed("unsupported", f"adapters of the architecture '{architecture}' are not converted")
    number = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}[architecture]
    names = get_tensor_name_map(number, int(base.values[f"{architecture}.block_count"]))
    q_heads = int(base.values[f"{architecture}.attention.head_count"])
    k_heads = int(base.values.get(f"{architecture}.attention.head_count_kv", q_heads))
    found: dict[str, Pair] = {}
    for module, pair in pairs.items():
        name = names.get_name(module)
        if not name or not name.startswith("blk."):
            raise Failed("unsupported", f"a GGUF adapter cannot hold a LoRA on '{module}'")
        if known.permuted and name.endswith((".attn_q", ".attn_k")):
            pair = Pair(pair.a, permuted(pair.b, q_heads if name.endswith("q") else k_heads))
        found[f"{name}.weight"] = pair
    shapes = {tensor.name: tensor.shape for tensor in base.tensors}
    for name, pair in found.items():
        if shapes.get(name) != (pair.a.shape[-1], pair.b.shape[0]) or not pair.a.shape[0] == pair.b.shape[1] == rank:
            raise Failed("internal", f"the adapter does not fit the model: '{name}' has another shape there")
        if not (np.isfinite(pair.a).all() and np.isfinite(pair.b).all()):
            raise Failed("diverged", "the trained adapter holds weights that are no numbers; lower learning_rate")
    return {name: found[name] for name in shapes if name in found}


def permuted(rows: Matrix, heads: int) -> Matrix:
    """The rows of q or k in the order of llama.cpp's Llama: of each head not one half behind the other, as Transformers
    has what turns with a position, but each number beside that which it turns with.
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)


def write(adapter: Adapter, base: Table, target: Path) -> None:
    """The adapter as a GGUF, for the model whose table is `base`; in single precision, as it was trained. `target` is
    there whole, or not at all. Raises OSError.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(None, str(base.values["general.architecture"]))
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", adapter.alpha)
    for name, pair in adapter.pairs.items():
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(pair.a))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(pair.b))
    with files.whole(target) as partial:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
