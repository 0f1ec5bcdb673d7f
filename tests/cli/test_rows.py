"""What is written on the command line for a learning job: files of rows, and parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelops.api.errors import InvalidRequest
from modelops.api.learning import JobType, parameters_of
from modelops.cli.rows import parameters, read_rows


def test_rows_are_read_whatever_a_system_puts_around_them(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        b"\xef\xbb\xbf" + '{"text": "größer\u2028x"}\r\n{"text": "🌊", "n": [1.5, null]}\r\n\r\n  \n'.encode()
    )
    assert read_rows(file, "--data") == [{"text": "größer\u2028x"}, {"text": "🌊", "n": [1.5, None]}]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"text": "a"}\n{"text": "b"\n', "line 2: is no JSON: expecting ',' delimiter, at column 13"),
        (b'{"text": "a"}\n[1]\n\n', "line 2: is no JSON object"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: is not UTF-8"),
        (b'{"text": NaN}', "line 1: is no JSON: there is no NaN in it"),
        (b'{"text": ' + b"[" * 100_000, "line 1: is no JSON: "),
        (b'{"text": "a"}\n{"n": [1e999]}', "line 2: is no JSON: a number is too large"),
        (b'{"n": ' + b"1" * 5000 + b"}", "line 1: is no JSON: a number is too large"),
        (rb'{"text": "\ud83c\udf0a"}' + b"\n" + rb'{"text": "\ud800"}', "line 2: has half of a surrogate pair"),
        (b'{"text": "a"}\n \r\n{"text": "b"}\n', "line 2: is blank; take it out"),
        (b'\n{"text": "a"}\n', "line 1: is blank"),
        (b"", "has no rows"),
        (b"\n \n", "has no rows"),
        (b"{}\n" * 100_001, "over 100000 rows, .* --eval-path"),
    ],
)
def test_a_line_that_is_no_row_is_told_by_its_number(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=told):
        read_rows(file, "--eval")


def test_what_is_no_file_or_too_large_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot be read here: Is a directory; .* --data-path"):
        read_rows(tmp_path, "--data")
    large = tmp_path / "large.jsonl"
    with large.open("wb") as opened:
        opened.truncate((64 << 20) + 1)
    with pytest.raises(InvalidRequest, match=r"over 64 MB, .* --data-path"):
        read_rows(large, "--data")


@pytest.mark.parametrize(
    ("job_type", "written", "meant"),
    [
        ("lora", [], {}),
        ("lora", ["learning_rate=1e-3", "rank=8", "rank=4"], {"learning_rate": 0.001, "rank": 4}),
        ("lora", ["schedule=linear", " over_length = drop "], {"schedule": "linear", "over_length": "drop"}),
        ("lora", ["target_modules=q_proj, v_proj"], {"target_modules": ["q_proj", "v_proj"]}),
        ("dpo", ["target_modules=q_proj", "beta=0.5"], {"target_modules": ["q_proj"], "beta": 0.5}),
        ("dpo", ['target_modules=["q_proj"]'], {"target_modules": ["q_proj"]}),
        (
            "lora",
            ["evaluation.metrics=f1,rouge_l", "evaluation.max_tokens=5", "evaluation.system=a=b"],
            {"evaluation": {"metrics": ["f1", "rouge_l"], "max_tokens": 5, "system": "a=b"}},
        ),
        ("evaluate", ["metrics=f1", "system=5", "max_tokens=5"], {"metrics": ["f1"], "system": "5", "max_tokens": 5}),
    ],
)
def test_parameters_are_what_they_look_like(job_type: JobType, written: list[str], meant: dict[str, Any]) -> None:
    assert parameters(job_type, written) == meant
    told = parameters_of(job_type, parameters(job_type, written)).model_dump()
    assert json.loads(json.dumps(told))


@pytest.mark.parametrize("written", ["rank", "=5", ".rank=5", "evaluation.=5", "", "a..b=1"])
def test_what_is_not_written_as_one_is_told(written: str) -> None:
    with pytest.raises(InvalidRequest, match="NAME=VALUE"):
        parameters("lora", [written])


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "[1, NaN]", "1" * 5000, "[" * 100_000])
def test_a_value_that_no_json_can_hold_is_told(value: str) -> None:
    with pytest.raises(InvalidRequest, match="'learning_rate' has got a value that is no JSON: "):
        parameters("lora", [f"learning_rate={value}"])
    assert parameters("evaluate", ["system=NaN"]) == {"system": "NaN"}


def test_a_value_cannot_have_values_within(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="rank has got a value already"):
        parameters("lora", ["rank=5", "rank.x=5"])
