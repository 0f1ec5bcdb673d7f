"""Settings: defaults < a TOML file < MODELOPS_… variables < flags. Typed, read once, frozen.

An unknown key is refused, with the nearest right name. Nested keys are written `[server]` and `rest_port = 8008` in
the file, `MODELOPS_SERVER__REST_PORT=8008` as a variable, and `server.rest_port` in messages and documentation.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, RootModel, ValidationError
from pydantic_core import PydanticCustomError

from modelops.api.messages import KeepAlive
from modelops.api.types import ModelType

PREFIX = "MODELOPS_"
#: Variables of the same prefix that are not settings: where the configuration file is, and what clients read.
NOT_SETTINGS = frozenset({"MODELOPS_CONFIG", "MODELOPS_URL", "MODELOPS_API_KEY", "MODELOPS_CA_FILE"})
_MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}"
ModelName = Annotated[str, Field(pattern=f"^{_MODEL_NAME}$")]
Port = Annotated[int, Field(ge=0, le=65_535)]
Level = Literal["debug", "info", "warning", "error"]
#: What can have a level of its own: our parts, `requests` (a line for each call) and `engine` (what engines themselves
#: write); beside these `engine.NAME`, the engines of one model.
AREAS = (
    "app",
    "cli",
    "tasks",
    "transports",
    "service",
    "goals",
    "learning",
    "durable",
    "serving",
    "engines",
    "store",
    "tracing",
    "requests",
    "engine",
)


class SettingsError(Exception):
    """The configuration cannot be used; the message names the key, what is wrong, and what would be right."""


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "modelops"


def _split(value: object) -> object:
    """A list written in one variable: its parts stand between colons, as in PATH."""
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _split_levels(value: object) -> object:
    """Levels written in one variable, area=level between commas; or tables, where `engine.NAME` is one in another."""
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",") if part.strip()]
        return {area.strip(): level.strip() for area, _, level in parts}
    return dict(_flat(value)) if isinstance(value, Mapping) else value


def _flat(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _known_areas(levels: Mapping[str, Level]) -> Mapping[str, Level]:
    for area in levels:
        if area not in AREAS and not re.fullmatch(rf"engine\.{_MODEL_NAME}", area):
            close = difflib.get_close_matches(area, AREAS, n=1, cutoff=0.5)
            hint = f"; did you mean '{close[0]}'?" if close else f"; there are {', '.join(AREAS)} and engine.NAME"
            raise PydanticCustomError("unknown_area", "unknown area '{area}'{hint}", {"area": area, "hint": hint})
    return levels


class Section(BaseModel):
    """Base of the groups of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerSettings(Section):
    """Where the coordinator listens, and how long it waits."""

    host: str = Field("127.0.0.1", description="Address to listen on, for all three transports.")
    rest_port: Port = Field(8008, description="REST; 0 takes any free port.")
    grpc_port: Port = Field(7212, description="gRPC; 0 takes any free port.")
    zmq_port: Port = Field(7211, description="ZMQ; 0 takes any free port.")
    max_body_bytes: int = Field(1_048_576, ge=16_384, description="Largest request that is read.")
    request_timeout_s: float = Field(
        600.0, gt=0, description="Longest that a request may take when its caller sets no deadline."
    )
    drain_s: float = Field(30.0, ge=0, description="Time for requests in flight to end at shutdown.")
    drain_notice_s: float = Field(
        0.5,
        ge=0,
        description="At shutdown: how long new work is refused, at least, before connections close.",
    )
    client_timeout_s: float = Field(
        30.0,
        gt=0,
        description="How long a client may take to send a request, or to take the next piece of its answer.",
    )
    idle_timeout_s: float = Field(
        75.0, gt=0, description="How long a REST connection may lie idle between two requests."
    )
    max_connections: int = Field(1000, ge=1, description="Connections at once, for each transport.")
    insecure: bool = Field(
        False,
        description="Listen on other addresses than loopback although there is no key: whoever reaches it uses it.",
    )


class TlsSettings(Section):
    """How what goes over the network is encrypted."""

    cert_file: Path | None = Field(None, description="Certificate of REST and gRPC, with its chain, in PEM.")
    key_file: Path | None = Field(None, description="The certificate's key, in PEM.")
    client_ca_file: Path | None = Field(
        None,
        description="Authority of client certificates, an alternative to keys: REST asks for one, gRPC requires one.",
    )
    curve_file: Path | None = Field(None, description="Key of the ZMQ socket (CURVE), made by `modelops keys curve`.")


class RatesSettings(Section):
    """How callers' rates are counted."""

    redis_url: str = Field(
        "", description="redis://host:6379/0: count there, for several coordinators together. Empty: in this process."
    )


class ModelsSettings(Section):
    """Which model files may be served."""

    roots: Annotated[tuple[Path, ...], BeforeValidator(_split)] = Field(
        (),
        description="Folders, beside <data_dir>/models, whose GGUF files may be served. As a variable: a:b:c.",
    )
    catalogue: Path | None = Field(
        None, description="A TOML file that names models and how each is run (docs/models.md)."
    )
    allow_private_sources: bool = Field(
        False, description="Fetch from addresses of private networks and of this machine, too."
    )
    fetch_stall_s: float = Field(
        30.0, gt=0, description="A fetch that brings less than 1 KiB a second for so long has stalled."
    )
    autoload: bool = Field(True, description="Load a registered model on its first request.")
    keep_alive: KeepAlive = Field(
        -1.0,
        description='How long a model stays after its last answer: seconds or "5m"; 0: not at all; '
        "-1: until another needs its memory.",
    )
    restore: bool = Field(True, description="Load at the start what was loaded when the coordinator ended.")
    max_queue: int = Field(256, ge=0, description="Requests that may wait for one model; more are refused (503).")
    max_queued_tokens: int = Field(
        262_144,
        ge=0,
        description="Tokens of prompts, as far as they can be estimated, that may wait for one model; more are refused "
        "(503). One request alone may always wait.",
    )


class EngineSettings(Section):
    """How engines are run."""

    executable: str = Field(
        "",
        description="A llama-server executable. Empty: the xllamacpp package, or llama-server on PATH without it.",
    )
    slots: int = Field(4, ge=1, le=256, description="Requests that one engine answers at once.")
    context_length: int = Field(
        4096, ge=256, description="Tokens of prompt and answer together per request; at most the model's own."
    )
    quantization_type: Literal["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"] = Field(
        "Q8_0", description="What the weights of an F32, F16 or BF16 file become where quantised ones are wished."
    )
    probe: bool = Field(
        True, description="Ask the engine itself how much memory a model takes, before it is first loaded so."
    )
    threads: int = Field(0, ge=0, description="CPU threads of an engine; 0: the cores this process may use.")
    batch_size: int = Field(0, ge=0, description="Prompt tokens processed in one step; 0: what takes about 0.3 s here.")
    cache_type: Literal["f16", "q8_0", "q4_0"] = Field(
        "f16", description="What the KV cache is stored as: f16, or q8_0 or q4_0 for about half or a quarter of it."
    )
    context_checkpoints: int = Field(
        4,
        ge=0,
        description="For models with sliding windows or states: copies that each slot keeps, to go back in a prompt.",
    )
    cache_ram_mb: int = Field(0, ge=0, description="RAM for prompts that have left their slot, per engine.")
    load_timeout_s: float = Field(60.0, gt=0, description="Time to load a model, beside load_timeout_s_per_gb.")
    load_timeout_s_per_gb: float = Field(30.0, ge=0, description="Added for each GB of the model's file.")
    stop_timeout_s: float = Field(5.0, ge=0, description="Time between asking an engine to end and killing it.")
    stall_timeout_s: float = Field(
        60.0, gt=0, description="An engine that says nothing for so long while it is asked is hung: it is restarted."
    )


class LearningSettings(Section):
    """How models are fine-tuned and judged (the extra `learning`)."""

    max_parallel_jobs: int = Field(1, ge=0, le=64, description="Jobs that run at once; 0: none, they wait.")
    roots: Annotated[tuple[Path, ...], BeforeValidator(_split)] = Field(
        (), description="Folders, beside <data_dir>/datasets, whose JSONL files jobs may read. As a variable: a:b:c."
    )
    max_pending_jobs: int = Field(100, ge=1, description="Jobs that may wait; more are refused (503).")
    max_dataset_mb: int = Field(256, ge=1, description="Largest set of rows that a job takes.")
    device: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="Where it is trained: auto takes a GPU where one has room."
    )
    threads: int = Field(0, ge=0, description="CPU threads of a trainer; 0: the cores this process may use.")
    stall_timeout_s: float = Field(
        600.0, gt=0, description="A trainer that does nothing for so long, without being paused, is hung: it is ended."
    )
    resume_after_s: float = Field(
        0.5, ge=0, description="A trainer that was paused for requests goes on when none was answered for so long."
    )


class GoalsSettings(Section):
    """How declared objectives are pursued."""

    max_active: int = Field(64, ge=0, le=1000, description="Goals that are pursued at once; 0: none, they wait.")
    max_pending: int = Field(100, ge=1, description="Goals that may wait to be pursued; more are refused (503).")
    max_trainings: int = Field(
        6, ge=0, le=1000, description="Trainings for a goal of quality whose limits do not say how many."
    )
    sample_s: float = Field(
        4.0, gt=0, description="Shortest time that a goal of serving measures a way of running a model for."
    )
    quiet_timeout_s: float = Field(
        600.0, gt=0, description="How long such a measurement waits for a time in which no request is answered."
    )


class MemorySettings(Section):
    """How much memory models may take."""

    budget_mb: int = Field(0, ge=0, description="RAM for models; 0: what is free, less reserve_mb.")
    reserve_mb: int = Field(512, ge=0, description="RAM left to everything else.")
    gpu_reserve_mb: int = Field(256, ge=0, description="Memory of each GPU left to everything else.")
    cpu_layers: Literal["before_eviction", "after_eviction", "never"] = Field(
        "before_eviction",
        description="When a machine with GPUs runs layers on its CPU: once they do not all fit its GPUs, only after "
        "idle models were evicted, or never.",
    )
    simulated_devices: Annotated[tuple[str, ...], BeforeValidator(_split_commas)] = Field(
        (),
        description="For tests of placement: devices to plan for instead of this machine's GPUs, in MB, each with what "
        "others use of it: gpu0=24000,gpu1=8000/2000.",
    )


class LogSettings(Section):
    """What the coordinator says about itself, on standard error."""

    level: Level = Field("info", description="The least that is worth a line: debug, info, warning or error.")
    format: Literal["auto", "console", "json"] = Field(
        "auto", description="console: for people; json: an object for each line; auto: for people on a terminal."
    )
    levels: Annotated[Mapping[str, Level], BeforeValidator(_split_levels), AfterValidator(_known_areas)] = Field(
        {},
        description="Levels of areas that differ, a table: service, serving, transports, engines, store, requests, "
        "engine (what engines write), engine.NAME and others. As a variable: serving=debug,engine.smollm2=debug.",
    )
    prompts: bool = Field(False, description="Log prompts and answers too, at most 2000 characters of each.")


class MetricsSettings(Section):
    """What Prometheus is shown at /metrics."""

    enabled: bool = Field(True, description="Count, and show the counts at /metrics.")


class TracingSettings(Section):
    """Where traces are sent (the extra `tracing`)."""

    otlp_endpoint: str = Field(
        "",
        description="http://host:4318: send traces to this collector (OTLP over HTTP). Empty: none are made.",
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Which part of the traces that begin here is kept; callers decide about theirs."
    )
    content: bool = Field(False, description="Put prompts and answers into traces, too.")


class Settings(Section):
    """All settings, validated and frozen."""

    data_dir: Path = Field(
        default_factory=_default_data_dir,
        description="Where models and state are kept; by default modelops under the user's data folder.",
    )
    server: ServerSettings = ServerSettings()
    tls: TlsSettings = TlsSettings()
    rates: RatesSettings = RatesSettings()
    models: ModelsSettings = ModelsSettings()
    engine: EngineSettings = EngineSettings()
    memory: MemorySettings = MemorySettings()
    learning: LearningSettings = LearningSettings()
    goals: GoalsSettings = GoalsSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()

    @property
    def models_dir(self) -> Path:
        """The first model root: where downloads go."""
        return self.data_dir / "models"


def load(
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """The settings from all sources; `flags` maps dotted keys to values, None meaning "not given".

    Without `file`, the file named by MODELOPS_CONFIG is read, if any. Raises SettingsError.
    """
    environ = os.environ if environ is None else environ
    named = environ.get(f"{PREFIX}CONFIG")
    file = file or (Path(named) if named else None)
    merged: dict[str, Any] = {}
    if file:
        _merge(merged, _read(file))
    for key, value in environ.items():
        if key.startswith(PREFIX) and key not in NOT_SETTINGS:
            _merge(merged, _nested(key.removeprefix(PREFIX).lower().split("__"), value, key))
    for key, flag in (flags or {}).items():
        if flag is not None:
            _merge(merged, _nested(key.split("."), flag, key))
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(error))) from None


class ModelEntry(Section):
    """What the catalogue file says of one model. What it leaves out is as the settings have it."""

    source: str = ""  # fetched on first use, or at the start with `preload`
    file: str = ""  # under a model root
    type: ModelType = "llm"
    quantization: bool = False
    gpu_layers: int = Field(0, ge=-1)
    context_length: int = Field(0, ge=0)
    slots: int = Field(0, ge=0, le=256)
    cache_type: Literal["f16", "q8_0", "q4_0"] | None = None
    system: str = Field("", max_length=10_000)
    stop: tuple[str, ...] = Field((), max_length=10)
    keep_alive: KeepAlive | None = None
    pin: bool = False
    preload: bool = False
    aliases: tuple[str, ...] = ()


class _Catalogue(RootModel[dict[ModelName, ModelEntry]]):
    pass


def load_catalogue(file: Path | None) -> dict[str, ModelEntry]:
    """The models that the catalogue file names; none without a file. Raises SettingsError."""
    if file is None:
        return {}
    try:
        entries = _Catalogue.model_validate(_read(file)).root
    except ValidationError as error:
        raise SettingsError("\n".join(f"{file}: {line}" for line in _explain(error, ModelEntry.model_fields))) from None
    names = [*entries, *(alias for entry in entries.values() for alias in entry.aliases)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SettingsError(f"{file}: '{min(twice)}' is the name of more than one model")
    for name, entry in entries.items():
        if entry.source and entry.file:
            raise SettingsError(f"{file}: '{name}' has a source and a file; one of them is enough")
    return entries


def described() -> Iterator[tuple[str, str, str]]:
    """Every setting as (dotted key, default, description), in order: the source of docs/settings.md."""
    for name, section in Settings.model_fields.items():
        kind = section.annotation
        if not (isinstance(kind, type) and issubclass(kind, Section)):
            yield name, "…/modelops", section.description or ""
            continue
        for key, value in kind.model_fields.items():
            default = value.get_default(call_default_factory=False)
            yield f"{name}.{key}", _written(default), value.description or ""


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return "[]"
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the configuration file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file} is not valid TOML: {error}") from None


def _nested(path: list[str], value: object, source: str) -> dict[str, Any]:
    if not all(path):
        raise SettingsError(f"{source} is no setting; a variable is written {PREFIX}SECTION__KEY")
    for part in reversed(path):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        present = base.get(key)
        if isinstance(present, dict) and isinstance(value, Mapping):
            _merge(present, value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(error: ValidationError, known: Iterable[str] = ()) -> Iterator[str]:
    keys = [*known] or [*Settings.model_fields, *(key for key, _, _ in described())]
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            close = difflib.get_close_matches(str(fault["loc"][-1]) if known else key, keys, n=1, cutoff=0.5)
            yield f"unknown setting '{key}'" + (f"; did you mean '{close[0]}'?" if close else "")
        else:
            yield f"setting '{key}': {fault['msg'][0].lower()}{fault['msg'][1:]} (it is {fault['input']!r})"
