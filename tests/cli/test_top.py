"""What `modelops top` makes of two looks: rates, rows, and a picture that fits the terminal. Nothing is asked here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from modelops.api import types
from modelops.cli.looks import Look, Rate, Rates, rates
from modelops.cli.picture import COLUMNS, bar, duration, fitting, picture, rows, size

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)
URL = "http://127.0.0.1:8008"
HOST = types.DeviceStatus(device="cpu", total_mb=20_000, used_mb=9_500, reserved_mb=4_000, utilization_percent=42.4)


def model(name: str = "m", **fields: Any) -> types.ModelInfo:
    return types.ModelInfo(model_name=name, **({"model_version": "v1", "status": "loaded", "slots": 4} | fields))


def seen(up: float, *models: types.ModelInfo, written: int = 0, read: int = 0, **fields: Any) -> Look:
    """A look at a coordinator that has been up for so long."""
    told = {"cpu_usage_percent": 0.0, "memory_used_mb": 0, "memory_total_mb": 0, "version": "1.2.3", "devices": [HOST]}
    status = types.SystemStatus(
        **(told | {"uptime_seconds": up, "tokens_generated": written, "prompt_tokens": read} | fields)
    )
    return Look(status, list(models), types.HealthResponse(status="healthy", timestamp=NOW))


def drawn(look: Look, found: Rates | None = None, width: int = 80, height: int | None = 24, **more: str) -> list[str]:
    """The lines of the picture, without their styles."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as capture:
        console.print(picture(look, found or Rates(), URL, width, height, **more))
    return [line.rstrip() for line in capture.get().splitlines()]


# --- rates ---
def test_rates_are_what_the_counters_grew_by_in_a_second() -> None:
    before = seen(10.0, model(tokens_generated=100, prompt_tokens=1000), written=150, read=2000)
    after = seen(12.0, model(tokens_generated=200, prompt_tokens=1500), written=350, read=3000)
    assert rates(before, after) == Rates(2.0, Rate(100.0, 500.0), {"m": Rate(50.0, 250.0)})
    assert rates(before, after).as_json() == {
        "seconds": 2.0,
        "tokens_generated": 100.0,
        "prompt_tokens": 500.0,
        "models": {"m": {"tokens_generated": 50.0, "prompt_tokens": 250.0}},
    }


def test_after_a_restart_rates_are_what_was_done_since() -> None:
    before = seen(100.0, model(tokens_generated=5000, prompt_tokens=900), written=5000, read=900)
    after = seen(2.0, model(tokens_generated=40, prompt_tokens=0), model("n", tokens_generated=10), written=50)
    assert rates(before, after) == Rates(2.0, Rate(25.0, 0.0), {"m": Rate(20.0, 0.0), "n": Rate(5.0, 0.0)})


def test_no_rate_is_negative_and_a_model_that_comes_has_none_yet() -> None:
    before = seen(1.0, model(tokens_generated=10, prompt_tokens=10), written=500, read=500)
    after = seen(2.0, model(tokens_generated=5), model("came", tokens_generated=400), written=405)  # one was removed
    assert rates(before, after) == Rates(1.0, Rate(), {"m": Rate(), "came": Rate()})


def test_without_any_time_between_there_are_no_rates() -> None:
    assert rates(seen(1.0, model()), seen(1.0, model(tokens_generated=9))) == Rates()


# --- words ---
@pytest.mark.parametrize(
    ("seconds", "parts", "told"),
    [
        (-3, 1, "0 s"),
        (59.9, 1, "59 s"),
        (61, 1, "1 min"),
        (61, 2, "1 min 1 s"),
        (3600, 2, "1 h 0 min"),
        (90_000, 2, "1 d 1 h"),
        (5, 2, "5 s"),
    ],
)
def test_times_are_told_in_their_largest_units(seconds: float, parts: int, told: str) -> None:
    assert duration(seconds, parts) == told


def test_sizes_are_short() -> None:
    assert [size(mb) for mb in (0, 527, 9_999, 10_240, 81_920)] == ["0 MB", "527 MB", "9999 MB", "10.0 GB", "80.0 GB"]


# --- rows ---
def test_the_busiest_models_come_first() -> None:
    look = seen(
        9.0,
        model("asked-long-ago", last_used_at=NOW - timedelta(hours=1)),
        model("asked-lately", last_used_at=NOW - timedelta(seconds=5)),
        model("a-never"),
        model("writes", active_requests=1),
        model("writes-more", active_requests=1),
        model("waits", active_requests=1, queued_requests=3),
    )
    found = rows(look, Rates(1.0, models={"writes": Rate(1.0), "writes-more": Rate(9.0)}))
    names = ["waits", "writes-more", "writes", "asked-lately", "asked-long-ago", "a-never"]
    assert [row.name for row in found] == names


def test_a_row_tells_a_model_in_words() -> None:
    soon = NOW + timedelta(minutes=4, seconds=59)
    busy = model(active_requests=3, queued_requests=2, memory_usage_mb=527, last_used_at=NOW - timedelta(seconds=7))
    [row] = rows(seen(1.0, busy), Rates(1.0, models={"m": Rate(48.25, 1234.5)}))
    assert (row.active, row.waiting, row.written, row.read) == ("3/4", "2", "48.2", "1234")
    assert (row.memory, row.asked, row.expires, row.breaker) == ("527 MB", "7 s ago", "", "")
    [row] = rows(seen(1.0, model(status="loading", progress=0.42, slots=0, breaker="half_open")), Rates())
    assert (row.status, row.active, row.written, row.breaker) == ("loading 42%", "0", "-", "half open")
    assert rows(seen(1.0, model(expires_at=soon)), Rates())[0].expires == "4 min"
    assert rows(seen(1.0, model(pinned=True)), Rates())[0].expires == "pinned"


# --- columns ---
FULL = model(memory_usage_mb=20_000, last_used_at=NOW, expires_at=NOW + timedelta(hours=3), breaker="open")


def titles(width: int, *models: types.ModelInfo) -> list[str]:
    return [column.title for column in fitting(rows(seen(1.0, *models), Rates()), width)]


def test_every_column_is_there_where_there_is_room() -> None:
    assert titles(200, FULL) == [column.title for column in COLUMNS]


def test_the_columns_that_matter_most_stay() -> None:
    name = "a-model-whose-name-is-long-and-would-take-the-room-of-all-others"
    usual = model(name, memory_usage_mb=527)
    assert titles(80, usual) == ["MODEL", "VERSION", "STATUS", "ACTIVE", "WAITING", "WRITTEN/S", "READ/S", "MEMORY"]
    assert titles(50, usual) == ["MODEL", "STATUS", "ACTIVE", "WRITTEN/S"]
    assert titles(1, usual) == ["MODEL", "ACTIVE", "WRITTEN/S"]


def test_a_column_that_would_be_empty_is_left_out() -> None:
    assert {"BREAKER", "MEMORY", "ASKED", "EXPIRES"} & set(titles(200, model())) == set()


# --- devices ---
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "██▒▒▒░░░░░"),
        ({"used_mb": 1_000}, "██░░░░░░░░"),  # held, and not taken yet
        ({"used_mb": 20_000, "reserved_mb": 0}, "▒▒▒▒▒▒▒▒▒▒"),
        ({"reserved_mb": 1}, "█▒▒▒▒▒░░░░"),  # little is not nothing
        ({"reserved_mb": 99_000}, "██████████"),
        ({"total_mb": 0}, "░░░░░░░░░░"),
    ],
    ids=["both", "held", "others", "little", "too much", "unknown"],
)
def test_a_bar_shows_what_models_hold_what_others_use_and_what_is_free(fields: dict[str, Any], told: str) -> None:
    assert bar(HOST.model_copy(update=fields), 10).plain == told


# --- the whole ---
GPU = types.DeviceStatus(
    device="gpu0",
    total_mb=81_920,
    used_mb=71_000,
    reserved_mb=70_000,
    utilization_percent=100,
    temperature_celsius=65,
)


def fits(lines: Sequence[str], width: int, height: int) -> bool:
    return len(lines) <= height and max(map(len, lines)) <= width


def test_the_picture_has_everything() -> None:
    counts = {"active_requests": 1, "queued_requests": 2, "learning_jobs_running": 3, "goals_active": 4}
    look = seen(3720.0, model(active_requests=1, memory_usage_mb=527), devices=[HOST, GPU], **counts)
    found = Rates(1.0, Rate(48.2, 120.0), {"m": Rate(48.2, 120.0)})
    lines = drawn(look, found, foot="q ends")
    assert fits(lines, 80, 24)
    assert lines[0] == f"ModelOps Coordinator 1.2.3  healthy  up 1 h 2 min  {URL}"
    assert lines[1] == "requests 1 active, 2 waiting  jobs 3  goals 4  tokens/s 48.2 written, 120 read"
    assert lines[3] == "cpu   ████▒▒▒▒▒░░░░░░░░░  9500 MB of 19.5 GB used, models 4000 MB   42 %"
    assert lines[4] == "gpu0  ███████████████▒░░  69.3 GB of 80.0 GB used, models 68.4 GB  100 %  65 °C"
    assert lines[6] == "MODEL  VERSION  STATUS  ACTIVE  WAITING  WRITTEN/S  READ/S  MEMORY"
    assert lines[7] == "m      v1       loaded     1/4        0       48.2     120  527 MB"
    assert lines[8:] == ["", "q ends"]


def test_what_is_wrong_is_told() -> None:
    look = seen(1.0, model(status="failed", message="out of luck", breaker="open"))
    sick = types.HealthResponse(status="degraded", timestamp=NOW, components={"rest": "healthy", "models": "failed: m"})
    lines = drawn(Look(look.status, look.models, sick))
    assert "degraded" in lines[0]
    assert lines[2] == "models: failed: m"
    assert lines[-1] == "m: out of luck"
    assert lines[-2].split() == ["m", "v1", "failed", "open", "0/4", "0", "-", "-"]


def test_what_would_steer_the_terminal_is_not_drawn() -> None:
    lines = drawn(seen(1.0, model("m\x1b[2J", message="red:\x1b[31m\nnext\tline")))
    assert lines[-1] == "m [2J: red: [31m next line"
    assert lines[-2].startswith("m [2J  v1 ")


def test_without_models_the_picture_says_so() -> None:
    assert drawn(seen(1.0))[-1] == "no model is loaded"


@pytest.mark.parametrize("problem", ["", f"cannot be reached: no coordinator answers at {URL}/a/path; trying again"])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (50, 12), (200, 50), (30, 14)])
def test_the_picture_fits_the_terminal(width: int, height: int, problem: str) -> None:
    models = [model(f"model-{number}-{'x' * number}", message="why not") for number in range(40)]
    gpus = [GPU.model_copy(update={"device": f"gpu{number}"}) for number in range(16)]
    look = seen(99_999.0, *models, FULL, devices=[HOST, *gpus])
    lines = drawn(look, width=width, height=height, problem=problem, foot="q ends")
    assert fits(lines, width, height)
    assert lines[-1] == "q ends"
    assert any(line.endswith("more devices") for line in lines) == (height < 50)
    assert any(line.endswith("more models") for line in lines)
    if problem:
        assert lines[0].startswith("cannot be reached: ")


def test_a_picture_without_a_height_leaves_nothing_out() -> None:
    lines = drawn(seen(1.0, *(model(f"m{number}") for number in range(100))), width=10_000, height=None)
    assert sum(line.startswith("m") for line in lines) == 100
