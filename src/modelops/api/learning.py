"""The messages of learning jobs, and their parameters: what may be set, within which bounds."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from modelops.api.errors import InvalidRequest
from modelops.api.messages import MODEL_NAME, Name, Object, Request, Response, Text

JobType = Literal["lora", "dpo", "evaluate"]
JobStatus = Literal["pending", "running", "completed", "failed", "cancelled"]
Priority = Literal["low", "medium", "high", "critical"]
#: How answers are compared with what they should be.
Metric = Literal["exact_match", "contains", "f1", "rouge_l", "perplexity"]
EventKind = Literal["state", "step", "progress", "log", "warning"]
#: What a LoRA can be put on; each model has some of them.
Module = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
#: A row of a set. What is wrong with one is told as of a row of a file, by whoever reads both.
Row = Annotated[Any, WithJsonSchema({"type": "object", "additionalProperties": True})]
_Rate = Annotated[float, Field(gt=0, le=1.0, allow_inf_nan=False)]


class EvaluateParameters(Request):
    """How a model's answers to the rows are judged."""

    metrics: list[Metric] = Field(["exact_match"], min_length=1, max_length=5)
    max_tokens: int = Field(64, ge=1, le=2048, description="Longest answer, in tokens.")
    system: Text = Field("", max_length=10_000, description="A system turn for rows that have none.")


class TrainParameters(Request):
    """How a LoRA is trained."""

    epochs: float = Field(3.0, gt=0, le=1000, allow_inf_nan=False, description="Times that each row is seen.")
    steps: int = Field(0, ge=0, le=1_000_000, description="Steps of the optimiser; 0: as many as `epochs` say.")
    batch_size: int = Field(8, ge=1, le=1024, description="Rows of one step.")
    learning_rate: _Rate = Field(5e-4, description="At its highest, after the warm-up.")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="How the learning rate falls.")
    warmup: float = Field(0.05, ge=0, lt=1, allow_inf_nan=False, description="Part of the steps in which it rises.")
    weight_decay: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    max_grad_norm: float = Field(1.0, gt=0, le=1000, allow_inf_nan=False, description="Longer gradients are cut.")
    rank: int = Field(16, ge=1, le=512, description="Rank of the LoRA.")
    alpha: float = Field(32.0, gt=0, le=4096, allow_inf_nan=False, description="Its scale is alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, allow_inf_nan=False)
    target_modules: list[Module] = Field([], max_length=7, description="What it is put on; empty: all linear layers.")
    max_length: int = Field(512, ge=16, le=131_072, description="Longest row, in tokens.")
    over_length: Literal["refuse", "drop"] = Field("refuse", description="What becomes of rows that are longer.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="The same seed gives the same weights on the same machine.")
    checkpoint_steps: int = Field(25, ge=1, le=100_000, description="Steps between two checkpoints.")
    weights: Literal["Q8_0", "F16"] = Field(
        "Q8_0", description="What the whole model is written as, where one is published instead of an adapter."
    )
    evaluation: EvaluateParameters = Field(
        EvaluateParameters(), description="How the held-out and the regression rows are judged, before and after."
    )


class LoraParameters(TrainParameters):
    """Of a job of type `lora`: supervised, with the loss on the answers only."""


class DpoParameters(TrainParameters):
    """Of a job of type `dpo`: answers that are preferred to others."""

    learning_rate: _Rate = Field(5e-5, description="At its highest, after the warm-up.")
    beta: float = Field(0.1, gt=0, le=10, allow_inf_nan=False, description="How near it stays to the base.")


Parameters = LoraParameters | DpoParameters | EvaluateParameters
_PARAMETERS: dict[JobType, type[LoraParameters] | type[DpoParameters] | type[EvaluateParameters]] = {
    "lora": LoraParameters,
    "dpo": DpoParameters,
    "evaluate": EvaluateParameters,
}
#: What PEFT knows, and a GGUF adapter cannot hold.
_NOT_HELD = ("use_dora", "bias", "modules_to_save", "rank_pattern", "alpha_pattern", "use_rslora", "trainable_tokens")


def parameters_of(job_type: JobType, given: dict[str, Any]) -> Parameters:
    """The parameters of a job, what was not given filled in. Raises InvalidRequest that names each fault."""
    for name in _NOT_HELD:
        if job_type != "evaluate" and name in given:
            raise InvalidRequest(f"parameters.{name}: a GGUF adapter cannot hold that; leave it out")
    nested = given.get("evaluation")
    if job_type != "evaluate" and isinstance(nested, dict):
        try:
            EvaluateParameters.parse(nested)  # by itself: it knows what an unknown name may have meant
        except InvalidRequest as error:
            raise InvalidRequest(f"parameters.evaluation: {error.message}") from None
    try:
        return _PARAMETERS[job_type].parse(given)
    except InvalidRequest as error:
        raise InvalidRequest(f"parameters: {error.message}") from None


class CreateJobRequest(Request):
    """A learning job to be run. Its rows are copied: what becomes of the file later changes nothing."""

    job_type: JobType
    model_name: Name
    dataset_path: Text = Field("", max_length=4096, description="A JSONL file under one of the dataset roots.")
    dataset: list[Row] | None = Field(None, max_length=100_000, description="The rows, instead of a file.")
    eval_dataset_path: Text = Field("", max_length=4096, description="Held-out rows: how good it has become.")
    eval_dataset: list[Row] | None = Field(None, max_length=100_000)
    regression_dataset_path: Text = Field("", max_length=4096, description="Rows of other things: what it has lost.")
    regression_dataset: list[Row] | None = Field(None, max_length=100_000)
    parameters: Object = {}
    output_model_name: Text = Field(
        "",
        max_length=128,
        pattern=rf"^({MODEL_NAME})?$",
        description="MODEL:NAME publishes an adapter, which the model's own engine serves under that name; any other "
        "name a whole model; empty: a whole model, as the next version of `model_name`.",
    )
    priority: Priority = "medium"
    dry_run: bool = Field(False, description="Say what it would take; nothing is created.")


class JobPlan(Response):
    """What a job would take. `tokens` and `seconds` are estimates."""

    rows: int = 0
    eval_rows: int = 0
    regression_rows: int = 0
    tokens: int = Field(0, description="Of all rows once.")
    steps: int = 0
    memory_mb: int = 0
    disk_mb: int = 0
    seconds: float = 0.0
    device: str = "cpu"


class LearningJob(Response):
    """A learning job, as it stands."""

    job_id: str
    job_type: JobType
    model_name: str
    status: JobStatus
    progress: float = Field(0.0, ge=0, le=1)
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    parameters: dict[str, Any] = {}
    metrics: dict[str, Any] = Field(
        {}, description="step, total_steps, train_loss, eval_loss, tokens_per_second, eta_seconds, as they apply."
    )
    result: dict[str, Any] = {}
    error_message: str = ""
    step: str = Field(
        "",
        description="What it does now, or did when it failed or was cancelled: validate, prepare, train, convert, "
        "parity, evaluate, publish.",
    )
    paused: bool = Field(False, description="It waits while requests are being answered.")
    output_model_name: str = ""
    priority: Priority = "medium"
    attempts: int = Field(0, description="Times that it was begun, or went on after a crash or a restart.")
    warnings: list[str] = Field(
        [], description="What its result may suffer from, as far as it is known: also what the training has warned of."
    )
    message: str = Field("", description="Why it waits, where it does.")
    plan: JobPlan | None = None


class ListJobsRequest(Request):
    """Which jobs to list, the newest first."""

    status: JobStatus | None = None


class JobList(Response):
    """Learning jobs, the newest first."""

    jobs: list[LearningJob] = []


class GetJobRequest(Request):
    """Which job."""

    job_id: Name


class WatchJobRequest(Request):
    """What has happened to a job after the event `after`, and what happens until it ends or the time is up."""

    job_id: Name
    after: int = Field(0, ge=0, le=2**53 - 1, description="Number of the last event that is known already.")
    follow: bool = Field(True, description="False: only what has happened so far.")


class JobEvent(Response):
    """Something that happened to a job. The last one is `done`, and comes with the job as it is then: it has ended, or
    the time is up.

    `state`: it has ended; `step`: it does another thing now, the first of them when it begins, or begins again;
    `progress`: `metrics` of one step of training, or rows judged so far; `log`, `warning`: what is told of it.
    """

    number: int
    at: datetime
    kind: EventKind
    message: str = ""
    step: str = ""
    metrics: dict[str, Any] = {}
    job: LearningJob | None = None
    done: bool = False


class CancelJobRequest(Request):
    """Which job to end, and why. One that has ended already is left, and answered, as it is."""

    job_id: Name
    reason: Text = Field("", max_length=500)
