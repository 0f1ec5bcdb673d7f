"""Makes docs/settings.md from the settings and docs/metrics.md from the families of /metrics; with --check only says
whether they are up to date."""

import re
import sys
from pathlib import Path

from modelops.cli import serve
from modelops.metrics.families import FAMILIES, UNKNOWN
from modelops.settings import PREFIX, described

DOCS = Path(__file__).resolve().parent.parent / "docs"
SETTINGS = """# Settings

Each setting can be given in four places; a later one wins:

1. its default,
2. a TOML file, named by `modelops serve --config FILE` or by the variable `MODELOPS_CONFIG`,
3. a variable in the environment: `MODELOPS_`, then the key in capitals with two underscores for the dot,
4. where there is one, a flag of `modelops serve`.

So these three say the same:

```toml
[server]
rest_port = 9000
```

```sh
MODELOPS_SERVER__REST_PORT=9000 modelops serve
modelops serve --rest-port 9000
```

Settings are read once, at the start. A key that does not exist, or a value that does not fit, ends the start with a
message that names it. `MODELOPS_URL`, `MODELOPS_API_KEY` and
`MODELOPS_CA_FILE` are no settings: clients read them.

| key | default | what it is | variable | flag |
| --- | --- | --- | --- | --- |
"""


METRICS = f"""# Metrics

Every family of `/metrics`. [Observability](observability.md#metrics) tells how to scrape them and what to look at.

A histogram `x` has the series `x_bucket` (with the label `le`), `x_sum` and `x_count`. The label `model` is the name of
a registered model, or `{UNKNOWN}`. Names with a dot in the last column are fixed by the [specification](spec/api.md);
the others are ours.

| name | type | labels | meaning | specified |
| --- | --- | --- | --- | :---: |
"""
AFTER_METRICS = """
`process_*` and `python_gc_*` are of the coordinator's own process, without its engines: its memory, CPU time, open
files and start.
"""


def settings() -> str:
    """The page of settings."""
    flags = {option.name: option.opts[0] for option in serve.params}
    rows = []
    for key, default, description in described():
        # A flag is named as the key, with or without its section.
        flag = flags.get(key.replace(".", "_")) or flags.get(key.rpartition(".")[2])
        variable = PREFIX + key.replace(".", "__").upper()
        told = _cell(description)
        rows.append(f"| `{key}` | `{default}` | {told} | `{variable}` | {f'`{flag}`' if flag else ''} |\n")
    return SETTINGS + "".join(rows)


def metrics() -> str:
    """The page of families."""
    specified = set(re.findall(r"^moc_\w+", (DOCS / "spec" / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    rows = []
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        mark = "•" if family.name in specified else ""
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {_cell(family.help)} | {mark} |\n")
    return METRICS + "".join(rows) + AFTER_METRICS


def _cell(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "&#124;")


def main() -> None:
    """Generate in place, or compare."""
    for name, page in (("settings.md", settings()), ("metrics.md", metrics())):
        target = DOCS / name
        if "--check" not in sys.argv:
            target.write_text(page, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != page:
            raise SystemExit(f"docs/{name} is out of date; run 'python scripts/docs.py'")


if __name__ == "__main__":
    main()
