"""TRL's trainers, as they are run here: in an order of rows that is known in advance, from one checkpoint to the next.

Which rows a step sees, and its dropout, depend on nothing but the seed and the number of the step: a training that was
killed and goes on from a checkpoint ends with the same weights as one that was not.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import DPOTrainer, SFTTrainer

from modelops.learning import files
from modelops.learning.trainer import checkpoints, report
from modelops.learning.trainer.pace import Pace
from modelops.learning.trainer.report import Failed

ADAPTER, TRAINED = "adapter", "trained.json"
_STATE = "trainer_state.json"  # read by Transformers under this name
#: Of how many of the last steps the loss is told at the end.
_LAST = 10


class Trained:
    """What TRL's trainers do otherwise here: the rows' order, checkpoints, what is told, and when to give up."""

    if TYPE_CHECKING:  # what it is mixed into has them
        args: Any
        state: Any
        model: Any
        optimizer: Any
        lr_scheduler: Any
        _metrics: Any

    pace: Pace
    order: Order
    losses: list[float]
    told: dict[str, float]
    first_loss: float | None = None
    eval_loss: float | None = None
    tokens: int = 0

    def begin(self, order: Order, checkpoint_folder: Path) -> None:
        """Before the first step."""
        self.order, self.checkpoint_folder = order, checkpoint_folder
        self.pace, self.losses = Pace(), []

    def finish(self, folder: Path) -> None:
        """After the last step: the adapter, and what is to be told."""
        model = self.model
        config = model.peft_config["default"].to_dict()
        config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        config["base_model_name_or_path"] = ""
        weights = {
            name: value.detach().float().cpu().contiguous()
            for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        }
        checkpoints.put(
            folder / ADAPTER,
            {
                "adapter_model.safetensors": save(weights, {"format": "pt"}),
                "adapter_config.json": json.dumps(config, indent=2, sort_keys=True, default=str).encode(),
            },
        )
        loss = sum(self.losses) / len(self.losses)
        if self.first_loss is not None and loss > self.first_loss:
            report.warning(
                f"the loss has not fallen: {self.first_loss:.3f} at first, {loss:.3f} at the end; a lower "
                "learning_rate or more rows may help"
            )
        trained = {
            "steps": self.state.global_step,
            "train_loss": loss,
            "first_loss": self.first_loss,
            "eval_loss": self.eval_loss,
            "seconds": round(self.pace.seconds, 1),
        }
        files.write(folder / TRAINED, json.dumps(trained).encode())
        shutil.rmtree(folder / "cache", ignore_errors=True)

    # --- the rows' order ---
    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        return self.order

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """There is none: each step begins with its own."""

    # --- when to give up ---
    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """There and back, with the rows of a part of a batch. Raises Failed where the loss is no number."""
        self.tokens += int(inputs["attention_mask"].sum())
        loss = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        if not bool(torch.isfinite(loss)):
            raise _diverged("loss of", self.state.global_step + 1)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        if not math.isfinite(norm):
            raise _diverged("gradient of", self.state.global_step + 1)
        return norm

    # --- what is told ---
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Tell of a step, or of the held-out rows' loss; nothing of it is kept but the losses of the last steps."""
        self._metrics["train" if self.model.training else "eval"].clear()
        if "loss" in logs:
            self.pace.stepped(self.tokens)
            self.tokens = 0
            self.losses = [*self.losses, logs["loss"]][-_LAST:]
            self.first_loss = self.first_loss or logs["loss"]
            self.told = logs
        elif "eval_loss" in logs:
            if not math.isfinite(logs["eval_loss"]):
                raise _diverged("loss of the held-out rows after", self.state.global_step)
            self.eval_loss = logs["eval_loss"]
        else:
            return
        done, total = self.state.global_step, self.state.max_steps
        if self.pace.due() or "eval_loss" in logs or done in (1, total):
            report.progress(
                done,
                total,
                step=done,
                total_steps=total,
                train_loss=self.told["loss"],
                eval_loss=self.eval_loss,
                learning_rate=self.told["learning_rate"],
                grad_norm=self.told["grad_norm"],
                tokens_per_second=self.pace.tokens_per_second(),
                eta_seconds=self.pace.eta_seconds(total - done),
            )

    # --- checkpoints ---
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        optimizer = self.optimizer.state_dict()
        moments = {
            f"{index}.{name}": value for index, kept in optimizer["state"].items() for name, value in kept.items()
        }
        scheduler = {key: value for key, value in self.lr_scheduler.state_dict().items() if key != "lr_lambdas"}
        progress = {
            "scheduler": scheduler,
            "rates": [group["lr"] for group in optimizer["param_groups"]],
            "losses": self.losses,
            "first_loss": self.first_loss,
            "eval_loss": self.eval_loss,
            "seconds": self.pace.seconds,
        }
        checkpoints.write(
            self.checkpoint_folder,
            self.state.global_step,
            {
                "weights.safetensors": save(_cpu(self._trainable())),
                "optimizer.safetensors": save(_cpu(moments)),
                "progress.json": json.dumps(progress).encode(),
                _STATE: json.dumps(dataclasses.asdict(self.state)).encode(),
            },
        )

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        held = load_file(Path(checkpoint) / "weights.safetensors")
        with torch.no_grad():
            for name, value in self._trainable().items():
                value.copy_(held[name])
        progress = json.loads((Path(checkpoint) / "progress.json").read_bytes())
        self.losses, self.first_loss = progress["losses"], progress["first_loss"]
        self.eval_loss, self.pace.seconds = progress["eval_loss"], progress["seconds"]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not checkpoint:
            return
        progress = json.loads((Path(checkpoint) / "progress.json").read_bytes())
        fresh = self.optimizer.state_dict()
        state: dict[int, dict[str, Any]] = {}
        for key, value in load_file(Path(checkpoint) / "optimizer.safetensors").items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = value
        for group, rate in zip(fresh["param_groups"], progress["rates"], strict=True):
            group["lr"] = rate
        self.optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})
        self.lr_scheduler.load_state_dict(self.lr_scheduler.state_dict() | progress["scheduler"])

    def _trainable(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}


class Sft(Trained, SFTTrainer):  # type: ignore[misc]
    """Supervised: the loss is that of the answers' tokens."""


class Dpo(Trained, DPOTrainer):  # type: ignore[misc]
    """Answers that are preferred to others."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        """They are tokens already."""
        return dataset


class Steps(TrainerCallback):  # type: ignore[misc]
    """Gives each step its own random numbers, and its time."""

    def __init__(self, seed: int, pace: Pace) -> None:
        self._seed, self._pace = seed, pace

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before a step's first row."""
        torch.manual_seed(self._seed * 1_000_003 + state.global_step)
        self._pace.begun()


class Order(Sampler[int]):  # type: ignore[misc]
    """The rows of all steps, one after another: each row once, in an order that the seed gives, then each once more."""

    def __init__(self, lengths: Sequence[int], batch: int, steps: int, seed: int) -> None:
        self._lengths, self._batch, self._steps, self._seed = lengths, batch, steps, seed

    def __len__(self) -> int:
        return self._batch * self._steps

    def __iter__(self) -> Iterator[int]:
        rows, batch = self._rows(), []
        for _ in range(self._steps):
            batch = [next(rows) for _ in range(self._batch)]
            # Those of one batch may come in any order: of like length, they need little padding.
            yield from sorted(batch, key=lambda row: (self._lengths[row], row))

    def _rows(self) -> Iterator[int]:
        epoch = 0
        while True:
            yield from np.random.default_rng((self._seed, epoch)).permutation(len(self._lengths)).tolist()
            epoch += 1


def _cpu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _diverged(what: str, step: int) -> Failed:
    return Failed(
        "diverged",
        f"the {what} step {step} is no number: the training has diverged; lower learning_rate, and look for rows "
        "that make no sense",
    )
