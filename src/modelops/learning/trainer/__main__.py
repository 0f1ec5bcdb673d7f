"""The child program: `python -m modelops.learning.trainer STEP FOLDER` does one step of a training job.

FOLDER is the job's own, with its task and rows. What a step has to say goes to standard output as `report` writes it;
a step that fails says why and ends with `report.FAILED`. Nothing is written outside of FOLDER and the folder of bases,
nothing is fetched, and nobody is told. On the processor it runs when nobody else wants to.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from modelops.learning.trainer import report, room
from modelops.learning.trainer.report import Failed
from modelops.learning.trainer.task import Task, load

#: Step → the function that does it, `function(task, folder)`; imported when it is wanted: PyTorch takes seconds.
STEPS = {
    "prepare": "modelops.learning.trainer.rows:prepare",
    "train": "modelops.learning.trainer.train:train",
    "convert": "modelops.learning.trainer.convert:convert",
    "reference": "modelops.learning.trainer.reference:reference",
}

_NICE = 19


def main() -> None:
    """Do the step, or say why not."""
    step, folder = sys.argv[1], Path(sys.argv[2])
    report.take_stdout()
    try:
        with _explained(folder):
            task = load(folder)
            settle(task, folder)
            _function(step)(task, folder)
    except Failed as failure:
        if failure.__cause__:
            traceback.print_exc()
        report.failed(failure)
        sys.exit(report.FAILED)


def settle(task: Task, folder: Path) -> None:
    """Make this process what it is to be for the task. Has to come before PyTorch: much is read at its import."""
    cache = str(folder / "cache")
    os.environ.update(
        {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "DO_NOT_TRACK": "1",
            "TQDM_DISABLE": "1",
            "HF_HOME": cache,
            "XDG_CACHE_HOME": cache,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TRITON_CACHE_DIR": cache,
            "TOKENIZERS_PARALLELISM": "false",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it some of its sums come out another way each time
            "OMP_NUM_THREADS": str(task.threads),
            "MKL_NUM_THREADS": str(task.threads),
            # A thread that waits for another is not to take time from those who answer requests.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
    )
    if task.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.nice(_NICE)
        with contextlib.suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def _function(step: str) -> Callable[[Task, Path], None]:
    module, _, name = STEPS[step].partition(":")
    found: Callable[[Task, Path], None] = getattr(importlib.import_module(module), name)
    return found


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Every failure in the coordinator's terms."""
    try:
        yield
    except Failed:
        raise
    except MemoryError as error:
        raise room.no_memory() from error
    except Exception as error:
        if room.is_memory(error):
            raise room.no_memory() from error
        if room.is_disk(error, folder):
            raise room.disk_full(folder) from error
        name = type(error).__name__
        raise Failed("internal", f"the trainer failed ({name}); the coordinator's log says more") from error


if __name__ == "__main__":
    main()
