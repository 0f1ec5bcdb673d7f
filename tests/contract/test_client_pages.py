"""Every program in docs/clients runs as it stands there, against the real default model.

Only the addresses are replaced. The key is told in the environment, and the certificate lies where it is run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from certificates import self_signed
from support import Served, make_key, need, serving, tiny_gguf

PAGES = sorted((Path(__file__).parents[2] / "docs/clients").glob("*.md"))
BLOCK = re.compile(r"^## ([^\n]*)\n(?:(?!^##? ).)*?^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKS = {"bash": [pytest.mark.program("curl")], "python": []}
PROGRAMS = [
    pytest.param(title, language, program, id=f"{page.stem}-{title}", marks=MARKS[language])
    for page in PAGES
    for title, language, program in BLOCK.findall(page.read_text())
]
PLAIN, GUARDED = "http://localhost:8008", "https://gpubox.example.com:8008"
#: Of the programs with tools: what a small model calls, and how often, is for test_tools.py to look at.
CALL = {
    "index": 0,
    "id": "call-1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Paris"}'},
}
CALLING = {
    "calls": [{"delta": {"tool_calls": [CALL]}}, {"delta": {}, "finish_reason": "tool_calls"}],
    "choices": [{"delta": {"content": "It is sunny in Paris."}}, {"delta": {}, "finish_reason": "stop"}],
}


@pytest.fixture(scope="module")
def plain(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with a model to talk to and one that embeds."""
    links = [("smollm2", smollm2), ("vectors", smollm2)]
    with serving(tmp_path_factory.mktemp("plain"), links=links, load=["smollm2"]) as running:
        wanted = {"model_name": "vectors", "model_type": "embedding"}
        httpx.post(f"{running.rest}/models", json=wanted, timeout=60).raise_for_status()
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture(scope="module")
def calling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One whose model calls a function, until it is told what that gave."""
    folder = tmp_path_factory.mktemp("calling")
    with serving(folder / "data", links=[("smollm2", tiny_gguf(folder / "tiny"))], fake=CALLING) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path, str]]:
    """One behind TLS that wants a key; the folder with its certificate; a key."""
    folder = tmp_path_factory.mktemp("guarded")
    pair = self_signed(folder)
    env = {"MODELOPS_TLS__CERT_FILE": str(pair.cert), "MODELOPS_TLS__KEY_FILE": str(pair.key)}
    (folder / "data").mkdir()
    key = make_key(folder / "data", "client", "--scope", "infer", "--scope", "models")
    with serving(folder / "data", links=[("smollm2", smollm2)], env=env) as running:
        yield running, folder, key


def test_every_program_is_found() -> None:
    assert len(PAGES) == 4
    written = "\n".join(page.read_text() for page in PAGES)
    assert len(PROGRAMS) == len(re.findall(r"^```(python|bash)$", written, re.MULTILINE))


@pytest.mark.engine
@pytest.mark.parametrize(("title", "language", "program"), PROGRAMS)
def test_it_runs(title: str, language: str, program: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    env: dict[str, str] = {}
    if GUARDED in program:
        served, folder, key = request.getfixturevalue("guarded")
        program, env = program.replace(GUARDED, served.rest), {"MODELOPS_API_KEY": key}
    else:
        served, folder = request.getfixturevalue("calling" if title == "Tools" else "plain"), tmp_path
        assert PLAIN in program
        program = program.replace(PLAIN, served.rest)
    if language == "bash":
        argv = ["bash", "-e", "-c", program]
        need("curl")
    else:
        argv = [sys.executable, "-c", program]
    ended = subprocess.run(argv, cwd=folder, env=os.environ | env, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
    if language == "bash":
        check(title, ended.stdout)
    else:
        assert ended.stderr == ""
        if title == "Tools":
            assert "Paris" in ended.stdout
            assert ended.stdout.endswith("It is sunny in Paris.\n")


def check(title: str, printed: str) -> None:
    """What curl has printed is the answer."""
    if title == "A stream":
        *lines, last = printed.split("\n\n")[:-1]
        assert last == "data: [DONE]"
        assert json.loads(lines[-1].removeprefix("data: "))["usage"]["completion_tokens"] > 0
        return
    answer: dict[str, Any] = json.loads(printed)
    if title == "Embeddings":
        assert len(answer["data"]) == 2
        return
    message = answer["choices"][0]["message"]
    assert message["content"] or message["tool_calls"][0]["function"]["name"] == "weather"
    if title == "Structured output":
        assert json.loads(message["content"]).keys() == {"name", "country"}
