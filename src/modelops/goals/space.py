"""Ways of running a model, what is measured of them, and which of them are worth measuring. Pure.

First the weight formats are tried, then one setting at a time around the best of them, then what has helped together.
Each of these stages halves its ways from round to round while the rounds grow longer: all are looked at shortly, and
only the good ones for long.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from modelops.api.goals import Weights, Workload
from modelops.engines.base import CacheType, FlashAttention, Speculation

#: Most ways of one stage, the present one not counted; more are left out, the last first.
MOST_WAYS = 16
#: A stage ends with so few ways, after two rounds at least.
_FEW = 2
#: Times as many requests as in the first round: rounds double up to it.
_LONGEST = 4
#: A setting has helped that made the model so much faster; together they are tried.
HELPS = 1.02
MOST_TOGETHER = 5
MB = 2**20
#: A generated token costs about as much as so many of a prompt: answers that are this long matter.
_PROMPT_PER_ANSWER = 10
#: With fewer tokens in it the cache takes little of the memory, and of the time.
_LONG_CONTEXT = 2048
_BATCHES = (64, 128, 256, 512, 2048)
_WORDS = {
    "weights": "weights",
    "slots": "slots",
    "batch_size": "batch size",
    "threads": "threads",
    "flash_attention": "flash attention",
    "cache_type": "cache",
    "speculation": "speculation",
}
_NONE = {"weights": "its own", "flash_attention": "as the engine decides", "speculation": "none"}


@dataclass(frozen=True)
class Way:
    """A way of running a model, every number given. `weights` is what they are rewritten as, "" for the file's own."""

    weights: str = ""
    slots: int = 4
    batch_size: int = 512
    threads: int = 1
    flash_attention: FlashAttention = ""
    cache_type: CacheType = "f16"
    speculation: Speculation = ""

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Way:
        """What `to_json` wrote; what another release wrote and this one does not know is left out."""
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})

    def changes(self, present: Way) -> dict[str, Any]:
        """What it has otherwise than `present`."""
        mine, theirs = asdict(self), asdict(present)
        return {name: value for name, value in mine.items() if value != theirs[name]}

    def words(self, present: Way) -> str:
        """What it has otherwise than `present`, for a person."""
        said = [f"{_WORDS[name]} {value or _NONE[name]}" for name, value in self.changes(present).items()]
        return ", ".join(said) or "as it is"


@dataclass(frozen=True)
class Measured:
    """What a way of running gave: requests, tokens of all answers, and tokens of prompts, each per second; how long the
    slowest of twenty answers took; what its engine held of memory. Of how many requests, in how many seconds."""

    requests_per_second: float
    tokens_per_second: float
    prompt_tokens_per_second: float
    p95_latency_ms: float
    memory_mb: float
    requests: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Measured:
        """What `to_json` wrote."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})

    def words(self) -> str:
        """The figures, for a person."""
        return (
            f"{self.tokens_per_second:.1f} tokens and {self.requests_per_second:.2f} requests per second, "
            f"p95 {self.p95_latency_ms:.0f} ms, {self.memory_mb:.0f} MB"
        )


# --- which ways are worth trying ---
def formats(present: Way, kinds: Iterable[str]) -> tuple[Way, ...]:
    """The present way with other weights."""
    return tuple(replace(present, weights=kind) for kind in dict.fromkeys(kinds) if kind != present.weights)


def smallest(present: Way, kinds: Iterable[str], workload: Workload) -> list[Way]:
    """Ways of which one takes no more memory than any that is tried."""
    slots = min(present.slots, *_slots(workload.concurrency))
    least = replace(present, slots=slots, batch_size=min(present.batch_size, _BATCHES[0]), speculation="")
    ways = [least, *formats(least, kinds)]
    return [*ways, *(replace(way, cache_type="q8_0") for way in ways if present.cache_type == "f16")]


def longer_formats(workload: Workload) -> tuple[Weights, ...]:
    """Formats of more bits than most files have that are worth a look unless somebody says which are: each token of an
    answer reads all weights once more, but of a prompt many share the reading, and only the arithmetic counts."""
    return () if answers_matter(workload) else ("BF16",)


def settings(
    centre: Way, workload: Workload, cores: int, *, cache: bool = False, real: bool = False, draft: bool = False
) -> list[Way]:
    """Ways with one setting otherwise than `centre`, the most promising first; `cache`: other types of the cache have
    been found good enough; `real`: real requests are measured, whose answers can be guessed as those of callers can;
    `draft`: there is a model that guesses ahead."""
    found = [replace(centre, batch_size=size) for size in _batches(centre, workload)]
    found += [replace(centre, slots=count) for count in _slots(workload.concurrency)]
    if real and answers_matter(workload):
        found.append(replace(centre, speculation="ngram"))
        if draft:
            found.append(replace(centre, speculation="draft"))
    found += [replace(centre, threads=count) for count in dict.fromkeys((cores, cores * 3 // 4, cores // 2)) if count]
    found.append(replace(centre, flash_attention="on"))
    if centre.cache_type == "f16":  # a cache in blocks is read by flash attention alone
        found.append(replace(centre, flash_attention="off"))
        if cache and centre.flash_attention != "off":
            found.append(replace(centre, cache_type="q8_0"))
    return [way for way in dict.fromkeys(found) if way != centre][:MOST_WAYS]


def together(centre: Way, ratios: Mapping[Way, float]) -> tuple[Way, ...]:
    """Combinations of the settings that have helped: by `ratios` of how fast each way with one setting otherwise is,
    those of `centre` among them. The best two, the best three, …"""
    least = ratios.get(centre, 1.0) * HELPS
    helped: dict[str, tuple[float, Any]] = {}
    for way, ratio in ratios.items():
        changes = way.changes(centre)
        if len(changes) == 1 and ratio >= least:
            ((name, value),) = changes.items()
            if name not in helped or ratio > helped[name][0]:
                helped[name] = ratio, value
    order = sorted(helped, key=lambda name: (-helped[name][0], name))
    found = []
    for count in range(2, min(len(order), MOST_TOGETHER + 1) + 1):
        way = replace(centre, **{name: helped[name][1] for name in order[:count]})
        if way.cache_type == "f16" or way.flash_attention != "off":
            found.append(way)
    return tuple(found)


def answers_matter(workload: Workload) -> bool:
    """Whether most of the time goes into answers rather than into prompts."""
    return workload.answer_tokens * _PROMPT_PER_ANSWER >= workload.prompt_tokens


def cache_matters(workload: Workload) -> bool:
    """Whether requests are so long that another type of the cache is worth a look."""
    return workload.prompt_tokens + workload.answer_tokens >= _LONG_CONTEXT


def _slots(concurrency: int) -> Iterable[int]:
    """More than there are requests at once only hold memory; fewer let some wait, and the others be faster."""
    return dict.fromkeys((concurrency, max(1, concurrency // 2)))


def _batches(centre: Way, workload: Workload) -> Iterable[int]:
    """Sizes of a step; one that takes the prompts of all slots whole is enough."""
    most = workload.prompt_tokens * min(centre.slots, workload.concurrency)
    enough = next((size for size in _BATCHES if size >= most), _BATCHES[-1])
    return [size for size in _BATCHES if centre.batch_size // 2 <= size <= max(enough, centre.batch_size)]


# --- successive halving ---
def halve(ratios: Sequence[tuple[Way, float]]) -> tuple[Way, ...]:
    """The better half of the ways, in the order that they had; of those that could not be measured, none."""
    good = [(way, ratio) for way, ratio in ratios if ratio > 0]
    order = sorted(range(len(good)), key=lambda number: (-good[number][1], number))
    return tuple(good[number][0] for number in sorted(order[: -(-len(ratios) // 2)]))


def over(ways: int, done: int) -> bool:
    """Whether a stage has ended, after so many rounds, the last of which had so many ways."""
    return ways == 0 or (done >= 2 and ways <= _FEW)


def growth(number: int) -> int:
    """Times as many requests as in the first round there are in the round of that number, from 0 on."""
    return int(min(2**number, _LONGEST))


def measurements(ways: int) -> int:
    """Most measurements of a stage that begins with so many ways: those of the ways, and in each round two of the
    present way and one of that which they vary."""
    total, done, left = 0, 0, min(ways, MOST_WAYS)
    while left and not over(left, done):
        total, done = total + left + 3, done + 1
        if over(left, done):
            break
        left = -(-left // 2)
    return total
