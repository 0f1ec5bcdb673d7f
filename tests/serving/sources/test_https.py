"""Fetches over the web from a server that does what servers should not do. Most go without TLS, to this machine."""

from __future__ import annotations

import asyncio
import hashlib
import re
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from bad_http import Answer, BadServer
from modelops.api.errors import InternalError, InvalidRequest, NotFound
from modelops.serving.sources import DiskFull, FetchFailed
from modelops.tasks import Tasks
from serving.sources.fetching import CONTENT, LOCAL, Fetching, ended, is_root
from support import need, wait_until

HALF = len(CONTENT) // 2
RIGHT = hashlib.sha256(CONTENT).hexdigest()
WRONG = "0" * 64
FETCHED = {"m.gguf": CONTENT}


# --- what goes well ---
async def test_a_file_is_fetched_with_its_progress_and_nothing_beside_it(fetching: Fetching, server: BadServer) -> None:
    server.answers["/in/side/m.gguf?token=x"] = Answer(CONTENT)
    await fetching.fetch(server.url(f"/in/side/m.gguf?token=x#sha256={RIGHT}"))
    assert fetching.files == FETCHED
    assert list(fetching.root.iterdir()) == [fetching.target]
    assert fetching.seen == sorted(fetching.seen)
    assert fetching.seen[-1] == (len(CONTENT), len(CONTENT))
    assert server.asked("accept-encoding") == ["identity"]


async def test_a_file_that_is_there_is_replaced_or_known_by_its_digest(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT)
    fetching.target.write_bytes(b"another")
    await fetching.fetch(server.url("/m.gguf"))
    await fetching.fetch(server.url(f"/m.gguf#sha256={RIGHT}"))
    assert fetching.files == FETCHED
    assert len(server.requests) == 1


async def test_a_file_in_chunks_has_no_length_and_is_whole_all_the_same(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT, chunked=True)
    await fetching.fetch(server.url("/m.gguf"))
    assert fetching.files == FETCHED
    assert {total for _, total in fetching.seen} == {0}


async def test_an_announcement_before_the_answer_is_no_part_of_it(fetching: Fetching, server: BadServer) -> None:
    head = f"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: {len(CONTENT)}\r\n\r\n"
    server.answers["/m.gguf"] = Answer(raw=head.encode() + CONTENT)
    await fetching.fetch(server.url("/m.gguf"))
    assert fetching.files == FETCHED


async def test_a_split_model_is_fetched_in_all_its_files(fetching: Fetching, server: BadServer) -> None:
    contents = [CONTENT[:1000], CONTENT[1000:], b"the rest"]
    for index, content in enumerate(contents):
        server.answers[f"/m-0000{index + 1}-of-00003.gguf?t=1"] = Answer(content)
    digests = ",".join(hashlib.sha256(content).hexdigest() for content in contents)
    await fetching.fetch(server.url(f"/m-00001-of-00003.gguf?t=1#sha256={digests}"), name="my-00001-of-00003.gguf")
    assert fetching.files == {f"my-0000{index + 1}-of-00003.gguf": content for index, content in enumerate(contents)}
    done = len(CONTENT) + len(b"the rest")
    assert fetching.seen[-1] == (done, done)


async def test_a_split_model_appears_with_all_its_files_or_not_at_all(fetching: Fetching, server: BadServer) -> None:
    source, name = server.url("/m-00001-of-00002.gguf"), "m-00001-of-00002.gguf"
    server.answers["/m-00001-of-00002.gguf"] = Answer(CONTENT)
    with pytest.raises(NotFound, match=r"no file 'm-00002-of-00002\.gguf'"):
        await fetching.fetch(source, name=name)
    assert fetching.files == {}
    server.answers["/m-00002-of-00002.gguf"] = Answer(b"second")
    await fetching.fetch(source, name=name)
    assert fetching.files == {name: CONTENT, "m-00002-of-00002.gguf": b"second"}
    assert len(server.asked("host", "/m-00001-of-00002.gguf")) == 1  # what was whole was not fetched again


# --- broken off, and resumed ---
@pytest.mark.parametrize(
    ("answer", "ranges"),
    [
        pytest.param(Answer(CONTENT, cut=[HALF, HALF // 2]), ["", HALF, HALF + HALF // 2], id="twice"),
        pytest.param(Answer(CONTENT, cut=[0, HALF]), ["", "", HALF], id="at once"),
        pytest.param(Answer(CONTENT, cut=[HALF], ranges=False), ["", HALF], id="server without ranges"),
        pytest.param(
            Answer(CONTENT, cut=[HALF], etag="", headers={"Last-Modified": "Tue, 01 Sep 2026 00:00:00 GMT"}),
            ["", HALF],
            id="date instead of an ETag",
        ),
        pytest.param(Answer(CONTENT, cut=[HALF], etag='W/"1"'), ["", ""], id="weak ETag"),
        pytest.param(Answer(CONTENT, cut=[HALF], etag=""), ["", ""], id="nothing to know it by"),
        pytest.param(Answer(CONTENT, cut=[HALF], content_range="bytes 7-9/300000"), ["", HALF, ""], id="wrong range"),
        pytest.param(Answer(CONTENT, cut=[HALF], content_range="nonsense"), ["", HALF, ""], id="no range"),
    ],
)
async def test_a_connection_that_breaks_off_is_resumed(
    fetching: Fetching, server: BadServer, answer: Answer, ranges: list[object]
) -> None:
    server.answers["/m.gguf"] = answer
    if answer.headers:
        answer.headers = dict(answer.headers) | {"X-Kept": "1"}
    await fetching.fetch(server.url("/m.gguf"))
    assert fetching.files == FETCHED
    assert server.asked("range") == [start and f"bytes={start}-" for start in ranges]


async def test_what_came_before_a_failure_is_not_fetched_again(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf?token=old"] = Answer(CONTENT, cut=[HALF])
    with pytest.raises(FetchFailed, match=rf"broke off, 1 times; the same call goes on from byte {HALF}"):
        await fetching.fetch(server.url("/m.gguf?token=old"), replace(LOCAL, retries=0))
    assert (fetching.files, fetching.kept) == ({}, HALF)
    server.answers["/m.gguf?token=new"] = Answer(CONTENT)
    await fetching.fetch(server.url("/m.gguf?token=new"))  # a passing secret does not make another file of it
    assert fetching.files == FETCHED
    assert server.asked("range") == ["", f"bytes={HALF}-"]
    assert server.asked("if-range") == ["", '"1"']
    assert (HALF, len(CONTENT)) in fetching.seen


@pytest.mark.parametrize(
    ("length", "blind"),
    [(len(CONTENT), False), (len(CONTENT), True), (HALF // 2, False), (HALF // 2, True), (2 * len(CONTENT), False)],
)
async def test_a_file_that_changed_in_between_is_fetched_anew(
    fetching: Fetching, server: BadServer, length: int, blind: bool
) -> None:
    changed = (bytes(reversed(CONTENT)) * 2)[:length]
    server.answers["/m.gguf"] = Answer(CONTENT, cut=[HALF])
    with pytest.raises(FetchFailed):
        await fetching.fetch(server.url("/m.gguf"), replace(LOCAL, retries=0))
    server.answers["/m.gguf"] = Answer(changed, etag='"2"', blind=blind)
    await fetching.fetch(server.url("/m.gguf"))
    assert fetching.files == {"m.gguf": changed}


async def test_a_server_that_is_busy_is_asked_again(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT, status=503, failures=2)
    await fetching.fetch(server.url("/m.gguf"))
    assert fetching.files == FETCHED


async def test_a_killed_process_loses_nothing_and_leaves_nobody(fetching: Fetching, server: BadServer) -> None:
    answer = server.answers["/m.gguf"] = Answer(CONTENT, hold=HALF)
    with fetching.start(server.url("/m.gguf")) as process:
        wait_until(lambda: fetching.kept == HALF)
        [child] = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        wait_until(lambda: ended(child))
    assert server.gone.wait(10)
    assert fetching.files == {}
    answer.hold = -1
    await fetching.fetch(server.url("/m.gguf"))
    assert fetching.files == FETCHED
    assert server.asked("range") == ["", f"bytes={HALF}-"]


async def test_the_end_of_the_fetching_process_is_told_and_mended(
    fetching: Fetching, server: BadServer, begun: Callable[[], list[psutil.Process]]
) -> None:
    answer = server.answers["/m.gguf"] = Answer(CONTENT, hold=HALF)
    tasks = Tasks("test")
    task = tasks.start("fetch", fetching.fetch(server.url("/m.gguf")))
    await asyncio.to_thread(wait_until, lambda: fetching.kept == HALF)
    [child] = begun()
    child.kill()
    with pytest.raises(FetchFailed, match=r"was ended \(-9\)"):
        await task
    answer.hold = -1
    await fetching.fetch(server.url("/m.gguf"))
    assert server.asked("range") == ["", f"bytes={HALF}-"]


async def test_a_cancelled_fetch_ends_at_once_and_is_resumed(
    fetching: Fetching, server: BadServer, begun: Callable[[], list[psutil.Process]]
) -> None:
    answer = server.answers["/m.gguf"] = Answer(CONTENT, hold=HALF)
    tasks = Tasks("test")
    tasks.start("fetch", fetching.fetch(server.url("/m.gguf")))
    await asyncio.to_thread(wait_until, lambda: fetching.kept == HALF)
    async with asyncio.timeout(3):
        await tasks.close()
    assert server.gone.wait(3)
    assert begun() == []
    assert fetching.files == {}
    answer.hold = -1
    await fetching.fetch(server.url("/m.gguf"))
    assert fetching.files == FETCHED
    assert server.asked("range") == ["", f"bytes={HALF}-"]


# --- two at once ---
async def test_of_two_processes_one_fetches_and_the_other_takes_its_result(
    fetching: Fetching, server: BadServer
) -> None:
    answer = server.answers["/m.gguf"] = Answer(CONTENT, hold=HALF)
    tasks = Tasks("test")
    with fetching.start(server.url("/m.gguf")) as first:
        await asyncio.to_thread(wait_until, lambda: fetching.kept == HALF)
        second = tasks.start("fetch", fetching.fetch(server.url("/m.gguf")))
        await asyncio.to_thread(wait_until, lambda: (HALF, len(CONTENT)) in fetching.seen)
        answer.release.set()
        await second
        assert first.communicate(timeout=10)[0] == "fetched\n"
    assert fetching.files == FETCHED
    assert list(fetching.root.iterdir()) == [fetching.target]
    assert len(server.requests) == 1


async def test_who_waits_goes_on_where_a_killed_one_was(fetching: Fetching, server: BadServer) -> None:
    answer = server.answers["/m.gguf"] = Answer(CONTENT, hold=HALF)
    tasks = Tasks("test")
    with fetching.start(server.url("/m.gguf")) as first:
        await asyncio.to_thread(wait_until, lambda: fetching.kept == HALF)
        second = tasks.start("fetch", fetching.fetch(server.url("/m.gguf")))
        await asyncio.to_thread(wait_until, lambda: (HALF, len(CONTENT)) in fetching.seen)
        answer.hold = -1
        first.kill()
        await second
    assert fetching.files == FETCHED
    assert server.asked("range") == ["", f"bytes={HALF}-"]


async def test_many_at_once_fetch_once(fetching: Fetching, server: BadServer) -> None:
    answer = server.answers["/m.gguf"] = Answer(CONTENT, hold=0)
    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(fetching.fetch(server.url(f"/m.gguf#sha256={RIGHT}")))
        await asyncio.to_thread(wait_until, lambda: server.requests)
        answer.release.set()
    assert fetching.files == FETCHED
    assert len(server.requests) == 1


# --- lies ---
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(Answer(CONTENT, declared=2 * len(CONTENT)), "HTTP 416, 4 times", id="too long"),
        pytest.param(Answer(CONTENT, declared=HALF), f"more than the {HALF} bytes that it declared", id="too short"),
        pytest.param(Answer(CONTENT, plus=b"more"), "more than the 300000 bytes", id="something behind it"),
        pytest.param(Answer(b""), "the file is empty", id="empty"),
        pytest.param(Answer(b"", chunked=True), "the file is empty", id="empty chunks"),
        pytest.param(Answer(CONTENT, declared=-1), "name its digest", id="no length"),
        pytest.param(Answer(raw=b"no HTTP at all\r\n\r\n"), "broke off, 4 times", id="no HTTP"),
        pytest.param(
            Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"),
            "broke off, 4 times",
            id="two lengths",
        ),
        pytest.param(Answer(raw=b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000), "broke off", id="endless head"),
        pytest.param(
            Answer(raw=b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc"),
            "HTTP 206",
            id="unasked range",
        ),
        pytest.param(Answer(CONTENT, headers={"Content-Encoding": "gzip"}), "packs the file (gzip)", id="packed"),
        pytest.param(Answer(status=500), "HTTP 500, 4 times", id="fault"),
        pytest.param(Answer(status=403), "refuses it (HTTP 403)", id="forbidden"),
        pytest.param(Answer(status=418), "HTTP 418 instead of the file", id="teapot"),
        pytest.param(Answer(status=302), "HTTP 302 instead of the file", id="redirect to nowhere"),
        pytest.param(Answer(status=302, headers={"Location": "/m.gguf"}), "redirects more than 5 times", id="loop"),
        pytest.param(
            Answer(status=302, headers={"Location": "https://u:p@127.0.0.1/m.gguf"}),
            "with a password",
            id="password",
        ),
        pytest.param(Answer(status=302, headers={"Location": "ftp://127.0.0.1/m"}), "away from https://", id="to ftp"),
    ],
)
async def test_a_server_that_lies_is_not_believed(
    fetching: Fetching, server: BadServer, answer: Answer, reason: str
) -> None:
    server.answers["/m.gguf?token=secret"] = server.answers["/m.gguf"] = answer
    with pytest.raises(FetchFailed, match=re.escape(reason)) as failed:
        await fetching.fetch(server.url("/m.gguf?token=secret"))
    assert "secret" not in failed.value.message
    assert str(fetching.root) not in failed.value.message
    assert list(fetching.root.iterdir()) == []


@pytest.mark.parametrize(
    "content_range", ["bytes 150000-299999/400000", "bytes 150000-199999/300000"], ids=["other total", "cut range"]
)
async def test_a_continuation_that_contradicts_what_was_said_starts_over(
    fetching: Fetching, server: BadServer, content_range: str
) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT, cut=[HALF], content_range=content_range)
    await fetching.fetch(server.url("/m.gguf"))
    assert fetching.files == FETCHED


async def test_a_continuation_longer_than_the_file_is_cut_off(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT, cut=[HALF])
    with pytest.raises(FetchFailed):
        await fetching.fetch(server.url("/m.gguf"), replace(LOCAL, retries=0))
    told = f"bytes {HALF}-{len(CONTENT) - 1}/{len(CONTENT)}"
    server.answers["/m.gguf"] = Answer(CONTENT * 2, chunked=True, content_range=told)
    with pytest.raises(FetchFailed, match=f"more than the {len(CONTENT)} bytes that it declared"):
        await fetching.fetch(server.url("/m.gguf"))
    assert list(fetching.root.iterdir()) == []


async def test_a_wrong_digest_keeps_nothing_and_replaces_nothing(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT, declared=-1)
    fetching.target.write_bytes(b"what was there")
    with pytest.raises(FetchFailed, match=f"{RIGHT}, not {WRONG}; nothing was kept"):
        await fetching.fetch(server.url(f"/m.gguf#sha256={WRONG}"))
    assert list(fetching.root.iterdir()) == [fetching.target]
    assert fetching.files == {"m.gguf": b"what was there"}


async def test_an_unknown_file_is_told_as_such(fetching: Fetching, server: BadServer) -> None:
    with pytest.raises(NotFound, match=r"'127\.0\.0\.1' has no file 'm\.gguf'") as failed:
        await fetching.fetch(server.url("/m.gguf?token=secret"))
    assert "secret" not in failed.value.message
    assert list(fetching.root.iterdir()) == []


# --- time ---
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(Answer(CONTENT, hold=HALF), "no byte came in 0.5 s", id="stalled body"),
        pytest.param(Answer(CONTENT, drip_s=0.04), r"only \d+ bytes came in 0.5 s", id="slow drip"),
        pytest.param(Answer(CONTENT, drip_s=0.04, drip_head=True), "no byte came in 0.5 s", id="slow head"),
    ],
)
async def test_a_stall_ends(fetching: Fetching, server: BadServer, answer: Answer, reason: str) -> None:
    server.answers["/m.gguf"] = answer
    with pytest.raises(FetchFailed, match=reason):
        await fetching.fetch(server.url("/m.gguf"), replace(LOCAL, stall_s=0.5))
    assert server.gone.wait(5)
    assert fetching.files == {}


async def test_a_server_that_never_shakes_hands_is_told(fetching: Fetching) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/m.gguf"
        with pytest.raises(FetchFailed, match="no connection in time, 2 times"):
            await fetching.fetch(url, replace(LOCAL, connect_s=0.1, retries=1))


# --- the disk ---
async def test_a_length_that_does_not_fit_is_refused_before_it_comes(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT, declared=10**17)
    with pytest.raises(DiskFull, match=f"^{10**17} more bytes do not fit"):
        await fetching.fetch(server.url("/m.gguf"))
    assert list(fetching.root.iterdir()) == []


async def test_what_is_to_stay_free_stays_free(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT)
    with pytest.raises(DiskFull, match="stay free"):
        await fetching.fetch(server.url("/m.gguf"), replace(LOCAL, reserve_bytes=10**17))


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """No more than `size` bytes fit: a file system of its own where that is allowed, else a bound on files' sizes."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if is_root() and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # the fetching process inherits it
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_disk_that_fills_up_is_told_and_freed(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT, chunked=True)
    with small_disk(fetching.root, 128 * 1024):
        with pytest.raises(DiskFull, match="make room and try again") as failed:
            await fetching.fetch(server.url("/m.gguf"))
        assert list(fetching.root.iterdir()) == []
    assert str(fetching.root) not in failed.value.message


def test_a_folder_that_may_not_be_written_is_told_as_such(fetching: Fetching, server: BadServer) -> None:
    server.answers["/m.gguf"] = Answer(CONTENT)
    fetching.root.chmod(0o555)
    less = "-dac_override,-dac_read_search"  # what lets root write everywhere
    prefix = [need("setpriv"), "--bounding-set", less, "--inh-caps", less] if is_root() else []
    with fetching.start(server.url("/m.gguf"), prefix=prefix) as process:
        told = process.communicate(timeout=20)[0]
    assert told == (
        "internal 'm.gguf' cannot be kept in the models folder: Permission denied; the server's user must be able to "
        "write there\n"
    )
    assert server.requests == []


async def test_a_folder_that_is_none_is_told_as_such(fetching: Fetching, server: BadServer) -> None:
    fetching.root.rmdir()
    fetching.root.write_text("no folder")
    with pytest.raises(InternalError, match="Not a directory") as failed:
        await fetching.fetch(server.url("/m.gguf"))
    assert str(fetching.root) not in failed.value.message


# --- addresses ---
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0.0.0.0", "169.254.169.254"],
)
async def test_private_addresses_are_refused(fetching: Fetching, server: BadServer, host: str) -> None:
    with pytest.raises(InvalidRequest, match="private network; such are refused"):
        await fetching.fetch(server.url("/m.gguf", "https", host), replace(LOCAL, allow_private=False))
    assert server.requests == []


@pytest.mark.parametrize(
    ("text", "allow", "reason"),
    [
        ("http://127.0.0.1/m.gguf", False, "http:// is refused"),
        ("http://8.8.8.8/m.gguf", True, "anybody on the way could change"),
        ("https://☃/m.gguf", True, "is none"),
    ],
)
async def test_addresses_that_are_not_safe_or_none_are_refused(
    fetching: Fetching, text: str, allow: bool, reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        await fetching.fetch(text, replace(LOCAL, allow_private=allow))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https://no-such-name.invalid/m.gguf", "cannot be resolved"),
        ("https://exa..mple/m.gguf", "cannot be resolved"),
        ("https://xn--a/m.gguf", "cannot be resolved"),
        ("http://127.0.0.1:1/m.gguf", "no connection, 4 times"),
    ],
)
async def test_a_server_that_cannot_be_reached_is_told(fetching: Fetching, text: str, reason: str) -> None:
    with pytest.raises(FetchFailed, match=reason):
        await fetching.fetch(text)
    assert list(fetching.root.iterdir()) == []
