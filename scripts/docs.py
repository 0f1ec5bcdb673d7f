"""Makes docs/settings.md from the settings themselves; with --check only says whether it is up to date."""

import sys
from pathlib import Path

from modelops.cli import serve
from modelops.settings import PREFIX, described

TARGET = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
HEAD = """# Settings

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


def page() -> str:
    """The whole page."""
    flags = {option.name: option.opts[0] for option in serve.params}
    rows = []
    for key, default, description in described():
        # A flag is named as the key, with or without its section.
        flag = flags.get(key.replace(".", "_")) or flags.get(key.rpartition(".")[2])
        variable = PREFIX + key.replace(".", "__").upper()
        what = description.replace("<", "&lt;").replace("|", "&#124;")
        rows.append(f"| `{key}` | `{default}` | {what} | `{variable}` | {f'`{flag}`' if flag else ''} |\n")
    return HEAD + "".join(rows)


def main() -> None:
    """Generate in place, or compare."""
    if "--check" not in sys.argv:
        TARGET.write_text(page(), encoding="utf-8")
    elif not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != page():
        raise SystemExit("docs/settings.md is out of date; run 'python scripts/docs.py'")


if __name__ == "__main__":
    main()
