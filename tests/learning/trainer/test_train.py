"""Training: what is learnt, and that it does not matter how often the trainer is killed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_llama
from modelops.learning.trainer import checkpoints
from trainers import Said, good, job, killed, killed_while_writing, run

pytestmark = pytest.mark.usefixtures("learning")

ROWS = [{"turns": [{"role": "user", "content": f"What is {n}?"}], "answer": f"this is the {n}"} for n in range(20)]
PAIRS = [
    {"turns": row["turns"], "chosen": row["answer"], "rejected": "nothing" if n % 2 else "it is not known at all"}
    for n, row in enumerate(ROWS)
]
WANTED: dict[str, Any] = {"steps": 12, "batch_size": 4, "checkpoint_steps": 3, "dropout": 0.1, "rank": 4, "seed": 5}
WANTED["learning_rate"] = 5e-3
#: Files that are synced, each and the folder, and the folder around it, for one checkpoint.
SYNCS = 7


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def told(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "trained.json").read_bytes())
    return {key: value for key, value in found.items() if key != "seconds"}


def prepared(folder: Path, base: Path, **wanted: Any) -> Path:
    made = job(folder, base, ROWS, held_out=ROWS[:9], **(WANTED | wanted))
    good("prepare", made)
    return made


def again(folder: Path, whole: Path) -> Path:
    """The same job from its beginning."""
    folder.mkdir()
    for file in whole.iterdir():
        if file.is_file() and file.name not in ("trained.json", "stderr"):
            shutil.copy(file, folder)
    return folder


def after(step: int, event: dict[str, Any]) -> bool:
    return event["event"] == "progress" and int(event["done"]) >= step


@pytest.fixture(scope="module")
def whole(learning: None, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody has killed."""
    folder = prepared(tmp_path_factory.mktemp("whole") / "job", tiny)
    said = good("train", folder)
    (folder / "said.json").write_text(json.dumps(said.events))
    return folder


# --- what comes of it ---
def test_something_is_learnt_and_told(whole: Path) -> None:
    from safetensors.numpy import load_file  # a part of the extra

    steps = [event for event in json.loads((whole / "said.json").read_text()) if event["event"] == "progress"]
    assert steps[-1]["done"] == steps[-1]["total"] == 12
    last = steps[-1]["metrics"]
    assert last["train_loss"] < steps[0]["metrics"]["train_loss"] - 1
    assert last["step"] == last["total_steps"] == 12
    assert last["eta_seconds"] == 0
    assert last["tokens_per_second"] > 0
    assert all(math.isfinite(event["metrics"][name]) for event in steps for name in ("grad_norm", "learning_rate"))
    assert last["eval_loss"] < 5

    trained = json.loads((whole / "trained.json").read_bytes())
    assert trained["steps"] == 12
    assert 0 < trained["train_loss"] < 5.5
    assert trained["first_loss"] == steps[0]["metrics"]["train_loss"]
    assert trained["eval_loss"] == last["eval_loss"]
    assert trained["seconds"] > 0

    config = json.loads((whole / "adapter" / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 32, "LORA")
    assert str(whole) not in json.dumps(config)
    adapter = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == tiny_llama.LAYERS * 7 * 2
    assert all(np.abs(value).max() > 0 for value in adapter.values())
    assert [each.name for each in sorted((whole / "checkpoints").iterdir())] == ["step-00000009", "step-00000012"]


def test_what_is_done_is_not_done_again(whole: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.name != "stderr"}
    for step in ("prepare", "train"):
        assert good(step, whole).events == []
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.name != "stderr"} == before


def test_the_seed_gives_the_weights(whole: Path, tiny: Path, tmp_path: Path) -> None:
    same = again(tmp_path / "same", whole)
    good("train", same)
    assert weights(same) == weights(whole)
    assert told(same) == told(whole)
    other = prepared(tmp_path / "other", tiny, seed=6)
    good("train", other)
    assert weights(other) != weights(whole)


def test_a_fresh_process_writes_nowhere_else_and_runs_when_nobody_else_does(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = again(tmp_path / "job", whole)
    (home := tmp_path / "home").mkdir()
    for name in ("HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("FRESH_PROCESSES", "1")
    ways: list[int] = []

    def seen(event: dict[str, Any]) -> bool:
        ways.append(os.sched_getscheduler(event["pid"]))
        return False

    assert not killed("train", folder, seen)
    assert set(ways) == {os.SCHED_IDLE}
    assert list(home.rglob("*")) == []
    assert weights(folder) == weights(whole)


def test_the_preferred_answer_becomes_likelier(tiny: Path, tmp_path: Path) -> None:
    folder = job(tmp_path / "job", tiny, PAIRS, kind="dpo", **WANTED)
    good("prepare", folder)
    assert killed("train", folder, partial(after, 7))
    newest = checkpoints.newest(folder / "checkpoints")
    assert newest
    assert checkpoints.number(newest) >= 6  # more, where it had gone on before it was killed
    said = good("train", folder)
    assert said.of("log")[0]["message"] == f"goes on after step {checkpoints.number(newest)}"
    assert told(folder)["train_loss"] < math.log(2) - 0.05

    same = again(tmp_path / "same", folder)
    good("train", same)
    assert weights(same) == weights(folder)


def test_a_batch_that_is_cut_learns_the_same(tiny: Path, tmp_path: Path) -> None:
    """16 rows of about 33 tokens are worked on 8 at a time."""
    long = [{**row, "turns": [{"role": "user", "content": "o" * 40}]} for row in ROWS]
    folder = job(tmp_path / "job", tiny, long, **(WANTED | {"batch_size": 16, "steps": 4}))
    good("prepare", folder)
    said = good("train", folder)
    assert said.of("progress")[-1]["metrics"]["train_loss"] < said.of("progress")[0]["metrics"]["train_loss"]


# --- killed ---
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_step(seed: int, whole: Path, tmp_path: Path) -> None:
    folder = again(tmp_path / "job", whole)
    chance = random.Random(seed)
    for _ in range(3):
        killed("train", folder, partial(after, chance.randint(1, 12)))
    good("train", folder)
    assert weights(folder) == weights(whole)
    assert told(folder) == told(whole)


@pytest.mark.parametrize("seed", range(2))
def test_killed_while_it_writes(seed: int, whole: Path, tmp_path: Path) -> None:
    folder = again(tmp_path / "job", whole)
    chance = random.Random(seed)
    for _ in range(3):
        killed_while_writing("train", folder, chance.randint(1, 2 * SYNCS))
        assert len([each for each in (folder / "checkpoints").iterdir() if each.name.startswith("step-")]) <= 3
    good("train", folder)
    assert weights(folder) == weights(whole)
    assert told(folder) == told(whole)
    assert not [file for file in folder.rglob("*") if "partial" in file.name or file.name.startswith(".")]
    assert len(list((folder / "checkpoints").iterdir())) == 2


def test_killed_while_it_writes_the_adapter(whole: Path, tmp_path: Path) -> None:
    folder = again(tmp_path / "job", whole)
    for sync in (4 * SYNCS + 2, 5):
        assert killed_while_writing("train", folder, sync)
        assert not (folder / "trained.json").exists()
    good("train", folder)
    assert weights(folder) == weights(whole)
    assert told(folder) == told(whole)


@pytest.mark.parametrize("harm", ["flipped", "cut", "gone", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(harm: str, whole: Path, tmp_path: Path) -> None:
    folder = again(tmp_path / "job", whole)
    shutil.copytree(whole / "checkpoints", folder / "checkpoints")
    newest = folder / "checkpoints" / "step-00000012"
    file = newest / ("manifest.json" if harm == "manifest" else "optimizer.safetensors")
    if harm == "gone":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data[:100] if harm == "cut" else data)
    said = good("train", folder)
    assert "step 12 is damaged" in said.of("warning")[0]["message"]
    assert said.of("log")[0]["message"] == "goes on after step 9"
    assert weights(folder) == weights(whole)


def test_stopped_and_continued(whole: Path, tmp_path: Path) -> None:
    folder = again(tmp_path / "job", whole)

    def stop(event: dict[str, Any]) -> bool:
        if after(3, event):
            os.kill(event["pid"], signal.SIGSTOP)
            os.kill(event["pid"], signal.SIGCONT)
        return False

    assert not killed("train", folder, stop)
    assert weights(folder) == weights(whole)


# --- what fails ---
def failed(folder: Path, step: str = "train", **how: Any) -> tuple[str, str]:
    said: Said = run(step, folder, **how)
    assert str(folder) not in said.failure[1]
    return said.failure


def test_a_loss_that_is_no_number_ends_it(tiny: Path, tmp_path: Path) -> None:
    spoilt = tiny_llama.weights()
    spoilt["output_norm.weight"] = np.full(tiny_llama.WIDTH, 3e38, np.float32)
    folder = prepared(tmp_path / "job", tiny_llama.write(tmp_path / "spoilt.gguf", given=spoilt))
    code, message = failed(folder)
    assert code == "diverged"
    assert "step 1 " in message
    assert "learning_rate" in message
    assert not list((folder / "checkpoints").glob("*"))


def test_modules_that_the_model_has_not(tmp_path: Path) -> None:
    base = tiny_llama.write(tmp_path / "phi.gguf", architecture="phi3")
    folder = prepared(tmp_path / "job", base, target_modules=["q_proj", "o_proj"])
    code, message = failed(folder)
    assert code == "invalid_request"
    assert "has no q_proj; it has down_proj, gate_up_proj, o_proj, qkv_proj" in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 8 MB."""
    (folder := tmp_path / "small").mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    yield folder
    if done.returncode == 0:
        subprocess.run(["umount", folder], check=True)


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def test_a_full_disk(small_disk: Path, tiny: Path, tmp_path: Path) -> None:
    mounted = os.path.ismount(small_disk)
    folder = prepared(small_disk / "job", tiny, rank=64)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(6 << 20) if mounted else b"")
    code, message = failed(folder, limits=None if mounted else limit_files)
    assert code == "disk_full"
    assert "MB are free" in message
    if mounted:  # there was room for the first checkpoint, which takes 1.5 MB
        assert [each.name for each in (folder / "checkpoints").iterdir()] == ["step-00000003"]
    ballast.unlink()
    assert good("train", folder).of("log")[0]["message"] == "goes on after step 3"


def no_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (32 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def test_no_memory(tiny: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "job", tiny, rank=512)
    code, message = failed(folder, limits=no_memory)
    assert code == "no_memory"
    assert "batch_size" in message


def test_a_base_that_is_not_whole(tiny: Path, tmp_path: Path) -> None:
    base = tmp_path / "cut.gguf"
    base.write_bytes(tiny.read_bytes()[:-5000])
    folder = job(tmp_path / "job", base, ROWS)
    assert failed(folder, "prepare") == (
        "invalid_request",
        "'cut.gguf' is no usable GGUF file: it is cut short: "
        f"{tiny.stat().st_size - 5000} bytes of {tiny.stat().st_size}",
    )


def test_a_task_that_cannot_be_read(tiny: Path, tmp_path: Path) -> None:
    folder = job(tmp_path / "job", tiny, ROWS)
    (folder / "task.json").write_text("{")
    code, message = failed(folder)
    assert code == "internal"
    assert "JSONDecodeError" in message
