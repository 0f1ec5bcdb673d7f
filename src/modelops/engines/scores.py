"""What a model makes of a given text: its tokens, and how probable each of them is to it.

llama.cpp's server says that of the token which it has chosen, as the model itself sees it: before any bias and before
sampling. So each token in turn is made the only choice. What comes before it is in the engine's cache, so that a token
costs one step. It says nothing of one that ends within a character; such are looked up among those that are not chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelops.api.errors import EngineFailed

#: Single precision has no smaller probability than that of which this is the logarithm; the engine says 0.
LEAST = -104.0
#: More than any two logits differ by: what is added to that of the token which is to be chosen.
_FORCED = 10_000.0
_SOME, _ALL = 256, 1 << 30  # of the most probable tokens

Ask = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class TokenScore:
    """The natural logarithm of a token's probability, given those before it, and at least LEAST; `best` is the most
    probable token there."""

    logprob: float
    best: int
    best_logprob: float


class Scorer:
    """Asks one engine, a token at a time and so many texts at once as it has slots."""

    def __init__(self, ask: Ask, slots: int) -> None:
        self._ask = ask
        # A text stays in its slot. Where the engine chooses, texts with a common beginning take each other's, and each
        # token costs the whole text again: four times as long on four slots.
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(slots):
            self._free.put_nowait(slot)

    async def tokenize(self, text: str, special: bool) -> list[int]:
        """See `Engine.tokenize`. Raises ValueError, KeyError and TypeError where the engine's answer makes no sense."""
        asked = {"content": text, "add_special": special, "parse_special": special}
        return [int(token) for token in (await self._ask("/tokenize", asked))["tokens"]]

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See `Engine.render`. Raises as `tokenize`."""
        return str((await self._ask("/apply-template", {"messages": [*messages]}))["prompt"])

    async def score(
        self, prompt: Sequence[int], answer: Sequence[int], lora: list[dict[str, float]] | None
    ) -> list[TokenScore]:
        """See `Engine.score`; `lora` is what the engine is told of its adapters. Raises as `tokenize`."""
        if not prompt:
            raise AssertionError("nothing is probable before the first token")
        body: dict[str, Any] = {"n_predict": 1, "n_probs": 1, "temperature": 0, "cache_prompt": True}
        if lora is not None:
            body["lora"] = lora
        tokens = [*prompt]
        scores = []
        body["id_slot"] = await self._free.get()
        try:
            for token in answer:
                scores.append(await self._one({**body, "prompt": tokens}, token))
                tokens.append(token)
        finally:
            self._free.put_nowait(body["id_slot"])
        return scores

    async def _one(self, body: dict[str, Any], token: int) -> TokenScore:
        told = await self._ask("/completion", {**body, "logit_bias": [[token, _FORCED]]})
        if "completion_probabilities" in told:
            return _score(told["completion_probabilities"][0], token)
        whole = (await self.tokenize("a", special=False))[-1]
        for others in (_SOME, _ALL):
            told = await self._ask("/completion", {**body, "n_probs": others, "logit_bias": [[whole, _FORCED]]})
            chosen = told["completion_probabilities"][0]
            if found := [other for other in chosen["top_logprobs"] if other["id"] == token]:
                return _score({**found[0], "top_logprobs": chosen["top_logprobs"]}, token)
        raise ValueError("an engine that knows all tokens but one")


def _score(chosen: Mapping[str, Any], token: int) -> TokenScore:
    best = chosen["top_logprobs"][0]
    found = [max(LEAST, float(each["logprob"] or 0.0)) for each in (chosen, best)]
    # Of weights that are no numbers it chooses whatever it likes, and says nothing or 0.
    if chosen["id"] != token or found[0] > found[1] or chosen["logprob"] is None:
        raise EngineFailed("the model gives its next token no probability: its weights, or its adapter's, are damaged")
    return TokenScore(found[0], int(best["id"]), found[1])
