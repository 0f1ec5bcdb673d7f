"""The step `reference`: what the trained model makes of some rows, by the trainer's own account.

What is compared are probabilities where the adapter matters and the model is not certain: at the ends of some rows,
with a part of the question before the answer, and in a text that nobody has trained on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelops.learning import files
from modelops.learning.trainer import base, report, rows
from modelops.learning.trainer.encoding import Encoder
from modelops.learning.trainer.report import Failed
from modelops.learning.trainer.task import Task
from modelops.learning.trainer.weights import table

if TYPE_CHECKING:
    import torch

REFERENCE = "reference.json"
#: Rows of each kind, and tokens at the end of each of them. With the text that makes some 200 positions.
_ROWS = {"train": 4, "eval": 2}
_TOKENS = 24
#: Tokens of a row that are looked at: what was before them is left out on both sides.
_LONGEST = 256
_TEXT_TOKENS = 64
_TEXT = (
    "Water is a small molecule, but it behaves in ways that surprise us. When it freezes, it becomes lighter, so ice "
    "floats on the surface of a lake and keeps the water below it warm enough for fish to live through the winter. "
    "When it boils, it takes up a great deal of heat, and this heat is given back when the steam turns into drops "
    "again."
)


def reference(task: Task, folder: Path) -> None:
    """Write REFERENCE: `sequences`, each a `prompt` and an `answer` in tokens, with the `logprobs` of the answer's, the
    `best` tokens in their places with their `best_logprobs`, and `base_logprobs` without the adapter; their number of
    `positions`; and `rows`, the `turns` or the `text` of some rows with the `tokens` that the trainer made of them.

    Raises Failed.
    """
    if (folder / REFERENCE).exists():
        return
    import torch

    torch.set_num_threads(task.threads)
    tokens = rows.read(folder)
    chosen = [(name, [*tokens[name]], _spread(len(tokens[name]), _ROWS[name])) for name in _ROWS if name in tokens]
    whole = [[token for part in parts[index][:2] for token in part] for _, parts, places in chosen for index in places]
    sequences = [_sequence(row[-_LONGEST:], _TOKENS) for row in whole if len(row) > 1]
    sequences.append(_sequence(Encoder(task.base).text(_TEXT)[:_TEXT_TOKENS], _TEXT_TOKENS))
    model = _model(task, folder / "adapter")
    for number, sequence in enumerate(sequences):
        with torch.inference_mode():
            sequence |= _scores(model, sequence)
            with model.disable_adapter():
                sequence["base_logprobs"] = _scores(model, sequence)["logprobs"]
        report.progress(number + 1, len(sequences))
    if not all(map(math.isfinite, (value for each in sequences for value in each["logprobs"]))):
        raise Failed("diverged", "the trained model gives probabilities that are no numbers; lower learning_rate")
    found = {
        "sequences": sequences,
        "positions": sum(len(sequence["answer"]) for sequence in sequences),
        "rows": [
            shown
            for name, parts, places in chosen
            for shown in _shown(
                task, folder / f"{name}.jsonl", {tokens[name].lines[index]: parts[index] for index in places}
            )
        ],
    }
    files.write(folder / REFERENCE, json.dumps(found).encode())


def _spread(count: int, most: int) -> list[int]:
    """So many places among `count`, the first and the last among them."""
    return sorted({round(index * (count - 1) / max(1, most - 1)) for index in range(most)})


def _sequence(tokens: Sequence[int], most: int) -> dict[str, Any]:
    """The last tokens, at most so many, as the answer to all before them, which is one at least."""
    prompt = max(1, len(tokens) - most)
    return {"prompt": [*tokens[:prompt]], "answer": [*tokens[prompt:]]}


def _model(task: Task, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(base.model(task.base, task.device), str(adapter)).eval()


def _scores(model: Any, sequence: dict[str, Any]) -> dict[str, Any]:
    answer = sequence["answer"]
    tokens = _tensor([*sequence["prompt"], *answer], model.device)
    logits = model(input_ids=tokens[None], logits_to_keep=len(answer) + 1).logits[0, :-1]
    logprobs = logits.float().log_softmax(-1)
    best = logprobs.max(-1)
    wanted = logprobs.gather(1, _tensor(answer, model.device)[:, None])[:, 0]
    return {"logprobs": wanted.tolist(), "best": best.indices.tolist(), "best_logprobs": best.values.tolist()}


def _tensor(tokens: list[int], device: torch.device) -> torch.Tensor:
    import torch

    return torch.tensor(tokens, device=device)


def _shown(task: Task, file: Path, parts: dict[int, list[list[int]]]) -> Iterator[dict[str, Any]]:
    """Those rows of `file` as they were written, with the tokens of what the model is asked."""
    values = table(task.base).values
    for line in file.read_bytes().splitlines():
        row = json.loads(line)
        if row["line"] not in parts:
            continue
        prompt, answer, *_ = parts[row["line"]]
        if "text" in row:
            ended = answer[-1] == values.get("tokenizer.ggml.eos_token_id")
            yield {"text": row["text"], "tokens": answer[: -1 if ended else None]}
        elif values.get("tokenizer.chat_template"):
            yield {"turns": row["turns"], "tokens": prompt}
        else:
            yield {"text": "".join(turn["content"] for turn in row["turns"]), "tokens": prompt}
