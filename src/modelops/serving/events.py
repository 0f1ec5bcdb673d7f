"""What the scheduler is told (events) and what it wants done (effects): plain values, compared in tests as they are.

A *ticket* is one call that waits for an answer: a request for a slot, a load, a swap, or an unload. A request's granted
ticket holds its slot until `Close`. An *engine* is a number, never reused, that the scheduler gives to each start.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from modelops.api.errors import ModelOpsError
from modelops.serving.placement import Layout, Wants


@dataclass(frozen=True)
class Residency:
    """How long a model stays. `keep_alive_s` counts from the end of its last request; None: until memory is needed.

    A pinned model is never evicted, and no keep-alive ends it.
    """

    keep_alive_s: float | None = None
    pinned: bool = False


@dataclass(frozen=True)
class Share:
    """Whose request it is, and how much of a full machine is that caller's compared with others: twice the weight is
    twice the tokens. Weights are above 0.

    `quiet`: it only looks whether the model answers. Nobody waits for it, so nothing stands still for it.
    """

    caller: str = ""
    weight: float = 1.0
    quiet: bool = False


#: Of requests whose caller is nobody in particular.
ANYBODY = Share()


@dataclass(frozen=True)
class Usage:
    """Tokens that a request took; 0 where that is not known."""

    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def total(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.answer_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.answer_tokens + other.answer_tokens)


@dataclass(frozen=True)
class Outcome:
    """What became of a request, as far as it tells about the engine: it answered, or failed; unknown where its caller
    left, was wrong, or had no more time. `reason` is of a failure: other callers may read it."""

    kind: Literal["answered", "failed", "unknown"] = "unknown"
    reason: str = ""


@dataclass(frozen=True)
class Candidate:
    """What the next engine of a model will be: its memory, its slots, the seconds that loading it takes.

    `build` is the pool's number for the rest: which version, run how. Two of the same `recipe` are that alike: what one
    failed at, the other would too.
    """

    build: int
    wants: Wants
    slots: int
    reload_s: float = 1.0
    recipe: Hashable = None


@dataclass(frozen=True)
class Room:
    """What the machine shows. `free`: bytes on each device, in the order of the GPUs' numbers. `taken`: what engines
    hold of it already, for those whose memory the machine shows; the rest of their reservations is still to come.
    `most`: bytes that would be free on each device if no program held any, where that is known."""

    free: Mapping[str, int]
    taken: Mapping[int, Mapping[str, int]]
    most: Mapping[str, int] = field(default_factory=dict)


NO_ROOM = Room({}, {})


# --- events ---
@dataclass(frozen=True)
class Register:
    """The next engine of `model` will be this."""

    model: str
    candidate: Candidate
    residency: Residency = Residency()


@dataclass(frozen=True)
class Ask:
    """A request wants a slot; when it has ended, its own keep-alive holds, where it brought one.

    `prompt_bytes`: of its text in UTF-8; `answer_tokens`: the most that its answer may have.
    """

    ticket: int
    model: str
    residency: Residency | None = None
    share: Share = ANYBODY
    prompt_bytes: int = 0
    answer_tokens: int = 0


@dataclass(frozen=True)
class Load:
    """A caller wants the model loaded."""

    ticket: int
    model: str


@dataclass(frozen=True)
class Swap:
    """A caller wants the loaded model served by another engine: started beside the present one, or after it."""

    ticket: int
    model: str
    candidate: Candidate
    residency: Residency = Residency()
    drain_first: bool = False


@dataclass(frozen=True)
class Unload:
    """A caller wants the model unloaded."""

    ticket: int
    model: str
    force: bool


@dataclass(frozen=True)
class Close:
    """The ticket's caller is done, or gone. Of a request: what became of it, and what it took."""

    ticket: int
    model: str
    outcome: Outcome = Outcome()
    usage: Usage = Usage()


@dataclass(frozen=True)
class Loaded:
    """The engine answers; it takes `memory` bytes on each device."""

    model: str
    engine: int
    memory: Mapping[str, int]


@dataclass(frozen=True)
class Grown:
    """The engine was looked at while it serves; it takes `memory` bytes on each device."""

    model: str
    engine: int
    memory: Mapping[str, int]


@dataclass(frozen=True)
class LoadFailed:
    """The engine did not come up, and nothing of it is left."""

    model: str
    engine: int
    error: ModelOpsError


@dataclass(frozen=True)
class Exited:
    """An engine that served ended by itself."""

    model: str
    engine: int
    reason: str


@dataclass(frozen=True)
class Stopped:
    """The engine that was to be stopped is gone, and the devices show its memory free."""

    model: str
    engine: int


@dataclass(frozen=True)
class RestartDue:
    """The pause before a restart is over."""

    model: str


@dataclass(frozen=True)
class IdleDue:
    """The model's keep-alive may be over."""

    model: str


@dataclass(frozen=True)
class Keep:
    """From now on these models, and no others, are kept: none is evicted, but for one that is kept with a higher
    number, and no keep-alive ends it. Names may be of models that are not known yet."""

    names: Mapping[str, int]


@dataclass(frozen=True)
class Look:
    """The machine may have more room than before, though no engine has given any back."""


@dataclass(frozen=True)
class Drain:
    """From now on only what has been accepted is finished."""


#: Another model needs its memory, its keep-alive is over, somebody asked for it, another engine took its place, or it
#: ended by itself.
StopReason = Literal["memory", "keep_alive", "requested", "replaced", "crashed"]
Event = (
    Register
    | Ask
    | Load
    | Swap
    | Unload
    | Close
    | Loaded
    | Grown
    | LoadFailed
    | Exited
    | Stopped
    | RestartDue
    | IdleDue
    | Keep
    | Look
    | Drain
)
#: Events after which a load may begin: they need to know what room there is.
BEGINNERS = (Ask, Load, Swap, Stopped, RestartDue, Exited)


# --- effects ---
@dataclass(frozen=True)
class Grant:
    """The ticket's call may go on: it has a slot of `engine`, or what it asked for is done."""

    ticket: int
    engine: int = 0


@dataclass(frozen=True)
class Refuse:
    """The ticket's call ends with this error."""

    ticket: int
    error: ModelOpsError


@dataclass(frozen=True)
class Revoke:
    """The slot that was granted is taken away, with this error."""

    ticket: int
    error: ModelOpsError


@dataclass(frozen=True)
class Start:
    """Start the candidate `build` as `engine`, laid out so; answer with Loaded or LoadFailed."""

    model: str
    engine: int
    build: int
    layout: Layout


@dataclass(frozen=True)
class Stop:
    """Stop the engine, or its start; answer with Stopped. `why` is for people, `reason` for those who count."""

    model: str
    engine: int
    why: str
    reason: StopReason


@dataclass(frozen=True)
class Wake:
    """Send `event` after `seconds`; it replaces an earlier one of its kind for the model."""

    event: RestartDue | IdleDue
    seconds: float


@dataclass(frozen=True)
class Residents:
    """The model is wanted from now on, or not any more: what a restart has to bring back."""

    model: str
    wanted: bool


Effect = Grant | Refuse | Revoke | Start | Stop | Wake | Residents
