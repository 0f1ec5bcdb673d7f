"""The machine: the host within its container, NVIDIA's cards as their library tells, and machines that are made up."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from modelops.serving import devices
from modelops.serving.devices import Device, SimulatedMachine, ThisMachine
from modelops.serving.placement import MB
from nvml import A100, T4, Nvml


# --- the host ---
def limited(root: Path, **files: str) -> Path:
    """A tree in which a container's limits are written."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    for name, text in files.items():
        (root / "sys/fs/cgroup" / name.replace("__", ".")).write_text(text)
    return root


def test_the_host_has_memory_and_a_name() -> None:
    host = devices.host()
    assert host.device == "cpu"
    assert host.name.endswith(" RAM")
    assert 0 < host.free < host.total <= psutil.virtual_memory().total
    assert host.used + host.free == host.total
    assert not host.simulated


def test_a_container_bounds_the_host(tmp_path: Path) -> None:
    host = devices.host(limited(tmp_path, memory__max=str(64 * MB), memory__current=str(20 * MB)))
    assert (host.total, host.free, host.used) == (64 * MB, 44 * MB, 20 * MB)


def test_a_container_that_may_have_more_than_there_is_does_not(tmp_path: Path) -> None:
    root = limited(tmp_path, memory__max=str(2**50), memory__current="0")
    assert devices.host(root).total == psutil.virtual_memory().total
    assert devices.host(root).free < psutil.virtual_memory().total


def test_no_more_is_free_than_there_is(tmp_path: Path) -> None:
    root = limited(tmp_path, memory__max=str(MB), memory__current="0", memory__stat=f"inactive_file {MB}\n")
    assert devices.host(root).free == devices.host(root).total == MB


def test_usable_cores_follow_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    assert 1 <= devices.usable_cores() <= len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert devices.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_usable_cores_follow_the_containers_quota(tmp_path: Path) -> None:
    assert devices.usable_cores(limited(tmp_path, cpu__max="100000 100000\n")) == 1


# --- machines that are made up ---
def test_a_machine_is_as_it_is_written_in_the_order_of_its_numbers() -> None:
    machine = SimulatedMachine(["gpu1=16000", "cpu=64000/4000", "gpu0=24000/3000"])
    assert machine.devices() == (
        Device("cpu", "simulated", 64000 * MB, 60000 * MB, simulated=True),
        Device("gpu0", "simulated", 24000 * MB, 21000 * MB, simulated=True),
        Device("gpu1", "simulated", 16000 * MB, 16000 * MB, simulated=True),
    )
    assert machine.cores == devices.usable_cores()


def test_ten_are_told_in_the_order_of_their_numbers_too() -> None:
    machine = SimulatedMachine([f"gpu{number}=1" for number in reversed(range(12))])
    assert [device.device for device in machine.devices()[1:]] == [f"gpu{number}" for number in range(12)]


def test_without_the_host_among_them_it_is_the_real_one() -> None:
    host, gpu = SimulatedMachine(["gpu0=100"]).devices()
    assert (host.simulated, host.total) == (False, devices.host().total)
    assert gpu.simulated
    assert len(SimulatedMachine([]).devices()) == 1


def test_others_use_no_more_than_all() -> None:
    (host,) = SimulatedMachine(["cpu=100/300"]).devices()
    assert (host.free, host.used) == (0, 100 * MB)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "gpu0",
        "gpu0=",
        "gpu0=1/",
        "gpu=1",
        "tpu0=1",
        "gpu0=-1",
        "gpu0=1.5",
        "gpu0=1GB",
        "gpu0 = 1",
        "cpu0=1",
        " gpu0=1",
    ],
)
def test_what_is_no_device_is_refused_with_how_one_is_written(written: str) -> None:
    with pytest.raises(ValueError, match=r"is no simulated device; one is written gpu0=24000 or gpu0=24000/3000"):
        SimulatedMachine([written])


@pytest.mark.parametrize(
    "written", [["gpu1=1"], ["gpu0=1", "gpu2=1"], ["gpu0=1", "gpu0=2"], ["cpu=1", "cpu=2"], ["gpu00=1"]], ids=str
)
def test_gpus_are_numbered_from_0_on_and_each_is_there_once(written: list[str]) -> None:
    with pytest.raises(ValueError, match="numbered from gpu0 on, each device once"):
        SimulatedMachine(written)


# --- NVIDIA's cards ---
def gpus(monkeypatch: pytest.MonkeyPatch, nvml: Nvml) -> list[Device]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    host, *found = ThisMachine().devices()
    assert host.device == "cpu"
    return found


def test_every_card_is_told_with_who_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus(monkeypatch, Nvml(A100, T4)) == [
        Device("gpu0", "A100", 40 * MB, 30 * MB, 60.0, 55.0, {7: 5 * MB, 8: 5 * MB}, "GPU-a1"),
        Device("gpu1", "T4", 16 * MB, 16 * MB, 0.0, 30.0, {9: 0}, "GPU-b2"),
    ]


def test_what_the_driver_keeps_for_itself_is_neither_used_nor_free(monkeypatch: pytest.MonkeyPatch) -> None:
    (idle, busy) = gpus(monkeypatch, Nvml(T4 | {"memory": (16 * MB, 15 * MB), "reserved": MB}, A100 | {"reserved": MB}))
    assert [(card.total, card.used, card.free) for card in (idle, busy)] == [
        (16 * MB, 0, 15 * MB),
        (40 * MB, 9 * MB, 30 * MB),
    ]


@pytest.mark.parametrize("old", ["driver", "library", "binding"])
def test_a_driver_that_does_not_tell_what_it_keeps_is_read_as_before(monkeypatch: pytest.MonkeyPatch, old: str) -> None:
    nvml = Nvml(A100 | {"reserved": MB}, refused={("reserved", 0)} if old == "driver" else None)
    if old == "library":
        monkeypatch.delattr(Nvml, "nvmlMemory_v2")
    if old == "binding":
        told = nvml.nvmlDeviceGetMemoryInfo
        monkeypatch.setattr(nvml, "nvmlDeviceGetMemoryInfo", lambda handle: told(handle), raising=False)
    (card,) = gpus(monkeypatch, nvml)
    assert (card.total, card.used, card.free) == (40 * MB, 10 * MB, 30 * MB)


def test_they_are_read_fresh_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    card = A100.copy()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(card))
    machine = ThisMachine()
    assert machine.devices()[1].free == 30 * MB
    card["memory"] = (40 * MB, 10 * MB)
    assert machine.devices()[1].free == 10 * MB


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        (None, ["gpu0", "gpu1", "gpu2"]),
        ("", []),
        ("-1", []),
        ("1", ["gpu1"]),
        ("2, 0", ["gpu0", "gpu2"]),
        ("GPU-c", ["gpu2"]),
        ("0,7,1", ["gpu0"]),
        ("GPU-,0", []),  # it could be any
        ("MIG-c3", []),
    ],
)
def test_only_what_programs_may_see_is_used(written: str | None, seen: list[str]) -> None:
    cards = [Device(f"gpu{number}", "", 1, 1, uuid=f"GPU-{letter}") for number, letter in enumerate("abc")]
    assert [card.device for card in devices.visible(cards, written)] == seen


def test_that_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(A100, T4))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [device.device for device in ThisMachine().devices()] == ["cpu", "gpu1"]


@pytest.mark.parametrize("what", ["processes", "busy", "heat", "name", "uuid"])
def test_a_card_that_does_not_tell_something_is_there_all_the_same(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    full = gpus(monkeypatch, Nvml(A100))[0]
    (card,) = gpus(monkeypatch, Nvml(A100, refused={(what, 0)}))
    assert (card.total, card.free) == (40 * MB, 30 * MB)
    told: dict[str, tuple[object, object, object]] = {
        "processes": (card.used_by, full.used_by, {}),
        "busy": (card.utilization_percent, full.utilization_percent, None),
        "heat": (card.temperature_celsius, full.temperature_celsius, None),
        "name": (card.name, full.name, "NVIDIA"),
        "uuid": (card.uuid, full.uuid, ""),
    }
    assert all((now == otherwise) if key == what else (now == before) for key, (now, before, otherwise) in told.items())


@pytest.mark.parametrize("what", ["handle", "memory"])
def test_a_card_that_does_not_tell_its_memory_keeps_its_number_and_has_none(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    first, second = gpus(monkeypatch, Nvml(A100, T4, refused={(what, 0)}))
    assert (first.device, first.total, first.free) == ("gpu0", 0, 0)
    assert (second.device, second.total) == ("gpu1", 16 * MB)


def test_without_a_driver_there_are_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpus(monkeypatch, Nvml(A100, refused={("init", 0)})) == []
    assert ThisMachine().cores == devices.usable_cores()


def test_a_driver_that_stopped_answering_is_noted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert gpus(monkeypatch, Nvml(A100, refused={("count", 0)})) == []
    assert "the GPUs cannot be read: Not Supported" in caplog.text
