"""What the child program is to do, as its folder says: `task.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from modelops.api.learning import DpoParameters, LoraParameters, parameters_of

FILE = "task.json"


@dataclass(frozen=True)
class Task:
    """One job's training. `base` is the GGUF that is served, `digest` its SHA-256; `device` is cpu or cuda; `threads`
    are for the processor; `publish` says what is to become of it: adapter, Q8_0 or F16; `bases` is where rewrites of
    base models are kept. `context_length` is the engine's, in tokens, that will judge the model; 0: not known.
    """

    base: Path
    digest: str
    job_type: str
    parameters: LoraParameters | DpoParameters
    device: str
    threads: int
    publish: str
    bases: Path
    context_length: int = 0


def load(folder: Path) -> Task:
    """The task that was put into the job's folder. Raises OSError, ValueError or KeyError where there is none."""
    found = json.loads((folder / FILE).read_text("utf-8"))
    parameters = parameters_of(found["job_type"], found["parameters"])
    assert isinstance(parameters, LoraParameters | DpoParameters)
    return Task(
        base=Path(found["base"]),
        digest=found["digest"],
        job_type=found["job_type"],
        parameters=parameters,
        device=found["device"],
        threads=found["threads"],
        publish=found["publish"],
        bases=Path(found["bases"]),
        context_length=found.get("context_length", 0),
    )
