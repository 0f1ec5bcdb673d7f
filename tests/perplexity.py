"""How well a model predicts a text, measured in the engine that serves it."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from modelops.engines.base import EngineSpec
from modelops.engines.http import request
from modelops.engines.llama_cpp import Engine

Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]

_LONGEST_ANSWER = 4 << 20

#: Plain prose on several things. Rounding moves the prediction of one token by some 10 % either way, so that it takes
#: hundreds of them to tell a difference of 2 % in the mean.
TEXTS = (
    "Water is a small molecule, but it behaves in ways that surprise us. When it freezes, it becomes lighter, so ice "
    "floats on the surface of a lake and keeps the water below it warm enough for fish to live through the winter. "
    "When it boils, it takes up a great deal of heat, and this heat is given back when the steam turns into drops "
    "again. Plants draw water from the soil through their roots and lose most of it through their leaves. On a hot day "
    "a large tree may give several hundred litres to the air. Clouds form where this moist air rises and cools. The "
    "drops in a cloud are so small that they fall very slowly, and only when many of them have come together do they "
    "reach the ground as rain. Part of the rain runs into rivers and from there to the sea, part of it sinks into the "
    "earth, and part of it evaporates at once, and the journey begins again.",
    "The first bridges were trees that had fallen across a stream. Later people laid flat stones on other stones, and "
    "later still they learned to build an arch, in which every stone is held in its place by the weight of its "
    "neighbours. An arch needs no mortar, and some of those that the Romans built are still in use after two thousand "
    "years. Iron made longer bridges possible, because it can be pulled as well as pushed. In a suspension bridge the "
    "road hangs from two cables, and the cables carry the load to the towers and to the ground behind them. A bridge "
    "must be strong enough for the heaviest traffic, but that is the easier part of the work. It must also stand in "
    "the wind, which pushes it from the side and may set it swinging, and it must have room to grow on a warm day and "
    "to shrink on a cold one.",
    "A good teacher does not begin with the answer. She asks a question that the children can understand, and then she "
    "waits. Some of them will guess, and some of the guesses will be wrong, but a wrong guess is often the beginning "
    "of a good idea. When a child says that heavy things fall faster than light ones, the teacher does not say that "
    "this is false. She takes a sheet of paper and a coin and lets them fall side by side, and everybody can see that "
    "the coin is first. Then she folds the paper into a small ball and lets them fall again. Now they reach the floor "
    "at the same time, and the children begin to talk to each other. They have found out by themselves that it is the "
    "air that holds the paper back, and they will not forget it.",
    "To plant a tree, first dig a hole that is twice as wide as the roots and just as deep. Loosen the soil at the "
    "bottom and at the sides, so that the young roots can find their way. If the ground is dry, fill the hole with "
    "water and wait until it has drained. Set the tree into the middle of the hole and spread its roots. Check that it "
    "stands straight, and that the top of the roots is level with the ground around it. Fill the hole with the soil "
    "that you took out, a little at a time, and press it down gently with your foot. Do not add fertilizer in the "
    "first year. Water the tree slowly and well, once a week, until the end of the summer. Cover the soil around it "
    "with a layer of leaves or bark, which keeps the water in and the weeds out, but leave some space around the "
    "trunk.",
    "A computer stores everything as numbers, and it stores every number as a row of switches that are either on or "
    "off. One switch is called a bit, and eight of them are called a byte. A byte can hold any of the numbers from 0 "
    "to 255, which is enough for a letter of the English alphabet. A picture is stored as a table of small squares, "
    "and the color of each square is stored as three numbers: one for red, one for green, and one for blue. A sound is "
    "stored as a list of numbers too. Each of them says how strong the pressure of the air was at a certain moment, "
    "and there are more than forty thousand of them for every second. When the list is played, a loudspeaker moves the "
    "air in the same way, and we hear the sound again.",
)


@asynccontextmanager
async def engine(file: Path, folder: Path) -> AsyncIterator[Ask]:
    """The real engine with the model `file`, one slot and one thread; its socket is in `folder`."""
    spec = EngineSpec(
        model_name=file.stem,
        file=file,
        executable="",
        slots=1,
        context_length=512,
        threads=1,
        batch_size=64,
        cache_ram_mb=0,
        gpu_layers=-1,
        load_timeout_s=60.0,
        stop_timeout_s=2.0,
    )
    socket = folder / "e.sock"
    running = Engine(spec, socket)

    async def ask(path: str, body: dict[str, Any]) -> Any:
        async with request(socket, "POST", path, running._key, json.dumps(body).encode()) as answer:
            content = await answer.read_all(_LONGEST_ANSWER)
            assert answer.status == 200, content[:1000]
            return json.loads(content)

    await running.start()
    try:
        yield ask
    finally:
        await running.stop()


async def log_likelihoods(ask: Ask, text: str) -> list[float]:
    """The natural logarithm of the probability of each token of `text`, given those before it; not of the first one.

    llama.cpp tells the probability of the token that it chose, as the model sees it: before any bias and sampling. So
    each token in turn is made the only choice. What comes before it is in the engine's cache, so that a token costs
    one step.
    """
    tokens = (await ask("/tokenize", {"content": text, "add_special": True}))["tokens"]
    found = []
    for index in range(1, len(tokens)):
        body = {
            "prompt": tokens[:index],
            "n_predict": 1,
            "n_probs": 1,
            "temperature": 0,
            "logit_bias": [[tokens[index], 1000]],
            "cache_prompt": True,
        }
        chosen = (await ask("/completion", body))["completion_probabilities"][0]
        assert chosen["id"] == tokens[index]
        found.append(float(chosen["logprob"]))
    return found


async def perplexity(ask: Ask, texts: Sequence[str] = TEXTS) -> float:
    """The inverse of the geometric mean of the probabilities of all tokens of `texts`, each text by itself."""
    found = [value for text in texts for value in await log_likelihoods(ask, text)]
    return math.exp(-math.fsum(found) / len(found))
