"""Whether the engine can be asked the rows that are to judge the model: better known before training than after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modelops.learning import datasets, scoring
from modelops.learning.datasets import Example
from modelops.learning.trainer import report
from modelops.learning.trainer.report import Failed
from modelops.learning.trainer.task import Task

if TYPE_CHECKING:
    from modelops.learning.trainer.encoding import Encoder

#: What rows of which file are called.
_SETS = {"eval.jsonl": "eval", "regression.jsonl": "regression"}
_EVERY = 256


def look(task: Task, folder: Path, encoder: Encoder) -> None:
    """Put each of the rows as the engine will be asked it. Raises Failed where the chat template refuses one, or where
    some do not fit into the engine's context, if that is known.
    """
    for file, name in _SETS.items():
        if (folder / file).exists():
            _look(task, datasets.load(folder / file, "evaluate"), name, encoder)


def _look(task: Task, rows: list[Example], name: str, encoder: Encoder) -> None:
    context = task.context_length
    too_long = []
    for number, row in enumerate(rows):
        try:
            size = _size(task, row, encoder)
        except Failed as failure:
            raise Failed(failure.code, f"{name} row line {row.line}: {failure.message}") from None
        if context and size > context:
            too_long.append(row.line)
        if number % _EVERY == 0 or number + 1 == len(rows):
            report.progress(number + 1, len(rows))
    if too_long:
        raise Failed(
            "invalid_request",
            f"{name} row {report.lines(too_long)}: longer than the engine's context of {context} tokens, of which "
            f"{task.parameters.evaluation.max_tokens} are kept for an answer; shorten what is that long, lower "
            "evaluation.max_tokens, or serve the model with a longer context_length",
        )


def _size(task: Task, row: Example, encoder: Encoder) -> int:
    """The tokens that the engine has to have room for, of whatever is asked of the row."""
    wanted = task.parameters.evaluation
    scored = "perplexity" in wanted.metrics
    if not row.turns:
        return len(encoder.text(row.text)) if scored else 0
    system = {"role": "system", "content": wanted.system}
    said = row.turns if not wanted.system or row.turns[0]["role"] == "system" else (system, *row.turns)
    prompt, (answer,) = encoder.asked(said, [row.answer])
    asked = any(metric in scoring.ANSWERS for metric in wanted.metrics)
    return len(prompt) + max(wanted.max_tokens if asked else 0, len(answer) if scored else 0)
