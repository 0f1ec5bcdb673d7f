import datetime

from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferenceRequest(_message.Message):
    __slots__ = ("model_name", "input_text", "max_tokens", "temperature", "top_p", "stop_sequences", "raw", "system", "seed")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    INPUT_TEXT_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    STOP_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    input_text: str
    max_tokens: int
    temperature: float
    top_p: float
    stop_sequences: _containers.RepeatedScalarFieldContainer[str]
    raw: bool
    system: str
    seed: int
    def __init__(self, model_name: _Optional[str] = ..., input_text: _Optional[str] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., stop_sequences: _Optional[_Iterable[str]] = ..., raw: _Optional[bool] = ..., system: _Optional[str] = ..., seed: _Optional[int] = ...) -> None: ...

class InferenceResponse(_message.Message):
    __slots__ = ("output_text", "tokens_generated", "latency_ms", "model_version", "success", "error_message")
    OUTPUT_TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_GENERATED_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    output_text: str
    tokens_generated: int
    latency_ms: float
    model_version: str
    success: bool
    error_message: str
    def __init__(self, output_text: _Optional[str] = ..., tokens_generated: _Optional[int] = ..., latency_ms: _Optional[float] = ..., model_version: _Optional[str] = ..., success: _Optional[bool] = ..., error_message: _Optional[str] = ...) -> None: ...

class InferenceChunk(_message.Message):
    __slots__ = ("text", "done", "final")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    text: str
    done: bool
    final: InferenceResponse
    def __init__(self, text: _Optional[str] = ..., done: _Optional[bool] = ..., final: _Optional[_Union[InferenceResponse, _Mapping]] = ...) -> None: ...

class ModelLoadRequest(_message.Message):
    __slots__ = ("model_name", "model_path", "model_type", "quantization", "gpu_layers", "wait")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    GPU_LAYERS_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_path: str
    model_type: str
    quantization: bool
    gpu_layers: int
    wait: bool
    def __init__(self, model_name: _Optional[str] = ..., model_path: _Optional[str] = ..., model_type: _Optional[str] = ..., quantization: _Optional[bool] = ..., gpu_layers: _Optional[int] = ..., wait: _Optional[bool] = ...) -> None: ...

class ModelLoadReply(_message.Message):
    __slots__ = ("success", "message", "model_version", "memory_usage_mb")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USAGE_MB_FIELD_NUMBER: _ClassVar[int]
    success: bool
    message: str
    model_version: str
    memory_usage_mb: int
    def __init__(self, success: _Optional[bool] = ..., message: _Optional[str] = ..., model_version: _Optional[str] = ..., memory_usage_mb: _Optional[int] = ...) -> None: ...

class ModelUnloadRequest(_message.Message):
    __slots__ = ("model_name", "force")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    force: bool
    def __init__(self, model_name: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class ModelUnloadReply(_message.Message):
    __slots__ = ("success", "message", "memory_freed_mb")
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREED_MB_FIELD_NUMBER: _ClassVar[int]
    success: bool
    message: str
    memory_freed_mb: int
    def __init__(self, success: _Optional[bool] = ..., message: _Optional[str] = ..., memory_freed_mb: _Optional[int] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model_name",)
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    def __init__(self, model_name: _Optional[str] = ...) -> None: ...

class ModelInfo(_message.Message):
    __slots__ = ("model_name", "model_version", "model_type", "model_path", "status", "memory_usage_mb", "gpu_layers", "context_length", "loaded_at", "last_used_at", "active_requests", "queued_requests", "message", "digest")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USAGE_MB_FIELD_NUMBER: _ClassVar[int]
    GPU_LAYERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: str
    model_type: str
    model_path: str
    status: str
    memory_usage_mb: int
    gpu_layers: int
    context_length: int
    loaded_at: _timestamp_pb2.Timestamp
    last_used_at: _timestamp_pb2.Timestamp
    active_requests: int
    queued_requests: int
    message: str
    digest: str
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[str] = ..., model_type: _Optional[str] = ..., model_path: _Optional[str] = ..., status: _Optional[str] = ..., memory_usage_mb: _Optional[int] = ..., gpu_layers: _Optional[int] = ..., context_length: _Optional[int] = ..., loaded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_used_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., active_requests: _Optional[int] = ..., queued_requests: _Optional[int] = ..., message: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class ModelList(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelInfo]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelInfo, _Mapping]]] = ...) -> None: ...

class HealthResponse(_message.Message):
    __slots__ = ("status", "timestamp", "components", "version")
    class ComponentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    COMPONENTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    status: str
    timestamp: _timestamp_pb2.Timestamp
    components: _containers.ScalarMap[str, str]
    version: str
    def __init__(self, status: _Optional[str] = ..., timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., components: _Optional[_Mapping[str, str]] = ..., version: _Optional[str] = ...) -> None: ...

class DeviceStatus(_message.Message):
    __slots__ = ("device", "name", "total_mb", "used_mb", "reserved_mb", "utilization_percent", "temperature_celsius")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MB_FIELD_NUMBER: _ClassVar[int]
    USED_MB_FIELD_NUMBER: _ClassVar[int]
    RESERVED_MB_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_PERCENT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    device: str
    name: str
    total_mb: int
    used_mb: int
    reserved_mb: int
    utilization_percent: float
    temperature_celsius: float
    def __init__(self, device: _Optional[str] = ..., name: _Optional[str] = ..., total_mb: _Optional[int] = ..., used_mb: _Optional[int] = ..., reserved_mb: _Optional[int] = ..., utilization_percent: _Optional[float] = ..., temperature_celsius: _Optional[float] = ...) -> None: ...

class SystemStatus(_message.Message):
    __slots__ = ("uptime_seconds", "cpu_usage_percent", "memory_used_mb", "memory_total_mb", "devices", "models_loaded", "active_requests", "queued_requests", "learning_jobs_running", "goals_active", "version")
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CPU_USAGE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_MB_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_MB_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    MODELS_LOADED_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_JOBS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    GOALS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    uptime_seconds: float
    cpu_usage_percent: float
    memory_used_mb: int
    memory_total_mb: int
    devices: _containers.RepeatedCompositeFieldContainer[DeviceStatus]
    models_loaded: int
    active_requests: int
    queued_requests: int
    learning_jobs_running: int
    goals_active: int
    version: str
    def __init__(self, uptime_seconds: _Optional[float] = ..., cpu_usage_percent: _Optional[float] = ..., memory_used_mb: _Optional[int] = ..., memory_total_mb: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[DeviceStatus, _Mapping]]] = ..., models_loaded: _Optional[int] = ..., active_requests: _Optional[int] = ..., queued_requests: _Optional[int] = ..., learning_jobs_running: _Optional[int] = ..., goals_active: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...
