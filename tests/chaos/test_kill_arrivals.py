"""`kill -9` of the coordinator while a file is fetched or quantised."""

from __future__ import annotations

from pathlib import Path

from bad_http import Answer, BadServer
from chaos.callers import kill, visible
from gguf_files import llama_gguf, sparse_gguf
from modelops import Client
from support import serving, wait_until

ORPHAN_S = 2.0
FAKE = {"tokens": 3}
#: The fetches of these tests come from this machine, and the smallest file is larger than what is held back.
LOCAL = {"MODELOPS_MODELS__ALLOW_PRIVATE_SOURCES": "true"}


def test_a_fetch_that_was_killed_is_not_visible_and_goes_on_after_the_restart(
    tmp_path: Path, web: BadServer, model: bytes
) -> None:
    half = len(model) // 2
    answer = web.answers["/m.gguf"] = Answer(model, hold=half)
    folder = tmp_path / "data"
    with serving(folder, fake=FAKE, env=LOCAL) as served, Client(served.rest) as client:
        client.load("m", web.url("/m.gguf"), wait=False)
        wait_until(lambda: client.model("m").progress > 0, what="some of the fetch")
        assert client.model("m").status == "loading"
        assert "fetching" in client.model("m").message
        kill(served, ORPHAN_S)
    assert visible(folder) == set()
    answer.release.set()
    with serving(folder, fake=FAKE, env=LOCAL) as served, Client(served.rest) as client:
        assert client.models(all=True) == []
        client.load("m", web.url("/m.gguf"))
        assert client.infer("m", "Hello").success
        assert client.status().devices[0].reserved_mb > 0
    assert visible(folder) == {"m.gguf"}
    assert (folder / "models" / "m.gguf").read_bytes() == model
    assert any(asked.startswith("bytes=") for asked in web.asked("range", "/m.gguf"))


def test_a_copy_that_was_killed_is_not_visible_and_is_made_after_the_restart(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    sparse_gguf(folder / "models" / "m.gguf", 1 << 28)
    with serving(folder, fake=FAKE) as served, Client(served.rest) as client:
        client.load("m", quantization=True, wait=False)
        wait_until(lambda: client.model("m").progress > 0.02, seconds=30, what="some of the copy")
        assert "quantising" in client.model("m").message
        assert client.status().devices[0].reserved_mb > 0  # the ledger was asked
        kill(served, ORPHAN_S)
    assert visible(folder) == {"m.gguf"}
    (folder / "models" / "m.gguf").unlink()
    llama_gguf(folder / "models" / "m.gguf")
    with serving(folder, fake=FAKE) as served, Client(served.rest) as client:
        assert client.models() == []
        assert client.status().devices[0].reserved_mb == 0
        client.load("m", quantization=True)
        assert client.infer("m", "Hello").success
        (copy,) = (file for file in (folder / "quantised").glob("*.gguf"))
        client.unload("m")
        client.load("m", quantization=True)
        assert [copy] == list((folder / "quantised").glob("*.gguf"))
        assert client.prune().removed == []
        client.unload("m")
        client.remove("m")
        assert "quantised copy" in client.prune().removed[0]
    assert visible(folder) == set()
