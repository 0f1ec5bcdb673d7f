"""Asks an engine for what the trainer has computed as well: the other half of the parity gate."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from modelops.engines.llama_cpp import Engine

#: What an engine may keep of its context for itself.
_SPARE = 16


def context_length(reference: Mapping[str, Any]) -> int:
    """How many tokens a slot of the engine has to have room for."""
    sequences = [len(each["prompt"]) + len(each["answer"]) for each in reference["sequences"]]
    return max([*sequences, *(len(each["tokens"]) for each in reference["rows"])]) + _SPARE


async def measure(engine: Engine, reference: Mapping[str, Any], adapter: int | None) -> dict[str, Any]:
    """What `engine` says of the reference's sequences with that of its adapters, and without any; with `adapter` None,
    as of a model that it has been merged into, only what it says.

    `other_tokens` counts the rows of which the engine makes other tokens than the trainer did. Raises as
    `Engine.score`.
    """
    rows = [await _tokens(engine, row) != row["tokens"] for row in reference["rows"]]
    sequences = await asyncio.gather(*(_sequence(engine, each, adapter) for each in reference["sequences"]))
    if adapter is not None:
        bare = await asyncio.gather(*(_sequence(engine, each, None) for each in reference["sequences"]))
        sequences = [
            {**found, "base_logprobs": without["logprobs"]} for found, without in zip(sequences, bare, strict=True)
        ]
    return {"sequences": [*sequences], "other_tokens": sum(rows)}


async def _tokens(engine: Engine, row: Mapping[str, Any]) -> list[int]:
    """What a request of these turns, or of this text, would give the model."""
    text = row["text"] if "text" in row else await engine.render(row["turns"])
    return await engine.tokenize(text, special=True)


async def _sequence(engine: Engine, sequence: Mapping[str, Any], adapter: int | None) -> dict[str, Any]:
    scores = await engine.score(sequence["prompt"], sequence["answer"], adapter)
    return {"logprobs": [score.logprob for score in scores], "best": [score.best for score in scores]}
