"""Jobs that have been trained without having been: their adapters are random, and the steps after them are real."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

from modelops.learning.trainer.task import Task, load

RANK = 4
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROWS = (
    {"line": 1, "turns": [{"role": "user", "content": "What is the capital of France?"}], "answer": "Paris."},
    {"line": 2, "turns": [{"role": "user", "content": "And of Chile? \U0001f5fa"}], "answer": "Santiago \U0001f600"},
    {"line": 3, "text": "This is the other text, which is not asked for."},
)
#: All steps of all jobs in one process: PyTorch takes seconds to begin, and reading a large vocabulary takes more.
_STEPS = """
import functools, sys
from pathlib import Path
from modelops.learning.trainer import base, convert, reference, rows, task
base.tokenizer = functools.cache(base.tokenizer)
for folder in map(Path, sys.argv[1:]):
    job = task.load(folder)
    rows.prepare(job, folder)
    convert.convert(job, folder)
    reference.reference(job, folder)
"""


def job(folder: Path, file: Path, *, size: float = 0.1, publish: str = "adapter") -> Task:
    """A job on the model `file` whose training has just ended with a LoRA that changes it, by the `size` of its B."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    task: dict[str, Any] = {"base": str(file), "digest": f"sha256:{digest}", "bases": str(folder / "bases")}
    task |= {"job_type": "lora", "parameters": {"max_length": 128}, "device": "cpu", "threads": 1, "publish": publish}
    (folder / "task.json").write_text(json.dumps(task))
    adapt(folder / "adapter", file, size)
    return load(folder)


def adapt(folder: Path, file: Path, size: float, *, seed: int = 3, **options: Any) -> None:
    """Write a random LoRA on all linear layers of the model `file`, as PEFT does."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK}
    config |= {"target_modules": [*MODULES], "bias": "none", "inference_mode": True, **options}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    reader = GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    names = get_tensor_name_map({name: arch for arch, name in MODEL_ARCH_NAMES.items()}[architecture], 100)
    shapes = {tensor.name: [int(length) for length in tensor.shape] for tensor in reader.tensors}
    chance = np.random.default_rng(seed)
    tensors = {}
    for layer in range(reader.fields[f"{architecture}.block_count"].contents()):
        for module in MODULES:
            name = f"model.layers.{layer}.{'self_attn' if module in MODULES[:4] else 'mlp'}.{module}"
            columns, rows = shapes[f"{names.get_name(name)}.weight"]
            a, b = chance.normal(0, columns**-0.5, (RANK, columns)), chance.normal(0, size, (rows, RANK))
            for letter, values in (("A", a), ("B", b)):
                tensors[f"base_model.model.{name}.lora_{letter}.weight"] = values.astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")


def finish(folders: Sequence[Path]) -> None:
    """Do what comes before and after the training of these jobs."""
    done = subprocess.run([sys.executable, "-c", _STEPS, *map(str, folders)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def reference(folder: Path) -> dict[str, Any]:
    """What the trainer has said of a job that is finished."""
    found: dict[str, Any] = json.loads((folder / "reference.json").read_text())
    return found
