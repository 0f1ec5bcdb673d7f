from __future__ import annotations

from pathlib import Path

import pytest

from modelops.api.errors import InvalidRequest
from modelops.serving import sources
from modelops.serving.sources import HubSource, PypiSource, Source, WebSource

DIGEST = "0123456789abcdef" * 4
OTHER = "f" * 64


def pypi(package: str, version: str, file: str, *digests: str) -> PypiSource:
    return PypiSource(text="", file=file, digests=digests, package=package, version=version, members=((package, file),))


def web(url: str, host: str, file: str, *digests: str) -> WebSource:
    return WebSource(text="", file=file, digests=digests, url=url, host=host)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("pypi://llm/m.gguf", pypi("llm", "", "m.gguf")),
        ("pypi://llm==1.2/m.gguf", pypi("llm", "1.2", "m.gguf")),
        ("pypi://a.b_c-d==1!2.0rc1+local/in/side/m.gguf", pypi("a.b_c-d", "1!2.0rc1+local", "in/side/m.gguf")),
        (f"pypi://llm==1.2/m.gguf#sha256={DIGEST}", pypi("llm", "1.2", "m.gguf", DIGEST)),
        ("hf://org/repo/m.gguf", HubSource(text="", file="m.gguf", repo="org/repo")),
        (
            f"hf://o-1/r.2@refs%2Fpr%2F1/in/side/m.gguf#sha256={DIGEST}",
            HubSource(text="", file="in/side/m.gguf", digests=(DIGEST,), repo="o-1/r.2", revision="refs/pr/1"),
        ),
        ("https://host/m.gguf", web("https://host/m.gguf", "host", "m.gguf")),
        (
            f"https://Host:81/a%20b/m.gguf?token=x#sha256={DIGEST}",
            web("https://Host:81/a%20b/m.gguf?token=x", "host", "a b/m.gguf", DIGEST),
        ),
        ("https://[::1]/m.gguf", web("https://[::1]/m.gguf", "::1", "m.gguf")),
        ("http://127.0.0.1/m.gguf", web("http://127.0.0.1/m.gguf", "127.0.0.1", "m.gguf")),
        (
            f"https://h/m-00001-of-00002.gguf#sha256={DIGEST},{OTHER}",
            web("https://h/m-00001-of-00002.gguf", "h", "m-00001-of-00002.gguf", DIGEST, OTHER),
        ),
    ],
)
def test_a_source_is_understood(text: str, source: Source) -> None:
    assert sources.is_source(text)
    assert sources.parse(text) == source
    assert sources.parse(text).text == text


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("pypi://p-part[1-3]==1/m.gguf.part[00-02]", [(f"p-part{i + 1}", f"m.gguf.part0{i}") for i in range(3)]),
        ("pypi://p/m.gguf.part[8-11]", [("p", f"m.gguf.part{i}") for i in range(8, 12)]),
        ("pypi://p[008-010]/m.gguf", [(f"p0{i:02}", "m.gguf") for i in (8, 9, 10)]),
        ("pypi://p/in/m.gguf.part[1-1]", [("p", "in/m.gguf.part1")]),
    ],
)
def test_a_range_is_spread_and_its_file_is_called_without_it(text: str, members: list[tuple[str, str]]) -> None:
    source = sources.parse(text)
    assert isinstance(source, PypiSource)
    assert list(source.members) == members
    assert source.name == "m.gguf"


@pytest.mark.parametrize(
    "text",
    [
        *("pypi://", "pypi://llm", "pypi://llm/", "pypi://llm/m.bin", "pypi:///m.gguf", "pypi://llm>=1/m.gguf"),
        *("pypi://--index-url=http:/m.gguf", "pypi://-r/m.gguf", "pypi://llm==/m.gguf", "pypi://llm==1 --pre/m.gguf"),
        *("pypi://llm @ file:/m.gguf", "pypi://llm/m.gguf#sha256=abc", f"pypi://llm/m.gguf#md5={DIGEST}"),
        *("pypi://llm/m.gguf?x=1", f"pypi://llm/{'x' * 251}.gguf", "pypi://llm/../m.gguf", "pypi://llm/m\n.gguf"),
        *("hf://", "hf://m.gguf", "hf://org/m.gguf", "hf://org/repo/m.bin", "hf://org/re po/m.gguf"),
        *("hf://org/repo@/m.gguf", "hf://org/repo/a/../../m.gguf", "hf://-o/repo/m.gguf", "hf://org/repo//m.gguf"),
        *("https://", "https:///m.gguf", "https://host", "https://host/m.bin", "https://host/m.gguf#top"),
        *("https://host:x/m.gguf", "https://[::1/m.gguf", "https://host/a%2Fm.gguf", "https://host/a b/m.gguf"),
        *("https://host\\other/m.gguf", "https://host/m.gguf\t", "https://host/\ud800.gguf", "https://host/?/m.gguf"),
        *("ftp://host/m.gguf", "file:///etc/m.gguf"),
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    assert sources.is_source(text)
    with pytest.raises(InvalidRequest, match="one is written pypi://"):
        sources.parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("https://user:pass@host/m.gguf", "name and password"),
        ("https://token@host/m.gguf", "name and password"),
        ("pypi://p[1-2]/m.gguf.part[0-2]", "equally long"),
        ("pypi://p[2-1]/m.gguf", "one range"),
        ("pypi://p[0-256]/m.gguf", "at most 256"),
        ("pypi://p[1-2][1-2]/m.gguf", "one range"),
        ("pypi://p/m-00001-of-00002.gguf", "from hf:// or https:// only"),
        ("hf://org/repo/m-00002-of-00003.gguf", "by its first file"),
        ("https://host/m-00001-of-00000.gguf", "by its first file"),
        ("https://host/m-00001-of-99999.gguf", "at most 256"),
        (f"https://host/m-00001-of-00002.gguf#sha256={DIGEST}", "one for each"),
        (f"https://host/m.gguf#sha256={DIGEST},{OTHER}", "one for each"),
        ("https://host/.m.gguf", "hidden"),
        ("hf://org/repo/.m.gguf", "hidden"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        sources.parse(text)
    assert "pass@" not in refused.value.message
    assert "token@" not in refused.value.message


@pytest.mark.parametrize("text", ["m.gguf", "/models/m.gguf", "sub/m.gguf", "C:\\m.gguf", ""])
def test_a_path_is_no_source(text: str) -> None:
    assert not sources.is_source(text)


@pytest.mark.parametrize("name", sources.KNOWN)
def test_known_models_are_pinned(name: str) -> None:
    known = sources.parse(sources.KNOWN[name])
    assert isinstance(known, PypiSource)
    assert known.version
    assert known.sha256


def test_a_split_model_keeps_its_ending_and_lies_in_one_folder() -> None:
    source = sources.parse("hf://org/repo/in/big-00001-of-00003.gguf")
    assert (source.name, source.count) == ("big-00001-of-00003.gguf", 3)
    assert source.file_name("mine") == "mine-00001-of-00003.gguf"
    assert source.file_name("big-00001-of-00003") == "big-00001-of-00003.gguf"
    target = Path("/models/mine-00001-of-00003.gguf")
    assert [file.name for file in source.targets(target)] == [f"mine-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with pytest.raises(InvalidRequest, match="keeps its ending: call it …-00001-of-00003"):
        source.targets(Path("/models/mine.gguf"))
    assert sources.parse("hf://org/repo/m.gguf").file_name("mine") == "mine.gguf"


def test_a_secret_in_an_address_is_not_shown() -> None:
    source = sources.parse("https://host/m.gguf?token=secret")
    assert "secret" not in repr(source) + source.origin + source.identity + source.file
