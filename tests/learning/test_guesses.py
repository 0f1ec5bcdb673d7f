"""What is guessed of a job's rows before any model is loaded, beside what they turn out to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelops.learning import datasets
from modelops.learning.checks import row_tokens
from modelops.serving.gguf import read_header

TEMPLATE = "{% if first %}{{ 'You are a helpful assistant.' }}{% endif %}{{ message['content'] }}"
ASKED: dict[str, Any] = {"prompt": "What is the capital of France?", "completion": "Paris"}


def guessed(row: dict[str, Any], template: str = TEMPLATE) -> int:
    return row_tokens(datasets.read([row], "lora", "dataset"), template)[0]


def test_a_system_turn_that_the_template_adds_by_itself_is_counted() -> None:
    assert guessed(ASKED) - guessed(ASKED, "") >= 28 / 3
    told = {**ASKED, "system": "Answer."}
    assert guessed(told) == guessed(told, "")
    assert guessed({"text": "Paris is a city."}) == guessed({"text": "Paris is a city."}, "")


def test_every_turn_is_counted() -> None:
    turns = [{"role": role, "content": "Yes."} for role in ("user", "assistant") * 3]
    assert guessed({"messages": turns}, "") - guessed({"messages": turns[:2]}, "") >= 4 * 5


def test_as_many_are_guessed_as_there_are_and_not_many_more(learning: None, smollm2: Path) -> None:
    from modelops.learning.trainer.encoding import Encoder

    encoder, template = Encoder(smollm2), read_header(smollm2).chat_template
    assert "You are a helpful AI assistant" in template
    rows = [ASKED, {**ASKED, "system": "Answer."}, {**ASKED, "completion": "Paris, of course. " * 20}]
    for row in rows:
        example = datasets.read([row], "lora", "dataset").rows[0]
        begun, (answer,) = encoder.asked(example.turns, [example.answer])
        assert len(begun) + len(answer) <= guessed(row, template) <= 1.7 * (len(begun) + len(answer))
