"""Fetches from the hub with the real huggingface_hub, which talks to a server of ours that answers as a hub does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bad_http import Answer, BadServer, bad_server
from modelops.api.errors import InvalidRequest, ModelOpsError, NotAvailable, NotFound
from modelops.serving.sources import DiskFull, FetchFailed
from serving.sources.fetching import CONTENT, LOCAL, Fetching

huggingface_hub = pytest.importorskip("huggingface_hub")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HALF = len(CONTENT) // 2


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Hub:
    """A hub, and the other server that it sends to for the bytes of large files."""

    api: BadServer
    cdn: BadServer

    def publish(
        self, file: str, content: bytes, *, revision: str = "main", at: str = "", told: Mapping[str, str] = {}
    ) -> Answer:
        """Put `file` on the hub; what answers for its bytes."""
        there = f"/{digest(content)}"
        headers = {
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{digest(content)}"',
            "X-Linked-Size": str(len(content)),
            "Location": (at or self.cdn.url("")) + there,
            **told,
        }
        for name in (revision, COMMIT):
            self.api.answers[f"/org/repo/resolve/{name}/{file}"] = Answer(status=302, headers=headers)
        answer = self.cdn.answers[there] = Answer(content, etag=f'"{digest(content)}"')
        return answer

    def cache(self, file: str, folder: Path) -> Path:
        """Have huggingface_hub itself fetch `file` to its cache in `folder`."""
        found = huggingface_hub.hf_hub_download(
            "org/repo", file, endpoint=self.api.url(""), cache_dir=folder / "hub" / "hub", token=False
        )
        self.api.requests.clear()
        self.cdn.requests.clear()
        return Path(found)


@pytest.fixture
def hub(server: BadServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, with a cache and a token of the user's own."""
    monkeypatch.setenv("HF_ENDPOINT", server.url(""))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with bad_server() as cdn:
        yield Hub(server, cdn)


async def test_a_file_is_fetched_by_its_commit_and_checked_by_the_hubs_digest(fetching: Fetching, hub: Hub) -> None:
    hub.publish("in/side/m.gguf", CONTENT, revision="v1.0")
    await fetching.fetch("hf://org/repo@v1.0/in/side/m.gguf")
    assert fetching.files == {"m.gguf": CONTENT}
    assert list(fetching.root.iterdir()) == [fetching.target]
    assert fetching.seen[-1] == (len(CONTENT), len(CONTENT))
    assert [(request.method, request.path) for request in hub.api.requests] == [
        ("HEAD", "/org/repo/resolve/v1.0/in/side/m.gguf"),
        ("GET", f"/org/repo/resolve/{COMMIT}/in/side/m.gguf"),
    ]


async def test_a_revision_may_hold_a_slash(fetching: Fetching, hub: Hub) -> None:
    hub.publish("m.gguf", CONTENT, revision="refs%2Fpr%2F1")
    await fetching.fetch("hf://org/repo@refs%2Fpr%2F1/m.gguf")
    assert fetching.files == {"m.gguf": CONTENT}


async def test_the_token_goes_to_the_hub_and_to_nobody_else(fetching: Fetching, hub: Hub) -> None:
    hub.publish("m.gguf", CONTENT)
    await fetching.fetch("hf://org/repo/m.gguf")
    assert fetching.files == {"m.gguf": CONTENT}
    assert set(hub.api.asked("authorization")) == {"Bearer hf_secret"}
    assert hub.cdn.asked("authorization") == [""]


async def test_what_came_before_a_failure_is_not_fetched_again(fetching: Fetching, hub: Hub) -> None:
    hub.publish("m.gguf", CONTENT).cut = [HALF]
    with pytest.raises(FetchFailed, match=f"goes on from byte {HALF}") as failed:
        await fetching.fetch("hf://org/repo/m.gguf", replace(LOCAL, retries=0))
    assert "hf_secret" not in failed.value.message
    assert (fetching.files, fetching.kept) == ({}, HALF)
    await fetching.fetch("hf://org/repo/m.gguf")
    assert fetching.files == {"m.gguf": CONTENT}
    assert hub.cdn.asked("range", f"/{digest(CONTENT)}") == ["", f"bytes={HALF}-"]


async def test_what_came_is_of_no_use_when_the_branch_has_moved_on(fetching: Fetching, hub: Hub) -> None:
    hub.publish("m.gguf", CONTENT).cut = [HALF]
    with pytest.raises(FetchFailed):
        await fetching.fetch("hf://org/repo/m.gguf", replace(LOCAL, retries=0))
    hub.publish("m.gguf", CONTENT[::-1])
    await fetching.fetch("hf://org/repo/m.gguf")
    assert fetching.files == {"m.gguf": CONTENT[::-1]}
    assert hub.cdn.asked("range", f"/{digest(CONTENT[::-1])}") == [""]


async def test_a_split_model_is_fetched_in_all_its_files_with_one_progress(fetching: Fetching, hub: Hub) -> None:
    contents = {f"m-0000{part}-of-00003.gguf": CONTENT[:: part + 1] for part in (1, 2, 3)}
    for file, content in contents.items():
        hub.publish(f"q4/{file}", content)
    await fetching.fetch("hf://org/repo/q4/m-00001-of-00003.gguf", name="m-00001-of-00003.gguf")
    assert fetching.files == contents
    total = sum(map(len, contents.values()))
    assert fetching.seen[-1] == (total, total)
    assert {told for _, told in fetching.seen} == {0, total}


async def test_a_split_model_that_lacks_a_file_is_not_begun(fetching: Fetching, hub: Hub) -> None:
    hub.publish("m-00001-of-00002.gguf", CONTENT)
    missing = Answer(status=404, headers={"X-Error-Code": "EntryNotFound"})
    hub.api.answers[f"/org/repo/resolve/{COMMIT}/m-00002-of-00002.gguf"] = missing
    with pytest.raises(NotFound):
        await fetching.fetch("hf://org/repo/m-00001-of-00002.gguf", name="m-00001-of-00002.gguf")
    assert list(fetching.root.iterdir()) == []
    assert hub.cdn.requests == []


# --- the cache ---
@pytest.mark.parametrize("offline", [False, True])
async def test_what_is_in_the_hubs_cache_is_not_fetched(
    fetching: Fetching, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    hub.publish("m.gguf", CONTENT)
    cached = hub.cache("m.gguf", tmp_path)
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    await fetching.fetch(f"hf://org/repo/m.gguf#sha256={digest(CONTENT)}")
    assert fetching.files == {"m.gguf": CONTENT}
    assert fetching.target.stat().st_ino == cached.stat().st_ino  # no second copy on the disk
    assert not fetching.target.is_symlink()
    assert [request.method for request in hub.api.requests] == ([] if offline else ["HEAD"])


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [(CONTENT[::-1], f"not {digest(CONTENT)}; nothing was kept"), (CONTENT[:HALF], f"came with {HALF} bytes")],
)
async def test_a_damaged_cache_is_noticed_and_left_alone(
    fetching: Fetching, hub: Hub, tmp_path: Path, damaged: bytes, reason: str
) -> None:
    hub.publish("m.gguf", CONTENT)
    cached = hub.cache("m.gguf", tmp_path)
    cached.write_bytes(damaged)
    with pytest.raises(FetchFailed, match=reason):
        await fetching.fetch("hf://org/repo/m.gguf")
    assert list(fetching.root.iterdir()) == []
    assert cached.read_bytes() == damaged  # it is not ours to mend


# --- what goes wrong ---
@pytest.mark.parametrize(
    ("status", "code", "error", "reason"),
    [
        (404, "EntryNotFound", NotFound, "'org/repo' has no file 'm.gguf'"),
        (404, "RevisionNotFound", NotFound, "'org/repo' has no revision 'main'"),
        (404, "RepoNotFound", NotFound, "no repository 'org/repo', or it is private"),
        (401, "RepoNotFound", NotFound, "no repository 'org/repo', or it is private"),
        (403, "GatedRepo", FetchFailed, "accept its terms on the hub"),
        (403, "", FetchFailed, "it answered HTTP 403"),
        (500, "", FetchFailed, "it answered HTTP 500"),
    ],
)
async def test_what_the_hub_refuses_is_told(
    fetching: Fetching, hub: Hub, status: int, code: str, error: type[ModelOpsError], reason: str
) -> None:
    answer = Answer(status=status, headers={"X-Error-Code": code, "X-Repo-Commit": COMMIT})
    hub.api.answers["/org/repo/resolve/main/m.gguf"] = answer
    with pytest.raises(error, match=reason) as failed:
        await fetching.fetch("hf://org/repo/m.gguf")
    assert "hf_secret" not in failed.value.message
    assert list(fetching.root.iterdir()) == []


async def test_a_hub_that_cannot_be_reached_is_told(
    fetching: Fetching, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(FetchFailed, match="it could not be reached; try again later"):
        await fetching.fetch("hf://org/repo/m.gguf")


async def test_a_hub_that_may_not_be_asked_is_told(
    fetching: Fetching, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FetchFailed, match="HF_HUB_OFFLINE forbids"):
        await fetching.fetch("hf://org/repo/m.gguf")
    assert hub.api.requests == []


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"X-Linked-Etag": '"' + "0" * 64 + '"'}, r"has the digest .*, not 0000"),
        ({"X-Linked-Size": "299999"}, "with 300000 bytes, and the hub lists it with 299999"),
    ],
)
async def test_bytes_that_are_not_what_the_hub_lists_are_not_kept(
    fetching: Fetching, hub: Hub, told: dict[str, str], reason: str
) -> None:
    hub.publish("m.gguf", CONTENT, told=told)
    with pytest.raises(FetchFailed, match=reason):
        await fetching.fetch("hf://org/repo/m.gguf")
    assert list(fetching.root.iterdir()) == []


async def test_a_size_that_does_not_fit_is_refused_before_a_byte_comes(fetching: Fetching, hub: Hub) -> None:
    hub.publish("m.gguf", CONTENT, told={"X-Linked-Size": str(10**17)})
    with pytest.raises(DiskFull):
        await fetching.fetch("hf://org/repo/m.gguf")
    assert [request.method for request in hub.api.requests] == ["HEAD"]


@pytest.mark.parametrize("place", ["https://127.0.0.1:1", "https://localhost", "https://169.254.169.254"])
async def test_the_hub_may_be_private_but_where_it_redirects_to_may_not(
    fetching: Fetching, hub: Hub, place: str
) -> None:
    hub.publish("m.gguf", CONTENT, at=place)
    with pytest.raises(FetchFailed, match=r"redirects to .*private network"):
        await fetching.fetch("hf://org/repo/m.gguf", replace(LOCAL, allow_private=False))
    for revision in ("main", COMMIT):  # a small file, which the hub itself sends
        hub.api.answers[f"/org/repo/resolve/{revision}/m.gguf"] = Answer(b"small", headers={"X-Repo-Commit": COMMIT})
    await fetching.fetch("hf://org/repo/m.gguf", replace(LOCAL, allow_private=False))
    assert fetching.files == {"m.gguf": b"small"}


async def test_a_name_that_is_none_is_the_callers_mistake(fetching: Fetching, hub: Hub) -> None:
    with pytest.raises(InvalidRequest, match="no name of a repository"):
        await fetching.fetch("hf://org/a--b/m.gguf")


async def test_without_the_package_it_says_what_to_install(
    fetching: Fetching, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(NotAvailable, match=r"pip install 'modelops-coordinator\[hub\]'"):
        await fetching.fetch("hf://org/repo/m.gguf")
