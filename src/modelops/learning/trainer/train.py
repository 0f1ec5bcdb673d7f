"""Trains a LoRA: the step `train`, from the rows as tokens to the adapter.

How the model is read and where the LoRA goes, with what TRL's trainers are told; how they run is `loop`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import torch
import trl.trainer.utils
from datasets import Dataset
from datasets.table import InMemoryTable
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, SFTConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from modelops.api.learning import DpoParameters
from modelops.learning import costs
from modelops.learning.trainer import base, checkpoints, report, rows
from modelops.learning.trainer.loop import TRAINED, Dpo, Order, Sft, Steps
from modelops.learning.trainer.report import Failed
from modelops.learning.trainer.rows import Rows
from modelops.learning.trainer.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINTS = "checkpoints"
_IGNORED = -100
#: Held-out rows whose loss is computed at each checkpoint, at most; and at most so many for each row trained on since.
_HELD_OUT, _HELD_OUT_SHARE = 64, 0.1


def train(task: Task, folder: Path) -> None:
    """Train on what `prepare` has left in the folder; leave the adapter and what is to be told of it.

    Goes on from the newest good checkpoint. Raises Failed: `diverged` where the loss is no number any more.
    """
    if (folder / TRAINED).exists():
        return
    torch.set_num_threads(task.threads)
    torch.use_deterministic_algorithms(True, warn_only=task.device != "cpu")
    # TRL leaves out the tokens that have no loss where it finds Triton. On a processor it would compute the logits of
    # all of them, and for nothing: those of the prompts are most of the work with a small model.
    trl.trainer.utils._use_triton = lambda _device: True
    checkpoint = checkpoints.newest(folder / CHECKPOINTS)
    trainer = _trainer(task, folder, rows.read(folder))
    if checkpoint:
        report.log(f"goes on after step {checkpoints.number(checkpoint)}")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trainer.finish(folder)


def _trainer(task: Task, folder: Path, held: dict[str, Rows]) -> Any:
    wanted = task.parameters
    train_rows, pairs = held["train"], isinstance(wanted, DpoParameters)
    total = rows.steps(task, len(train_rows))
    longest = int(train_rows.longest().max())
    cut = costs.cut(wanted.batch_size, longest * (2 if pairs else 1), task.device)
    options = _options(task, total) | {
        "output_dir": str(folder / CHECKPOINTS),
        "per_device_train_batch_size": cut.rows,
        "gradient_accumulation_steps": cut.times,
        "gradient_checkpointing": cut.recomputed,
    }
    held_out = None
    if "eval" in held:
        kept = _held_out(len(held["eval"]), wanted.checkpoint_steps * wanted.batch_size)
        held_out = _dataset(held["eval"], pairs).select(kept)
        longest = int(held["eval"].longest().max())
        options["per_device_eval_batch_size"] = costs.cut(wanted.batch_size, longest, task.device).rows
        options |= {"eval_strategy": "steps", "eval_steps": wanted.checkpoint_steps, "prediction_loss_only": True}
    model = base.model(task.base, task.device)
    given = {
        "model": model,
        "train_dataset": _dataset(train_rows, pairs),
        "eval_dataset": held_out,
        "processing_class": _no_tokenizer(),
        "peft_config": _lora(task, model),
    }
    trainer: Any
    if isinstance(wanted, DpoParameters):
        config = DPOConfig(**options, beta=wanted.beta, disable_dropout=False)
        trainer = Dpo(**given, args=config, data_collator=DataCollatorForPreference(pad_token_id=0))
    else:
        config = SFTConfig(**options, packing=False, dataset_kwargs={"skip_prepare_dataset": True})
        trainer = Sft(**given, args=config, data_collator=DataCollatorForLanguageModeling(pad_token_id=0))
    order = Order(train_rows.longest().tolist(), wanted.batch_size, total, wanted.seed)
    trainer.begin(order, folder / CHECKPOINTS)
    trainer.add_callback(Steps(wanted.seed, trainer.pace))
    return trainer


def _options(task: Task, total: int) -> dict[str, Any]:
    """What is the same whatever the rows are."""
    wanted = task.parameters
    return {
        "max_steps": total,
        "learning_rate": wanted.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if wanted.schedule == "constant" else wanted.schedule,
        "warmup_steps": int(wanted.warmup * total),
        "weight_decay": wanted.weight_decay,
        "max_grad_norm": wanted.max_grad_norm,
        "optim": "adamw_torch",
        "seed": wanted.seed,
        "use_cpu": task.device == "cpu",
        "bf16": task.device == "cuda" and torch.cuda.is_bf16_supported(),
        "max_length": None,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": wanted.checkpoint_steps,
        "average_tokens_across_devices": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": "none",
    }


def _lora(task: Task, model: PreTrainedModel) -> LoraConfig:
    """What PEFT is told. Raises Failed where the model has not what the LoRA is to be put on."""
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    parameters = task.parameters
    wanted = set(parameters.target_modules) or linear
    if not linear:
        raise Failed("unsupported", "the model cannot be trained: it has no layers that a LoRA can be put on")
    if missing := sorted(wanted - linear):
        raise Failed(
            "invalid_request",
            f"parameters.target_modules: the model has no {', '.join(missing)}; it has {', '.join(sorted(linear))}",
        )
    return LoraConfig(
        r=parameters.rank,
        lora_alpha=parameters.alpha,
        lora_dropout=parameters.dropout,
        target_modules=sorted(wanted),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _dataset(rows: Rows, pairs: bool) -> Dataset:
    """The rows as TRL takes them."""
    parts = rows.lengths.shape[1]
    part = np.repeat(np.arange(rows.lengths.size) % parts, rows.lengths.ravel())  # of which each token is
    if pairs:
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        columns = {
            name: _lists(rows.tokens[part == number], rows.lengths[:, number]) for number, name in enumerate(names)
        }
    else:
        lengths = rows.lengths.sum(axis=1)
        labels = np.where(part == 0, np.int32(_IGNORED), rows.tokens)
        columns = {"input_ids": _lists(rows.tokens, lengths), "labels": _lists(labels, lengths)}
    return Dataset(InMemoryTable(pyarrow.table(columns)))


def _lists(values: Any, lengths: Any) -> Any:
    """One after another, each so long."""
    ends = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
    return pyarrow.ListArray.from_arrays(pyarrow.array(ends), pyarrow.array(values))


def _held_out(count: int, trained: int) -> list[int]:
    """Which of `count` held-out rows: always the same, and so few that their loss is cheap beside that many trained."""
    wanted = min(count, _HELD_OUT, max(8, int(trained * _HELD_OUT_SHARE)))
    return [index * count // wanted for index in range(wanted)]


def _no_tokenizer() -> PreTrainedTokenizerFast:
    """TRL wants one; the rows are tokens already, and reading the model's own takes seconds."""
    nothing = Tokenizer(WordLevel({"-": 0}, "-"))
    return PreTrainedTokenizerFast(tokenizer_object=nothing, pad_token="-")  # noqa: S106 - not that kind of token
