"""The messages of goals: what can be wished, within which bounds, and what is told of its pursuit."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from modelops.api.errors import InvalidRequest
from modelops.api.learning import Metric, Priority, parameters_of
from modelops.api.messages import Moment, Name, Object, Request, Response, Text

GoalType = Literal["quality", "serving", "availability"]
GoalStatus = Literal["pending", "active", "completed", "failed", "cancelled"]
GoalEventKind = Literal["state", "step", "progress", "log", "warning"]
#: What the weights of a model may be written as.
Weights = Literal["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "F16", "BF16"]


class QualityObjective(Request):
    """The served model answers held-out rows as well as `target` says. It is fine-tuned until it does."""

    type: Literal["quality"]
    model_name: Name
    train_dataset_path: Text = Field("", max_length=4096, description="A JSONL file under one of the dataset roots.")
    train_dataset: list[dict[str, Any]] | None = Field(None, max_length=100_000, description="The rows, instead.")
    eval_dataset_path: Text = Field("", max_length=4096, description="Held-out rows, by which it is judged.")
    eval_dataset: list[dict[str, Any]] | None = Field(None, max_length=100_000)
    regression_dataset_path: Text = Field("", max_length=4096, description="Rows of other things, not to be lost.")
    regression_dataset: list[dict[str, Any]] | None = Field(None, max_length=100_000)
    metric: Metric = Field("exact_match", description="How held-out and regression rows are judged.")
    target: float = Field(
        gt=0,
        allow_inf_nan=False,
        description="At least this; from 0 to 1. Of perplexity at most this, and above 1.",
    )
    regression_metric: Metric | None = Field(None, description="How regression rows are judged, if otherwise.")
    regression_tolerance: float = Field(
        0.02,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="What the regression rows may lose; of perplexity, the part that it may rise by.",
    )
    max_tokens: int = Field(64, ge=1, le=2048, description="Longest answer to a row, in tokens.")
    parameters: dict[str, Any] = Field({}, description="Of the training, where they are not to be searched for.")
    watch_seconds: float = Field(
        60.0, ge=0, le=86_400, allow_inf_nan=False, description="How long a promoted version is watched."
    )


class Workload(Request):
    """What a model is to serve: described by lengths, or the requests themselves."""

    prompt_tokens: int = Field(512, ge=1, le=131_072, description="Length of a prompt.")
    answer_tokens: int = Field(128, ge=1, le=32_768, description="Length of an answer.")
    concurrency: int = Field(4, ge=1, le=256, description="Requests at once.")
    shared_prefix: float = Field(
        0.0, ge=0, le=1, allow_inf_nan=False, description="Which part of each prompt is the same in all of them."
    )
    requests: list[dict[str, Any]] | None = Field(
        None, min_length=1, max_length=1000, description='{"input_text", "max_tokens"}: real ones, instead of lengths.'
    )


class ServingObjective(Request):
    """The model is served, on this machine, in the settings and the weight format that meet the targets; without any,
    in the fastest there are."""

    type: Literal["serving"]
    model_name: Name
    workload: dict[str, Any] = Field({}, description="prompt_tokens, answer_tokens, concurrency, or requests.")
    p95_latency_ms: float | None = Field(None, gt=0, allow_inf_nan=False, description="Of whole answers, at most.")
    min_tokens_per_second: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="Tokens of all answers together, at least."
    )
    max_memory_mb: int | None = Field(None, ge=1, le=2**31 - 1, description="What the model may take.")
    formats: list[Weights] = Field(
        ["Q8_0", "Q4_0"],
        max_length=7,
        description="Weight formats that may be tried beside the file's own; unless said also BF16, for long prompts.",
    )
    max_perplexity_increase: float = Field(
        0.01, ge=0, le=10, allow_inf_nan=False, description="What another format may lose: 0.01 is one percent."
    )
    text_dataset_path: Text = Field("", max_length=4096, description="Rows that the loss is measured on.")
    text_dataset: list[dict[str, Any]] | None = Field(None, max_length=10_000)
    draft_model_name: Text = Field("", max_length=128, description="A small model that may guess ahead for it.")
    watch_seconds: float = Field(30.0, ge=0, le=86_400, allow_inf_nan=False)

    @property
    def described(self) -> Workload:
        """The workload, typed; it was checked with the objective."""
        try:
            return Workload.parse(self.workload)
        except InvalidRequest as error:
            raise InvalidRequest(f"workload: {error.message}") from None


class AvailabilityObjective(Request):
    """The models are loaded, and answer."""

    type: Literal["availability"]
    models: list[Name] = Field(min_length=1, max_length=64)
    until: Moment | None = Field(None, description="When its time is over; else it ends when it is cancelled.")
    probe_seconds: float = Field(5.0, ge=0.5, le=3600, allow_inf_nan=False, description="Between two probes.")
    probe_timeout_seconds: float = Field(30.0, ge=0.1, le=600, allow_inf_nan=False)


Objective = QualityObjective | ServingObjective | AvailabilityObjective
_OBJECTIVES: dict[GoalType, type[QualityObjective] | type[ServingObjective] | type[AvailabilityObjective]] = {
    "quality": QualityObjective,
    "serving": ServingObjective,
    "availability": AvailabilityObjective,
}


def objective_of(given: dict[str, Any]) -> Objective:
    """The objective, what was not given filled in. Raises InvalidRequest that names each fault."""
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in _OBJECTIVES:
        raise InvalidRequest(f"objective.type: one of {', '.join(_OBJECTIVES)}")
    try:
        objective = _OBJECTIVES[kind].parse(given)
        if isinstance(objective, ServingObjective):
            _ = objective.described
        if isinstance(objective, QualityObjective):
            parameters_of("lora", objective.parameters)
    except InvalidRequest as error:
        raise InvalidRequest(f"objective: {error.message}") from None
    if isinstance(objective, QualityObjective):
        perplexity = objective.metric == "perplexity"
        if (objective.target <= 1) if perplexity else (objective.target > 1):
            allowed = "above 1" if perplexity else "above 0 and at most 1"
            raise InvalidRequest(f"objective: target: of {objective.metric} it is {allowed}")
    return objective


class GoalLimits(Request):
    """What a goal may take; beyond it, it has failed, and says how far it came."""

    max_jobs: int | None = Field(None, ge=0, le=1000, description="Trainings.")
    max_seconds: float | None = Field(None, gt=0, allow_inf_nan=False, description="In which it is active.")


class CreateGoalRequest(Request):
    """An objective to be pursued. Rows are copied: what becomes of their files later changes nothing."""

    title: Name
    description: Text = Field("", max_length=4000)
    priority: Priority = "medium"
    objective: Object
    target_completion: Moment | None = Field(None, description="The goal has failed if it is not completed then.")
    limits: Object = {}
    metadata: Object = {}
    dry_run: bool = Field(False, description="Say how it would be pursued; nothing is created.")


class GoalStep(Response):
    """Something that was done for a goal, and why."""

    number: int
    action: str
    reason: str = ""
    started_at: datetime
    completed_at: datetime | None = None
    arguments: dict[str, Any] = {}
    result: dict[str, Any] = {}
    error_message: str = ""


class GoalPlan(Response):
    """How a goal would be pursued, in words, and what that takes. `seconds` is an estimate; 0: not known."""

    steps: list[str] = []
    rows: int = 0
    eval_rows: int = 0
    regression_rows: int = 0
    max_jobs: int = 0
    seconds: float = 0.0
    memory_mb: int = 0


class Goal(Response):
    """A goal, as it stands."""

    goal_id: str
    title: str
    description: str = ""
    priority: Priority = "medium"
    objective: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    status: GoalStatus
    progress: float = Field(0.0, ge=0, le=1)
    steps: list[GoalStep] = []
    learning_job_ids: list[str] = []
    result: dict[str, Any] = {}
    error_message: str = ""
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    target_completion: datetime | None = None
    metadata: dict[str, Any] = {}
    message: str = Field("", description="What it does or waits for, while it is active.")
    warnings: list[str] = []
    metrics: dict[str, Any] = Field({}, description="What is counted meanwhile, such as probes and answers.")
    attempts: int = Field(0, description="Times that it was begun, or went on after a crash or a restart.")
    plan: GoalPlan | None = None


class ListGoalsRequest(Request):
    """Which goals to list, the newest first. Without a status: those that have not ended."""

    status: Literal[GoalStatus, "all"] | None = None


class GoalList(Response):
    """Goals, the newest first."""

    goals: list[Goal] = []


class GetGoalRequest(Request):
    """Which goal."""

    goal_id: Name


class WatchGoalRequest(Request):
    """What has happened to a goal after the event `after`, and what happens until it ends or the time is up."""

    goal_id: Name
    after: int = Field(0, ge=0, le=2**53 - 1, description="Number of the last event that is known already.")
    follow: bool = Field(True, description="False: only what has happened so far.")


class GoalEvent(Response):
    """Something that happened to a goal. The last one is `done`, and comes with the goal as it is then: it has ended,
    or the time is up.

    `state`: its status changed; `step`: something is done now, and why; `progress`: how far it is; `log`, `warning`:
    what is told of it.
    """

    number: int
    at: datetime
    kind: GoalEventKind
    message: str = ""
    step: str = ""
    metrics: dict[str, Any] = {}
    goal: Goal | None = None
    done: bool = False


class CancelGoalRequest(Request):
    """Which goal to end, and why."""

    goal_id: Name
    reason: Text = Field("", max_length=500)
