"""Every family of /metrics: its name, kind, meaning and labels. A table; nothing is counted here.

The names of docs/spec/api.md are exact, also where Prometheus's own conventions would have another; those added here
are in base units. Labels have few values each: a model is one that is registered, or "(unknown)"; never a key, a prompt
or a request's id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: The label `model` where a caller named none that is registered: made-up names make no series.
UNKNOWN = "(unknown)"

_CALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)
_LOADS = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_WORK = (1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0)
_MOMENTS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


@dataclass(frozen=True, eq=False)
class Family:
    """One family. Without buckets it is a counter or a gauge. `read`: looked up when the page is asked for, where
    somebody keeps it anyway; else counted when it happens."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    read: bool = False


def _counter(name: str, help: str, *labels: str) -> Family:
    return Family(name, "counter", help, labels)


def _histogram(name: str, help: str, *labels: str, buckets: tuple[float, ...] = _CALLS) -> Family:
    return Family(name, "histogram", help, labels, buckets)


def _gauge(name: str, help: str, *labels: str) -> Family:
    return Family(name, "gauge", help, labels, read=True)


def _kept(name: str, help: str, *labels: str) -> Family:
    """A counter that somebody else keeps."""
    return Family(name, "counter", help, labels, read=True)


# --- the system ---
SYSTEM_CPU = _gauge("moc_system_cpu_usage_percent", "How busy the host's cores were since the page before, in percent.")
SYSTEM_MEMORY = _gauge("moc_system_memory_usage_bytes", "RAM in use, of what the container may have.")
SYSTEM_MEMORY_TOTAL = _gauge("moc_system_memory_total_bytes", "RAM there is, or that the container may have.")
SYSTEM_DISK = _gauge("moc_system_disk_usage_bytes", "In use on the disk of the data folder.")
SYSTEM_DISK_TOTAL = _gauge("moc_system_disk_total_bytes", "Size of the disk of the data folder, as users may fill it.")
BUILD = _gauge("moc_build_info", "1, with the release as a label.", "version")

# --- GPUs ---
GPU_TOTAL = _gauge("moc_gpu_total_memory_mb", "Memory of the GPU, in MiB.", "device")
GPU_USED = _gauge(
    "moc_gpu_used_memory_mb",
    "Memory of the GPU that programs hold, ours or others, in MiB, as nvidia-smi says.",
    "device",
)
GPU_FREE = _gauge(
    "moc_gpu_free_memory_bytes",
    "Memory of the GPU that may still be taken: a part of it is neither used nor free, but its driver's.",
    "device",
)
GPU_UTILIZATION = _gauge(
    "moc_gpu_utilization_percent", "How busy the GPU is, in percent, as its driver says.", "device"
)
GPU_TEMPERATURE = _gauge("moc_gpu_temperature_celsius", "Temperature of the GPU.", "device")
RESERVED = _gauge("moc_device_reserved_bytes", "What the ledger holds of the device for models.", "device")

# --- models ---
MODELS_LOADED = _gauge("moc_models_loaded_total", "Models that are loaded now.")
LOAD_DURATION = _histogram(
    "moc_model_load_duration_seconds", "From the start of an engine until it answers.", "model", buckets=_LOADS
)
LOAD_FAILURES = _counter("moc_model_load_failures_total", "Engines that did not come up.", "model", "code")
MODEL_MEMORY = _gauge("moc_model_memory_usage_mb", "What the ledger holds for the model, in MiB.", "model", "device")
MEMORY_PREDICTED = _gauge(
    "moc_model_memory_predicted_bytes", "What the loaded model was expected to take, before it was loaded.", "model"
)
MEMORY_MEASURED = _gauge(
    "moc_model_memory_measured_bytes",
    "What the loaded model was last seen to take on all devices: after its first answer, and on GPUs each minute.",
    "model",
)
EVICTIONS = _counter(
    "moc_model_evictions_total",
    "Engines that ended: memory (another model needs it), keep_alive, requested, replaced, crashed.",
    "model",
    "reason",
)
SWAP_DURATION = _histogram(
    "moc_model_swap_duration_seconds",
    "From the wish for another version of a loaded model until it answers.",
    "model",
    buckets=_LOADS,
)

# --- inference ---
REQUESTS = _counter(
    "moc_inference_requests_total",
    "Requests that ask a model, by how they ended: ok, cancelled (their caller left), or the error's code.",
    "model",
    "protocol",
    "code",
)
LATENCY = _histogram(
    "moc_inference_latency_seconds",
    "Of answered requests: from the request read until the answer is ready, queueing and loading included.",
    "model",
)
ERRORS = _counter("moc_inference_errors_total", "Requests that ask a model and ended with an error.", "model", "code")
TOKENS = _kept("moc_inference_tokens_generated_total", "Tokens that engines have written.", "model")
PROMPT_TOKENS = _kept("moc_inference_prompt_tokens_total", "Tokens of prompts that engines have read.", "model")
RETRIES = _counter(
    "moc_inference_retries_total",
    "Requests asked once more, because their engine broke before anything was sent.",
    "model",
)
QUEUE_WAIT = _histogram(
    "moc_inference_queue_wait_seconds",
    "From a request for a slot until it is granted, refused or given up; loading included.",
    "model",
)
FIRST_TOKEN = _histogram(
    "moc_inference_time_to_first_token_seconds", "From the request read until the first token of its answer.", "model"
)
TOKEN_TIME = _histogram(
    "moc_inference_time_per_output_token_seconds",
    "Of one answer: the mean time between two of its tokens.",
    "model",
    buckets=_TOKENS,
)
REFUSALS = _counter(
    "moc_requests_refused_total",
    "Calls that were refused, by why: the error's code, or what lies behind it, as queue_full or breaker_open.",
    "model",
    "reason",
)

# --- learning and goals ---
JOBS = _counter("moc_learning_jobs_total", "Learning jobs created.")
JOBS_COMPLETED = _counter("moc_learning_jobs_completed_total", "Learning jobs completed.")
JOBS_FAILED = _counter("moc_learning_jobs_failed_total", "Learning jobs that failed.")
JOB_DURATION = _histogram("moc_learning_job_duration_seconds", "From a learning job's start to its end.", buckets=_WORK)
GOALS = _counter("moc_goals_total", "Goals created.")
GOALS_ACTIVE = _gauge("moc_goals_active_total", "Goals that are pursued now.")
GOALS_COMPLETED = _counter("moc_goals_completed_total", "Goals completed.")
GOALS_FAILED = _counter("moc_goals_failed_total", "Goals that failed.")
GOAL_ACTIONS = _counter("moc_goals_actions_total", "What was done for goals, done well or not.", "type", "action")
GOAL_DURATION = _histogram("moc_goals_execution_duration_seconds", "From a goal's start to its end.", buckets=_WORK)

# --- transports ---
GRPC_REQUESTS = _counter(
    "moc_grpc_requests_total", "Calls of the service ModelOps over gRPC, by how they ended.", "code"
)
REST_REQUESTS = _counter("moc_rest_requests_total", "Requests over REST, by how they ended.", "code")
ZMQ_REQUESTS = _counter("moc_zmq_requests_total", "Messages over ZMQ, by how they ended.", "code")
REQUEST_DURATION = _histogram(
    "moc_request_duration_seconds", "From a call's arrival until its last byte is handed over.", "protocol"
)
OPERATION_DURATION = _histogram(
    "moc_operation_duration_seconds", "The same, for each operation over any transport.", "operation"
)

# --- resiliency ---
BREAKER_STATE = _gauge(
    "moc_circuit_breaker_state", "The model's circuit breaker: 0 closed, 1 open, 2 half open.", "breaker"
)
BREAKER_FAILURES = _kept(
    "moc_circuit_breaker_failures_total", "Failures that count for the model's circuit breaker.", "breaker"
)
ACTIVE = _gauge("moc_bulkhead_active_requests", "Requests that hold a slot of the model.", "model")
QUEUED = _gauge("moc_bulkhead_queued_requests", "Requests that wait for a slot of the model.", "model")
SLOTS = _gauge("moc_bulkhead_slots", "Requests that the loaded model answers at once.", "model")

# --- the coordinator itself ---
STATE_FILE_TIME = _histogram(
    "moc_state_file_statement_duration_seconds",
    "Statements on the state file, without their commits.",
    buckets=_MOMENTS,
)
STATE_FILE_ERRORS = _counter("moc_state_file_errors_total", "Statements on the state file that failed.")
STATE_FILE_SIZE = _gauge("moc_state_file_size_bytes", "Size of the state file, its journal included.")
LOOP_LAG = _histogram(
    "moc_event_loop_lag_seconds", "How much later than asked the event loop wakes a task.", buckets=_MOMENTS
)
LOOP_TASKS = _gauge("moc_event_loop_tasks", "Tasks of the event loop.")

FAMILIES: tuple[Family, ...] = tuple(found for found in list(globals().values()) if isinstance(found, Family))
#: protocol → the family that counts its calls.
BY_PROTOCOL = {"grpc": GRPC_REQUESTS, "rest": REST_REQUESTS, "zmq": ZMQ_REQUESTS}
