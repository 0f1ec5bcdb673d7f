"""The rows of a job as tokens: made once by the step `prepare`, read by the steps after it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelops.learning import datasets, files
from modelops.learning.datasets import Example, Preference
from modelops.learning.trainer import judged, report
from modelops.learning.trainer.report import Failed
from modelops.learning.trainer.task import Task
from modelops.serving import gguf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelops.learning.trainer.encoding import Encoder

Row = Example | Preference

TOKENS, PREPARED = "tokens.safetensors", "prepared.json"
_EVERY = 256


@dataclass(frozen=True)
class Rows:
    """Tokenised rows. `tokens` are those of all rows; `lengths` say how they are divided, for each row: prompt and
    answer, or prompt, chosen and rejected answer. `lines` are the rows' line numbers.
    """

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]
    lines: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths)

    def longest(self) -> NDArray[np.int32]:
        """The tokens of each row's prompt with its longest answer."""
        found: NDArray[np.int32] = self.lengths[:, 0] + self.lengths[:, 1:].max(axis=1)
        return found

    def __iter__(self) -> Iterator[list[list[int]]]:
        """The parts of each row."""
        at = 0
        tokens = self.tokens
        for lengths in self.lengths.tolist():
            parts = []
            for length in lengths:
                parts.append(tokens[at : at + length].tolist())
                at += length
            yield parts


def prepare(task: Task, folder: Path) -> None:
    """Tokenise the rows into TOKENS, and say in PREPARED what they are.

    Raises Failed where rows are longer than `max_length` and are not to be dropped, or none is left, and where the
    engine could not be asked one of those that are to judge the model.
    """
    if (folder / PREPARED).exists():
        return
    from safetensors.numpy import save

    from modelops.learning.trainer.encoding import Encoder

    encoder = Encoder(task.base)
    if not encoder.template:
        report.warning("the model has no chat template: prompts and answers are joined as they stand")
    limit = task.parameters.max_length
    context = gguf.read_header(task.base).context_length
    limit = min(limit, context) if context else limit
    file = folder / "train.jsonl"
    given = datasets.load(file, "dpo") if task.job_type == "dpo" else datasets.load(file, "lora")
    train, dropped = _encoded(given, encoder, limit)
    if dropped and task.parameters.over_length == "refuse":
        raise Failed("invalid_request", _too_long(dropped, limit))
    if not len(train):
        raise Failed("invalid_request", f"no row is left: all of them have more than {limit} tokens; raise max_length")
    if dropped:
        report.warning(f"{len(dropped)} rows have more than {limit} tokens and are left out: {report.lines(dropped)}")
    judged.look(task, folder, encoder)
    held = {"train": train}
    # Held-out rows have one answer each, whatever is trained: no loss is known of them where answers are compared.
    if task.job_type == "lora" and (folder / "eval.jsonl").exists():
        evaluation, too_long = _encoded(datasets.load(folder / "eval.jsonl", "evaluate"), encoder, limit)
        if too_long:
            report.warning(
                f"of the held-out rows {report.lines(too_long)} have more than {limit} tokens: no loss is known of them"
            )
        if len(evaluation):
            held["eval"] = evaluation
    files.write(
        folder / TOKENS,
        save(
            {
                f"{name}.{part}": getattr(rows, part)
                for name, rows in held.items()
                for part in ("tokens", "lengths", "lines")
            }
        ),
    )
    prepared = {
        "rows": len(train),
        "tokens": len(train.tokens),
        "longest": int(train.longest().max()),
        "dropped": dropped,
        "total_steps": steps(task, len(train)),
    }
    files.write(folder / PREPARED, json.dumps(prepared).encode())


def steps(task: Task, rows: int) -> int:
    """How many steps of the optimiser the task takes with so many rows."""
    wanted = task.parameters
    return wanted.steps or max(1, math.ceil(rows * wanted.epochs / wanted.batch_size))


def read(folder: Path) -> dict[str, Rows]:
    """What `prepare` has made of the rows: `train`, and `eval` where there are held-out rows of the same kind."""
    from safetensors.numpy import load_file

    found = load_file(folder / TOKENS)
    names = {key.partition(".")[0] for key in found}
    return {name: Rows(*(found[f"{name}.{part}"] for part in ("tokens", "lengths", "lines"))) for name in names}


def _encoded(given: Sequence[Row], encoder: Encoder, limit: int) -> tuple[Rows, list[int]]:
    """The rows that are short enough, and the line numbers of the others."""
    import numpy as np

    lengths: list[list[int]] = []
    lines: list[int] = []
    tokens: list[NDArray[np.int32]] = []
    dropped: list[int] = []
    for number, row in enumerate(given):
        parts = _parts(row, encoder)
        if len(parts[0]) + max(map(len, parts[1:])) > limit:
            dropped.append(row.line)
        else:
            lines.append(row.line)
            lengths.append([len(part) for part in parts])
            tokens.extend(np.array(part, np.int32) for part in parts)
        if number % _EVERY == 0 or number + 1 == len(given):
            report.progress(number + 1, len(given))
    kept = np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
    return Rows(kept, np.array(lengths, np.int32), np.array(lines, np.int32)), dropped


def _parts(row: Row, encoder: Encoder) -> list[list[int]]:
    if isinstance(row, Example) and row.text:
        return [[], encoder.text(row.text)]
    answers = [row.answer] if isinstance(row, Example) else [row.chosen, row.rejected]
    try:
        prompt, tokens = encoder.asked(row.turns, answers)
    except Failed as failure:
        raise Failed(failure.code, f"line {row.line}: {failure.message}") from None
    return [prompt, *tokens]


def _too_long(lines: Sequence[int], limit: int) -> str:
    return (
        f"{len(lines)} rows have more than {limit} tokens: {report.lines(lines)}; shorten them, raise max_length, or "
        'leave them out with "over_length": "drop"'
    )
