"""From turns to tokens: what a model is trained on is what its engine will show it, and what it is to answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelops.learning import datasets
from modelops.learning.trainer import base
from modelops.learning.trainer.report import Failed
from modelops.serving.gguf_reader import read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Sequence[datasets.Turn]
#: No template writes that by itself.
_ANSWER = "answer8d0c51f7"


class Encoder:
    """A model's tokenizer and chat template.

    A prompt is tokenised by itself, as an engine does that is asked it, and never together with its answer. An answer
    ends with the token that ends a turn, so that the model learns to stop.
    """

    def __init__(self, file: Path) -> None:
        self._tokenizer = base.tokenizer(file)
        self.template = bool(self._tokenizer.chat_template)
        self._first = _first(file, self._tokenizer)
        self._special = set(self._tokenizer.all_special_ids) | {
            number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special
        }
        self._eos = self._tokenizer.eos_token_id

    def asked(self, turns: Turns, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """The tokens of a prompt that asks for an answer, and those of each of the answers.

        Without a chat template the prompt is its turns' texts as they stand. Raises Failed where the template refuses
        the turns.
        """
        text = self._rendered(turns) if self.template else datasets.plain(turns)
        prompt = self._tokens(text)
        begun = [*self._first, *prompt] if prompt[: len(self._first)] != self._first else prompt
        end = self._end(turns)
        return begun, [self._answer(text, prompt, answer, end) for answer in answers]

    def text(self, text: str) -> list[int]:
        """The tokens of a text that nobody asked for, from the one that begins it to the one that ends it."""
        tokens = self._tokens(text)
        if tokens[: len(self._first)] != self._first:
            tokens = [*self._first, *tokens]
        return tokens if self._eos is None or tokens[-1:] == [self._eos] else [*tokens, self._eos]

    def _answer(self, prompt_text: str, prompt: list[int], answer: str, end: str) -> list[int]:
        """The answer's tokens as they follow the prompt's: a tokenizer may treat the beginning of a text otherwise."""
        whole = self._tokens(prompt_text + answer + end)
        tokens = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self._tokens(answer + end)
        return tokens if end or self._eos is None else [*tokens, self._eos]

    def _end(self, turns: Turns) -> str:
        """What the template puts behind an answer, up to the token that ends a turn; nothing where that is not known.

        An engine stops at that token: what a template writes behind it is never generated. It is looked for behind an
        answer that is found with certainty: "end" is a part of many a token, and templates change what they show.
        """
        if not self.template:
            return ""
        whole = self._rendered([*turns, {"role": "assistant", "content": _ANSWER}], answered=True)
        _, found, behind = whole.rpartition(_ANSWER)
        if not found:
            return ""
        for token in self._tokens(behind):
            if token in self._special:
                before, name, _ = behind.partition(str(self._tokenizer.convert_ids_to_tokens(token)))
                return before + name
        return ""

    def _rendered(self, turns: Turns, *, answered: bool = False) -> str:
        from jinja2 import TemplateError  # noqa: TID251 - in Transformers' sandbox, in a process of its own

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=not answered
                )
            )
        except TemplateError as error:
            raise Failed("invalid_request", f"the model's chat template refuses such turns: {error.message}") from error

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens


def _first(file: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token that an engine puts before everything, where the file says so."""
    with file.open("rb") as stream:
        values: Mapping[str, Any] = read_table(stream, file.stat().st_size).values
    wanted = values.get("tokenizer.ggml.add_bos_token", values.get("tokenizer.ggml.model") == "llama")
    number = values.get("tokenizer.ggml.bos_token_id", tokenizer.bos_token_id)
    return [number] if wanted and isinstance(number, int) else []
