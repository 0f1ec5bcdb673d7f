"""The operations table: every operation once, with its name on each transport.

Transports, documentation and tests are made from this table, so that an operation cannot be forgotten in one of
them. `Operation.name` is the name of the method of `service.Coordinator` that performs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from modelops.api import chat, goals, learning, types
from modelops.api.messages import Request, Response

Scope = Literal["infer", "models", "learning", "goals", "metrics", "admin"]


class Door(Protocol):
    """What somebody may be admitted to."""

    @property
    def name(self) -> str:
        """What callers, the log and the counters call it."""

    @property
    def scope(self) -> Scope | None:
        """What a key needs for it; None: none is needed."""

    @property
    def acts(self) -> bool:
        """Whether it does more than look."""


@dataclass(frozen=True)
class Route:
    """Where REST offers an operation; `query` names the request's fields that stand in the query string, `array` the
    answer's field that is all of it there.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str
    status: int = 200
    query: tuple[str, ...] = ()
    array: str = ""


@dataclass(frozen=True)
class Stream:
    """An answer in chunks, by the coordinator's `method`: always, or where the request says `stream`.

    Where it can be taken up again, chunks have a `number`, and the request's field `after` names the last one that is
    known: over REST they are the events' ids, and `Last-Event-ID` is another way to say it.
    """

    method: str
    chunk: type[Response]
    always: bool = False
    after: str = ""


@dataclass(frozen=True)
class Operation:
    """One thing that a caller can ask for.

    `rpcs` are the gRPC methods that perform it, each with the fields that its name implies; `stream_rpc` is the one
    that answers in chunks. `errors` are the codes, beside those that any call may meet, worth documenting. One that
    `creates` gives its first answer again to whoever repeats it under the same idempotency key. `too_large` is what to
    do about a request that is.
    """

    name: str
    summary: str
    request: type[Request]
    response: type[Response]
    scope: Scope | None
    route: Route
    rpcs: Mapping[str, Mapping[str, Any]]
    action: str
    stream_rpc: str | None = None
    stream: Stream | None = None
    errors: tuple[str, ...] = ()
    tags: tuple[str, ...] = field(default=("models",))
    creates: bool = False
    too_large: str = ""

    @property
    def acts(self) -> bool:
        """Whether it does more than look."""
        return self.route.method != "GET"


@dataclass(frozen=True)
class Page:
    """What REST alone offers, as text: for a program that speaks nothing else."""

    name: str
    summary: str
    scope: Scope
    path: str
    description: str
    content_type: str
    acts = False


METRICS = Page(
    name="metrics",
    summary="Prometheus metrics endpoint",
    scope="metrics",
    path="/metrics",
    description="Metrics in Prometheus format",
    content_type="text/plain; version=0.0.4; charset=utf-8",
)


_ASKING = (
    "invalid_request",
    "not_found",
    "conflict",
    "too_large",
    "rate_limited",
    "engine_failed",
    "overloaded",
    "deadline_exceeded",
    "insufficient_memory",
    "not_implemented",
)
_LOADING = (
    "invalid_request",
    "not_found",
    "conflict",
    "too_large",
    "engine_failed",
    "overloaded",
    "deadline_exceeded",
    "insufficient_memory",
    "not_implemented",
)
_CREATING = (
    "invalid_request",
    "not_found",
    "conflict",
    "too_large",
    "overloaded",
    "deadline_exceeded",
    "insufficient_memory",
    "not_implemented",
)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="infer",
        summary="Execute model inference",
        request=types.InferenceRequest,
        response=types.InferenceResponse,
        scope="infer",
        route=Route("POST", "/inference"),
        rpcs={"Infer": {}},
        stream_rpc="InferStream",
        stream=Stream("infer_stream", types.InferenceChunk),
        action="infer",
        errors=_ASKING,
        tags=("inference",),
    ),
    Operation(
        name="chat",
        summary="Go on with a conversation",
        request=chat.ChatRequest,
        response=chat.ChatResponse,
        scope="infer",
        route=Route("POST", "/chat"),
        rpcs={"Chat": {}},
        stream_rpc="ChatStream",
        stream=Stream("chat_stream", chat.ChatChunk),
        action="chat",
        errors=_ASKING,
        tags=("inference",),
    ),
    Operation(
        name="embed",
        summary="Texts as vectors",
        request=types.EmbedRequest,
        response=types.EmbedResponse,
        scope="infer",
        route=Route("POST", "/embeddings"),
        rpcs={"Embed": {}},
        action="embed",
        errors=_ASKING,
        tags=("inference",),
    ),
    Operation(
        name="rerank",
        summary="Documents by how well they answer a query",
        request=types.RerankRequest,
        response=types.RerankResponse,
        scope="infer",
        route=Route("POST", "/rerank"),
        rpcs={"Rerank": {}},
        action="rerank",
        errors=_ASKING,
        tags=("inference",),
    ),
    Operation(
        name="list_models",
        summary="List loaded models",
        request=types.ListModelsRequest,
        response=types.ModelList,
        scope="models",
        route=Route("GET", "/models", query=("all",)),
        rpcs={"ListModels": {}, "ListAllModels": {"all": True}},
        action="list_models",
        errors=("invalid_request",),
    ),
    Operation(
        name="load_model",
        summary="Load a new model",
        request=types.ModelLoadRequest,
        response=types.ModelLoadReply,
        scope="models",
        route=Route("POST", "/models", status=201, query=("wait", "dry_run")),
        rpcs={"LoadModel": {}},
        action="load_model",
        errors=_LOADING,
    ),
    Operation(
        name="get_model",
        summary="Describe a model",
        request=types.GetModelRequest,
        response=types.ModelInfo,
        scope="models",
        route=Route("GET", "/models/{model_name}"),
        rpcs={"GetModel": {}},
        action="get_model",
        errors=("invalid_request", "not_found"),
    ),
    Operation(
        name="unload_model",
        summary="Unload a model",
        request=types.ModelUnloadRequest,
        response=types.ModelUnloadReply,
        scope="models",
        route=Route("DELETE", "/models/{model_name}", query=("force",)),
        rpcs={"UnloadModel": {}},
        action="unload_model",
        errors=("invalid_request", "not_found", "conflict", "deadline_exceeded"),
    ),
    Operation(
        name="watch_model",
        summary="Watch a model until it rests",
        request=types.WatchModelRequest,
        response=types.ModelEvent,
        scope="models",
        route=Route("GET", "/models/{model_name}/events"),
        rpcs={},
        stream_rpc="WatchModel",
        stream=Stream("watch_model", types.ModelEvent, always=True),
        action="watch_model",
        errors=("invalid_request", "not_found"),
    ),
    Operation(
        name="explain_model",
        summary="Where a model's memory goes",
        request=types.ExplainModelRequest,
        response=types.ModelExplanation,
        scope="models",
        route=Route("GET", "/models/{model_name}/memory"),
        rpcs={"ExplainModel": {}},
        action="explain_model",
        errors=("invalid_request", "not_found", "engine_failed", "not_implemented"),
    ),
    Operation(
        name="list_versions",
        summary="List a model's versions",
        request=types.ListVersionsRequest,
        response=types.VersionList,
        scope="models",
        route=Route("GET", "/models/{model_name}/versions"),
        rpcs={"ListVersions": {}},
        action="list_versions",
        errors=("invalid_request", "not_found"),
    ),
    Operation(
        name="register_version",
        summary="Register a file or source as the next version, without loading it",
        request=types.RegisterVersionRequest,
        response=types.ModelVersion,
        scope="models",
        route=Route("POST", "/models/{model_name}/versions", status=201, query=("wait",)),
        rpcs={"RegisterVersion": {}},
        action="register_version",
        errors=(
            "invalid_request",
            "not_found",
            "conflict",
            "too_large",
            "engine_failed",
            "overloaded",
            "deadline_exceeded",
            "not_implemented",
        ),
    ),
    Operation(
        name="activate_version",
        summary="Let a version answer from now on",
        request=types.ActivateVersionRequest,
        response=types.ModelInfo,
        scope="models",
        route=Route("POST", "/models/{model_name}/activate"),
        rpcs={"ActivateVersion": {}},
        action="activate_version",
        errors=_LOADING,
    ),
    Operation(
        name="roll_back",
        summary="Let the version that was active before answer again",
        request=types.RollBackRequest,
        response=types.ModelInfo,
        scope="models",
        route=Route("POST", "/models/{model_name}/rollback"),
        rpcs={"RollBack": {}},
        action="roll_back",
        errors=_LOADING,
    ),
    Operation(
        name="remove_version",
        summary="Forget a version, or all",
        request=types.RemoveVersionRequest,
        response=types.Removal,
        scope="models",
        route=Route("DELETE", "/models/{model_name}/versions/{model_version}"),
        rpcs={"RemoveVersion": {}},
        action="remove_version",
        errors=("invalid_request", "not_found", "conflict"),
    ),
    Operation(
        name="prune",
        summary="Remove what nothing needs: abandoned downloads, unused quantised copies, versions without a file",
        request=types.Empty,
        response=types.Removal,
        scope="models",
        route=Route("POST", "/prune"),
        rpcs={"Prune": {}},
        action="prune",
        errors=("invalid_request",),
    ),
    Operation(
        name="create_job",
        summary="Create a new learning job",
        request=learning.CreateJobRequest,
        response=learning.LearningJob,
        scope="learning",
        route=Route("POST", "/learning/jobs", status=201, query=("dry_run",)),
        rpcs={"CreateLearningJob": {}},
        action="create_job",
        errors=_CREATING,
        tags=("learning",),
        creates=True,
        too_large="put the rows into a file under one of the dataset roots, and name it with dataset_path",
    ),
    Operation(
        name="list_jobs",
        summary="List learning jobs",
        request=learning.ListJobsRequest,
        response=learning.JobList,
        scope="learning",
        route=Route("GET", "/learning/jobs", query=("status",), array="jobs"),
        rpcs={"ListLearningJobs": {}},
        action="list_jobs",
        errors=("invalid_request",),
        tags=("learning",),
    ),
    Operation(
        name="get_job",
        summary="Describe a learning job",
        request=learning.GetJobRequest,
        response=learning.LearningJob,
        scope="learning",
        route=Route("GET", "/learning/jobs/{job_id}"),
        rpcs={"GetLearningJob": {}},
        action="get_job",
        errors=("invalid_request", "not_found"),
        tags=("learning",),
    ),
    Operation(
        name="watch_job",
        summary="Watch a learning job until it has ended",
        request=learning.WatchJobRequest,
        response=learning.JobEvent,
        scope="learning",
        route=Route("GET", "/learning/jobs/{job_id}/events", query=("after", "follow")),
        rpcs={},
        stream_rpc="WatchLearningJob",
        stream=Stream("watch_job", learning.JobEvent, always=True, after="after"),
        action="watch_job",
        errors=("invalid_request", "not_found"),
        tags=("learning",),
    ),
    Operation(
        name="cancel_job",
        summary="Cancel a learning job",
        request=learning.CancelJobRequest,
        response=learning.LearningJob,
        scope="learning",
        route=Route("POST", "/learning/jobs/{job_id}/cancel"),
        rpcs={"CancelLearningJob": {}},
        action="cancel_job",
        errors=("invalid_request", "not_found", "too_large"),
        tags=("learning",),
    ),
    Operation(
        name="create_goal",
        summary="Create a new goal",
        request=goals.CreateGoalRequest,
        response=goals.Goal,
        scope="goals",
        route=Route("POST", "/goals", status=201, query=("dry_run",)),
        rpcs={"CreateGoal": {}},
        action="create_goal",
        errors=_CREATING,
        tags=("goals",),
        creates=True,
        too_large="put the rows into files under one of the dataset roots, and name those in the objective",
    ),
    Operation(
        name="list_goals",
        summary="List active goals",
        request=goals.ListGoalsRequest,
        response=goals.GoalList,
        scope="goals",
        route=Route("GET", "/goals", query=("status",), array="goals"),
        rpcs={"ListGoals": {}},
        action="list_goals",
        errors=("invalid_request",),
        tags=("goals",),
    ),
    Operation(
        name="get_goal",
        summary="Describe a goal",
        request=goals.GetGoalRequest,
        response=goals.Goal,
        scope="goals",
        route=Route("GET", "/goals/{goal_id}"),
        rpcs={"GetGoal": {}},
        action="get_goal",
        errors=("invalid_request", "not_found"),
        tags=("goals",),
    ),
    Operation(
        name="watch_goal",
        summary="Watch a goal until it has ended",
        request=goals.WatchGoalRequest,
        response=goals.GoalEvent,
        scope="goals",
        route=Route("GET", "/goals/{goal_id}/events", query=("after", "follow")),
        rpcs={},
        stream_rpc="WatchGoal",
        stream=Stream("watch_goal", goals.GoalEvent, always=True, after="after"),
        action="watch_goal",
        errors=("invalid_request", "not_found"),
        tags=("goals",),
    ),
    Operation(
        name="cancel_goal",
        summary="Cancel a goal",
        request=goals.CancelGoalRequest,
        response=goals.Goal,
        scope="goals",
        route=Route("POST", "/goals/{goal_id}/cancel"),
        rpcs={"CancelGoal": {}},
        action="cancel_goal",
        errors=("invalid_request", "not_found", "too_large"),
        tags=("goals",),
    ),
    Operation(
        name="status",
        summary="The machine and what runs on it",
        request=types.Empty,
        response=types.SystemStatus,
        scope="models",
        route=Route("GET", "/status"),
        rpcs={"GetSystemStatus": {}},
        action="status",
        tags=("system",),
    ),
    Operation(
        name="health",
        summary="Health check endpoint",
        request=types.Empty,
        response=types.HealthResponse,
        scope=None,
        route=Route("GET", "/health"),
        rpcs={"HealthCheck": {}},
        action="health",
        tags=("system",),
    ),
)
