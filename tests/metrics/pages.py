"""A page of /metrics as plain values."""

from __future__ import annotations

from collections.abc import Mapping

import httpx
from prometheus_client.parser import text_string_to_metric_families

#: (name of the sample, its labels in order) → value.
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def kinds(text: str) -> dict[str, str]:
    """The families that are announced: name as it is written → type."""
    told = [line.split() for line in text.splitlines() if line.startswith("# TYPE ")]
    return {name: kind for _, _, name, kind in told}


def samples(text: str) -> Samples:
    """Every sample."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(rest: str, key: str = "") -> Samples:
    """What the coordinator at that address shows now."""
    answer = httpx.get(f"{rest}/metrics", headers={"X-API-Key": key} if key else {}, timeout=30)
    assert answer.status_code == 200, answer.text
    return samples(answer.text)


def value(found: Samples, name: str, labels: Mapping[str, str] | None = None) -> float:
    """The sample, or the sum of those that have at least these labels; 0 where there is none."""
    wanted = (labels or {}).items()
    return sum(number for (other, has), number in found.items() if other == name and wanted <= dict(has).items())


def moved(before: Samples, after: Samples, *beginnings: str) -> Samples:
    """By how much the samples have changed, of those whose names begin so; what has not is left out."""
    changes = {key: number - before.get(key, 0.0) for key, number in after.items() if key[0].startswith(beginnings)}
    return {key: change for key, change in changes.items() if change}
