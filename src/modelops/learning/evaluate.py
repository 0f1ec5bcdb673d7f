"""Judges a model by rows: asks as many of them at once as it takes, and adds up how good the answers are.

Decides neither who is asked, nor what follows from the scores.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

from modelops.api.errors import InvalidRequest, Overloaded
from modelops.api.learning import EvaluateParameters, Metric
from modelops.learning import scoring
from modelops.learning.asking import Asker
from modelops.learning.datasets import Example

log = logging.getLogger(__name__)

#: Rows that wait beside those that are answered: a slot that becomes free has its next one at once.
_WAITING = 2
#: Wait where it is not said how long to.
_RETRY_S = 1.0
#: Lines at fault that are named.
_NAMED = 20
_Result = TypeVar("_Result")
_Part = Literal["answer", "likelihood"]


@dataclass(frozen=True)
class Judged:
    """One row: what was answered (empty where nothing was asked), how good that is, and the sum of the natural
    log-probabilities of the `scored` tokens that its perplexity is made of."""

    line: int
    answer: str = ""
    tokens: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    logprob: float = 0.0
    scored: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What all rows add up to. `scores` are means, the perplexity that of all tokens together; `tokens` those of the
    answers; `judged` is in the order of the rows, and has only those that could be judged, which `rows` counts."""

    scores: Mapping[str, float]
    rows: int
    tokens: int
    seconds: float
    judged: tuple[Judged, ...]


def check(rows: Sequence[Example], parameters: EvaluateParameters) -> None:
    """Whether the metrics can judge any of the rows. Raises InvalidRequest."""
    if next(_parts(rows, parameters), None) is None:
        raise InvalidRequest("rows with nothing but text are judged by their perplexity; add it to the metrics")


def judgeable(rows: Sequence[Example], parameters: EvaluateParameters) -> int:
    """How many of the rows the metrics can judge."""
    return len({number for number, _ in _parts(rows, parameters)})


async def evaluate(
    rows: Sequence[Example],
    parameters: EvaluateParameters,
    asker: Asker,
    progress: Callable[[int, int], None],
    *,
    patience_s: float = 600.0,
) -> Evaluation:
    """Ask each row, and judge the answers. Rows with nothing but text have a perplexity, and nothing else.

    `progress` is called with how much of all that is asked has been answered: a row counts twice where its perplexity
    is wanted, too. Who is Overloaded is asked again when it says, unless nobody has been answered for `patience_s`; any
    other error ends it. Nothing is asked any more when this returns, or raises ModelOpsError; that is InvalidRequest
    with their lines, before anything is asked, where rows are longer than the model's context.
    """
    check(rows, parameters)
    began = time.perf_counter()
    judging = _Judging(rows, parameters, asker, progress, patience_s)
    await judging.look()
    try:
        async with asyncio.TaskGroup() as group:
            judging.begin(group)
    except ExceptionGroup as failures:  # what happened first; the others ended because of it
        raise failures.exceptions[0] from None
    judged = tuple(judging.found[number] for number in sorted(judging.found))
    scores = scoring.aggregate(
        {name: score for name, score in row.scores.items() if name != "perplexity"} for row in judged
    )
    if scored := sum(row.scored for row in judged):
        scores["perplexity"] = scoring.perplexity(math.fsum(row.logprob for row in judged), scored)
    tokens = sum(row.tokens for row in judged)
    return Evaluation(scores, len(judged), tokens, time.perf_counter() - began, judged)


def compared(metrics: Sequence[Metric], before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """By metric, what became of each row that both could judge by it, and whether the later one loses."""
    earlier = {row.line: row for row in before.judged}
    found: dict[str, dict[str, Any]] = {}
    for metric in metrics:
        pairs = [(earlier[row.line], row) for row in after.judged if row.line in earlier]
        pairs = [pair for pair in pairs if all(metric in row.scores for row in pair)]
        if pairs:
            one, other = ([_better(metric, row) for row in rows] for rows in zip(*pairs, strict=True))
            found[metric] = asdict(scoring.paired(metric, one, other))
    return found


def _better(metric: Metric, row: Judged) -> float:
    """A number of which more is better; a long row's perplexity counts for as much as its tokens."""
    return row.logprob if metric == "perplexity" else row.scores[metric]


def _parts(rows: Sequence[Example], parameters: EvaluateParameters) -> Iterator[tuple[int, _Part]]:
    """What is asked of which rows. First all answers: what gives probabilities is not done beside them."""
    if any(metric in scoring.ANSWERS for metric in parameters.metrics):
        yield from ((number, "answer") for number, row in enumerate(rows) if row.answer)
    if "perplexity" in parameters.metrics:
        yield from ((number, "likelihood") for number in range(len(rows)))


def _bytes(row: Example) -> int:
    return sum(len(text.encode()) for text in (*(turn["content"] for turn in row.turns), row.answer, row.text))


@contextlib.contextmanager
def _naming(row: Example) -> Iterator[None]:
    """What is wrong with a row is said with its line."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"line {row.line}: {error.message}", details=error.details) from None


def _lines(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:_NAMED]))}{more}"


class _Judging:
    """One evaluation: workers, of which each asks the next row that nobody has asked."""

    def __init__(
        self,
        rows: Sequence[Example],
        parameters: EvaluateParameters,
        asker: Asker,
        progress: Callable[[int, int], None],
        patience_s: float,
    ) -> None:
        self.found: dict[int, Judged] = {}
        self._rows = rows
        self._parameters = parameters
        self._asker = asker
        self._progress = progress
        self._patience_s = patience_s
        self._left = _parts(rows, parameters)
        self._total = sum(1 for _ in _parts(rows, parameters))
        self._done = 0
        self._workers = 0
        self._loop = asyncio.get_running_loop()
        self._answered_at = self._loop.time()

    async def look(self) -> None:
        """Tell how much there is, and whether all of it can be asked. Raises InvalidRequest."""
        self._progress(0, self._total)
        context = await self._patiently(self._asker.context)
        too_long = []
        for row in self._rows:
            # A token has a byte at least. The other half is for what the model says before: counting takes its time.
            if _bytes(row) + len(self._parameters.system.encode()) > context // 2:
                with _naming(row):
                    tokens = await self._patiently(partial(self._asker.tokens, row, self._parameters))
                if tokens > context:
                    too_long.append(row.line)
        if too_long:
            raise InvalidRequest(
                f"{_lines(too_long)}: longer than the context of {context} tokens that the model is served with; "
                "shorten them, or serve it with a longer context_length",
                details={"limit": "context_length"},
            )

    def begin(self, group: asyncio.TaskGroup) -> None:
        """Begin to ask."""
        self._staff(group)

    def _staff(self, group: asyncio.TaskGroup) -> None:
        """As many workers as have something to do: a model has no slots before it is loaded, and may come to others."""
        wanted = min(self._asker.slots + _WAITING, self._total - self._done)
        while self._workers < wanted:
            self._workers += 1
            group.create_task(self._work(group), name=f"evaluate {self._workers}")

    async def _work(self, group: asyncio.TaskGroup) -> None:
        for number, part in self._left:
            row = self._rows[number]
            with _naming(row):
                if part == "answer":
                    await self._answer(number, row)
                else:
                    await self._likelihood(number, row)
            self._done += 1
            self._progress(self._done, self._total)
            self._staff(group)

    async def _answer(self, number: int, row: Example) -> None:
        answer = await self._patiently(partial(self._asker.answer, row, self._parameters))
        scores: dict[str, float] = {}
        for metric in self._parameters.metrics:
            if score := scoring.ANSWERS.get(metric):
                scores[metric] = score(answer.text, row.answer)
        self._note(number, scores, answer=answer.text, tokens=answer.tokens)

    async def _likelihood(self, number: int, row: Example) -> None:
        logprob, scored = await self._patiently(partial(self._asker.likelihood, row, self._parameters))
        scores = {"perplexity": scoring.perplexity(logprob, scored)} if scored else {}
        self._note(number, scores, logprob=logprob, scored=scored)

    def _note(self, number: int, scores: Mapping[str, float], **more: Any) -> None:
        known = self.found.get(number, Judged(self._rows[number].line))
        self.found[number] = replace(known, scores={**known.scores, **scores}, **more)

    async def _patiently(self, ask: Callable[[], Awaitable[_Result]]) -> _Result:
        while True:
            try:
                result = await ask()
            except Overloaded as error:
                if error.reason == "draining" or self._loop.time() - self._answered_at > self._patience_s:
                    raise
                log.info("rows wait: %s", error)
                await asyncio.sleep(_RETRY_S if error.retry_after_s is None else error.retry_after_s)
            else:
                self._answered_at = self._loop.time()
                return result
