"""Measures a way of running a model: a workload is put to an engine of one's own, and timed.

A sample during which requests were answered by the models that serve is thrown away, and made again: the engine stood
still meanwhile. Decides nothing about what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from modelops.api.errors import EngineFailed, ModelOpsError, Overloaded
from modelops.api.goals import Workload
from modelops.api.learning import EvaluateParameters
from modelops.engines.base import Prompt
from modelops.engines.llama_cpp import Engine
from modelops.goals.space import MB, Measured
from modelops.goals.text import WORDS
from modelops.learning import scoring
from modelops.learning.asking import EngineAsker
from modelops.learning.datasets import Example
from modelops.learning.evaluate import evaluate
from modelops.learning.yielding import Yielding
from modelops.tasks import Tasks

#: As callers' requests have it who do not say. At 0 a small model repeats itself, and its tokens are easily guessed.
_TEMPERATURE, _TOP_P = 0.7, 0.9
_LOOKS = 8  # times that a prompt is made longer or shorter until it has the length that is wanted
_WARM_PROMPT, _WARM_ANSWER = 64, 4  # tokens
_LOOK_S = 0.25  # between two looks whether learning jobs are worked on, or requests answered
_PART = 8  # rows of text
_PATIENCE_S = 5.0  # for so long an engine stands still for requests before it is ended

T = TypeVar("T")


class NotAlone(Exception):
    """Learning jobs are worked on, on the same cores; `thrown`: a sample was begun, and is thrown away."""

    def __init__(self, *, thrown: bool) -> None:
        super().__init__("learning jobs are worked on")
        self.thrown = thrown


class NotQuiet(Exception):
    """Requests have been answered for so long that the engine is ended: others may need its memory."""


class NoQuietTime(Overloaded):
    """Requests are answered all the time: whatever was measured beside them would say nothing of the model."""

    def __init__(self, patience_s: float) -> None:
        super().__init__(
            f"requests left no quiet time of its length within {patience_s:g} s; it is measured best when there is "
            "little to do"
        )


@dataclass
class Watched:
    """Gives way as its engine does, and knows whether it had to."""

    engine: Engine
    disturbed: asyncio.Event = field(default_factory=asyncio.Event)
    quiet: asyncio.Event = field(default_factory=asyncio.Event)

    def pause(self) -> None:
        """Stop where it stands."""
        self.disturbed.set()
        self.quiet.clear()
        self.engine.pause()

    def resume(self) -> None:
        """Go on."""
        self.quiet.set()
        self.engine.resume()


@contextlib.contextmanager
def giving_way(engine: Engine, yielding: Yielding) -> Iterator[Watched]:
    """The engine stands still while requests are answered."""
    watched = Watched(engine)
    watched.quiet.set()
    with yielding.giving_way(watched):
        yield watched


async def measure(
    watched: Watched,
    workload: Workload,
    requests: int,
    seed: int,
    *,
    patience_s: float,
    thrown: Callable[[], Awaitable[None]],
    beside: Callable[[], bool] = lambda: False,
) -> Measured:
    """So many requests of the workload, as many at once as it says; other prompts with another `seed`.

    `thrown` is called for each sample that was thrown away; `beside` says whether learning jobs are worked on. Raises
    NotAlone where they are, NoQuietTime where no sample could be made for `patience_s`, EngineBroke and EngineFailed.
    """
    until = asyncio.get_running_loop().time() + patience_s
    tries = 0
    while True:
        if not await _is_quiet(watched, until):
            raise NoQuietTime(patience_s)
        prompts = await prompts_of(watched.engine, workload, requests, f"{seed}/{tries}")
        await _warm_up(watched.engine, workload, f"{seed}/{tries}")
        watched.disturbed.clear()
        if beside():
            raise NotAlone(thrown=False)
        if watched.quiet.is_set() and (made := await _undisturbed(watched, prompts, workload.concurrency, beside)):
            return made
        tries += 1
        await thrown()


async def unless_crowded(watched: Watched, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is at the engine. Raises NotQuiet where that stands still for long."""
    tasks = Tasks("measuring")
    doing = tasks.start("work", work, expected=(ModelOpsError, NotAlone))
    crowded = tasks.start("crowded", _crowded(watched))
    try:
        await asyncio.wait({doing, crowded}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise NotQuiet
        result: T = doing.result()
        return result
    finally:
        await tasks.close()


class Reading:
    """How well a model knows some rows of text, part by part: what was read counts, whatever becomes of the engine."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self._left = rows
        self._logprob, self._tokens = 0.0, 0

    async def go_on(self, watched: Watched) -> None:
        """Read what is left. Raises NotQuiet where the engine stands still for long."""
        parameters = EvaluateParameters(metrics=["perplexity"])
        while part := self._left[:_PART]:
            reading = evaluate(part, parameters, EngineAsker(watched.engine), lambda _done, _total: None)
            found = await unless_crowded(watched, reading)
            self._logprob += math.fsum(row.logprob for row in found.judged)
            self._tokens += sum(row.scored for row in found.judged)
            self._left = self._left[_PART:]

    @property
    def perplexity(self) -> float:
        """That of all that was read."""
        value = scoring.perplexity(self._logprob, self._tokens) if self._tokens else math.nan
        if not math.isfinite(value):
            raise EngineFailed("the model gives the text no probability: its weights are damaged, or there is no text")
        return value


# --- a sample ---
async def _is_quiet(watched: Watched, until: float) -> bool:
    """Wait until no request is answered; False: that has taken too long."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(until):
            await watched.quiet.wait()
    return watched.quiet.is_set() and loop.time() < until


async def _crowded(watched: Watched) -> None:
    """Wait until requests have been answered for long without a pause."""
    while True:
        if not await _is_quiet(watched, asyncio.get_running_loop().time() + _PATIENCE_S):
            return
        await asyncio.sleep(_LOOK_S)


async def _undisturbed(
    watched: Watched, prompts: Sequence[Prompt], at_once: int, beside: Callable[[], bool]
) -> Measured | None:
    """A sample; None where requests were answered meanwhile. It is not waited for then. Raises NotAlone."""
    tasks = Tasks("measurement")
    sample = tasks.start("sample", _sample(watched.engine, prompts, at_once), expected=(EngineFailed,))
    disturbed = tasks.start("watch", watched.disturbed.wait())
    learning = tasks.start("learning", _until(beside))
    try:
        await asyncio.wait({sample, disturbed, learning}, return_when=asyncio.FIRST_COMPLETED)
        if learning.done() or beside():
            raise NotAlone(thrown=True)
        return None if watched.disturbed.is_set() else sample.result()
    finally:
        await tasks.close()


async def _until(beside: Callable[[], bool]) -> None:
    """Wait until learning jobs are worked on."""
    while True:  # nobody tells when one begins
        if beside():
            return
        await asyncio.sleep(_LOOK_S)


async def _sample(engine: Engine, prompts: Sequence[Prompt], at_once: int) -> Measured:
    left, took, told, read = iter(prompts), list[float](), 0, 0

    async def ask() -> None:
        nonlocal told, read
        for prompt in left:
            began = time.perf_counter()
            tokens, processed = await _ask(engine, prompt)
            took.append(time.perf_counter() - began)
            told += tokens
            read += processed

    began = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, len(prompts))):
                group.create_task(ask())
    except ExceptionGroup as failures:  # what happened first; the others ended because of it
        raise failures.exceptions[0] from None
    seconds = time.perf_counter() - began
    return Measured(
        requests_per_second=len(took) / seconds,
        tokens_per_second=told / seconds,
        prompt_tokens_per_second=read / seconds,
        p95_latency_ms=1000 * sorted(took)[math.ceil(0.95 * len(took)) - 1],
        memory_mb=engine.memory_bytes() / MB,
        requests=len(took),
        seconds=seconds,
    )


async def _ask(engine: Engine, prompt: Prompt) -> tuple[int, int]:
    """Tokens of the answer, and of the prompt."""
    tokens = read = 0
    async with contextlib.aclosing(engine.generate(prompt)) as pieces:
        async for piece in pieces:
            tokens = tokens if piece.tokens is None else piece.tokens
            read = piece.prompt_tokens or read
    return tokens, read


async def _warm_up(engine: Engine, workload: Workload, seed: str) -> None:
    """Let it touch its weights, and end what it was asked before."""
    count = workload.concurrency
    if workload.requests:
        real = replace(_real(workload, 0), max_tokens=_WARM_ANSWER, options={"cache_prompt": False})
        await _sample(engine, [real] * count, count)
        return
    short = workload.model_copy(
        update={
            "prompt_tokens": min(workload.prompt_tokens, _WARM_PROMPT),
            "answer_tokens": min(workload.answer_tokens, _WARM_ANSWER),
            "shared_prefix": 0.0,
        }
    )
    await _sample(engine, await prompts_of(engine, short, count, f"warm {seed}"), count)


# --- its requests ---
async def prompts_of(engine: Engine, workload: Workload, count: int, seed: str) -> list[Prompt]:
    """So many requests of the workload. Of described ones each prompt is another, from its first word on, but for what
    is the same in all: so nothing is found in the engine's caches that would not be there either in real use."""
    if workload.requests:
        return [_real(workload, number) for number in range(count)]
    shared = round(workload.prompt_tokens * workload.shared_prefix)
    prefix = await _text(engine, random.Random("the same in all"), shared) if shared else ""  # noqa: S311
    chance = random.Random(seed)  # noqa: S311
    options = {"ignore_eos": True, "n_predict": workload.answer_tokens}
    found = []
    for number in range(count):
        own = await _text(engine, chance, workload.prompt_tokens - shared)
        found.append(
            Prompt(
                text=" ".join(filter(None, (prefix, own))),
                system="",
                raw=True,
                max_tokens=workload.answer_tokens,
                temperature=_TEMPERATURE,
                top_p=_TOP_P,
                stop=(),
                seed=number,
                options=options,
            )
        )
    return found


def _real(workload: Workload, number: int) -> Prompt:
    """One of the requests that were given, which are asked again and again; the same again is computed again."""
    requests = workload.requests or []
    given = requests[number % len(requests)]
    return Prompt(
        text=str(given["input_text"]),
        system="",
        raw=False,
        max_tokens=int(given.get("max_tokens") or workload.answer_tokens),
        temperature=_TEMPERATURE,
        top_p=_TOP_P,
        stop=(),
        seed=number,
        options={} if number < len(requests) else {"cache_prompt": False},
    )


async def _text(engine: Engine, chance: random.Random, tokens: int) -> str:
    """Common words that are about so many tokens: as near as whole words come to it."""
    words = [chance.choice(WORDS) for _ in range(max(1, tokens))]
    per_word = 1.0
    for _ in range(_LOOKS):
        count = len(await engine.tokenize(" ".join(words), special=False))
        per_word = max(count / len(words), 0.1)
        more = int((tokens - count) / per_word)
        if more > 0:
            words += [chance.choice(WORDS) for _ in range(more)]
        elif more < 0:
            del words[max(1, len(words) + more) :]
        else:
            break
    return " ".join(words)
