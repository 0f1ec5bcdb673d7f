"""Makes docs/settings.md from the settings, docs/metrics.md from the families of /metrics and docs/openai.md from the
tables of fields, and the tables of parameters in docs/learning.md and docs/goals.md; with --check only says whether
they are up to date.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from modelops.api.forms import ANNOTATIONS, KEPT, NOT_KEPT
from modelops.api.goals import (
    AvailabilityObjective,
    CreateGoalRequest,
    GoalLimits,
    QualityObjective,
    ServingObjective,
    Workload,
)
from modelops.api.learning import DpoParameters, EvaluateParameters, LoraParameters
from modelops.cli import serve
from modelops.metrics.families import FAMILIES, UNKNOWN
from modelops.settings import PREFIX, described
from modelops.transports.openai_fields import CHAT, COMPLETIONS, EMBEDDINGS, RERANK

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

OPENAI = """# OpenAI's clients

Programs that are written for OpenAI's API work with a coordinator as it is: give them its address, and a key of its own
where it wants one.

```python
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8008/v1", api_key="mok_…")  # any text where no key is needed
client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "Hello"}])
```

Whole programs are on the pages of each client: [OpenAI's for Python](clients/openai-python.md),
[LangChain](clients/langchain.md), [Pydantic AI](clients/pydantic-ai.md) and [curl](clients/curl.md).

It is another form of the [same operations](api.md): the same queue, limits, scopes, counters and deadlines
(`X-Request-Timeout`). These routes are not in `/openapi.json`, which describes our own forms.

| route | operation | scope |
| --- | --- | --- |
| `GET /v1/models` | list models, all that are registered | `models` |
| `GET /v1/models/{id}` | describe | `models` |
| `POST /v1/chat/completions` | chat | `infer` |
| `POST /v1/completions` | infer, with `raw` | `infer` |
| `POST /v1/embeddings` | embed | `infer` |
| `POST /v1/rerank` | rerank | `infer` |

A model is listed by its name and by each of its [aliases](models.md#the-catalogue-file). Its `created` is when it was
loaded, 0 while it is not. `system_fingerprint` is the model's version. A stream that is cut short ends with the event
`{"error": …}` and without `[DONE]`.

## Fields

No field is ignored in silence: what is not here is refused, by name, with 400; null is the same as nothing. *Accepted*
means: without effect. Within a schema that is not `strict`, what an engine does not keep to
[is left out](#schemas).
"""
SCHEMAS = """
## Schemas

An engine makes a grammar of a JSON Schema, and an answer cannot but keep to that, unless it ends by its length. Of
these keywords it makes one; what is not in the table it would leave out in silence. So:

* With `"strict": true` in `json_schema` or in a function, and in the `json_schema` of [chat](api.md#conversations),
  which has no such flag, whatever else a schema says is refused, by its path:
  `response_format.json_schema.schema.properties.zip.pattern`.
* Without it a schema is kept to as far as the table goes, and the rest of it is not: check what you get.

| of | keyword | |
| --- | --- | --- |
"""
AFTER_SCHEMAS = f"""
*Alone* is beside nothing but what says nothing of values, which is always accepted:
{", ".join(f"`{one}`" for one in sorted(ANNOTATIONS))}, and all that begins with `x-`.

So answers do not keep to the bounds of a `number`, nor to
{", ".join(f"`{one}`" for one in NOT_KEPT)}.

Of functions this is told of models whose chat template knows none. Where it knows them, the model writes its calls as
its template has them, and some templates write texts in which anything may stand.

Beside `properties` of its own an object's `additionalProperties` may get names that are no JSON; the answer is an
error then.

Always refused is what an engine would hang or die of, or keep everybody else waiting with: a `minLength` above its
`maxLength`, a type that is named twice, more than 500 properties of one object that are not required, 500 schemas
within each other, or 1,000 values of `enum` and schemas of `anyOf` and `oneOf` in all; a `pattern` of more than 5,000
characters, or with more than 16 parts in a row that may be empty, as `[a-z]?` and `x*` may, repetitions written out.
So are `true` and `false` in the place of a schema, which an engine does not take: `{{}}` is any value.
"""
AFTER_OPENAI = """
## Errors

`{"error": {"message", "type", "param", "code"}}`, with the status of the [same error](api.md#errors) elsewhere,
`Retry-After` where waiting helps, and `x-request-id`. `code` is ours, but for `invalid_api_key` (401),
`model_not_found` (404) and `context_length_exceeded` (400). OpenAI's clients ask again after 409, 429 and all from 500
on; where that is in vain (409, 501, 507), would only wait as long again (504), or has been done already (502: a
request whose engine broke was asked twice), `x-should-retry: false` tells them.

There is nothing on the line before the first word of an answer, also while its model is loaded or a long prompt is
read: a proxy between must be as patient. CORS is not offered: pages of the web are no callers here.
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


def openai() -> str:
    """The page of OpenAI's fields."""
    page = OPENAI
    tables = {"chat/completions": CHAT, "completions": COMPLETIONS, "embeddings": EMBEDDINGS, "rerank": RERANK}
    for path, fields in tables.items():
        page += f"\n### POST /v1/{path}\n\n| field | | |\n| --- | --- | --- |\n"
        for name, field in fields.items():
            taken = " or ".join(f"`{json.dumps(value)}`" for value in field.neutral)
            notes = [f"but for {taken}"] * bool(taken) + [field.note] * bool(field.note)
            page += f"| `{name}` | {field.kind} | {_cell('; '.join(notes))} |\n"
    page += SCHEMAS
    for kind, keywords in KEPT.items():
        for keyword, note in keywords.items():
            page += f"| {kind} | `{keyword}` | {_cell(note)} |\n"
    return page + AFTER_SCHEMAS + AFTER_OPENAI


def learning() -> str:
    """The page of learning jobs, with its tables of parameters."""
    tables = {
        "lora": _parameters(LoraParameters),
        "dpo": _parameters(DpoParameters, beside=LoraParameters),
        "evaluate": _parameters(EvaluateParameters),
    }
    return _with_tables("learning.md", tables)


def goals() -> str:
    """The page of goals, with its tables of fields."""
    tables = {
        "a goal": _parameters(CreateGoalRequest),
        "limits": _parameters(GoalLimits),
        "quality": _parameters(QualityObjective),
        "serving": _parameters(ServingObjective),
        "workload": _parameters(Workload),
        "availability": _parameters(AvailabilityObjective),
    }
    return _with_tables("goals.md", tables)


def _with_tables(name: str, tables: dict[str, str]) -> str:
    """The page as it is, with these tables in their places."""
    page = (DOCS / name).read_text(encoding="utf-8")
    for kind, table in tables.items():
        page = re.sub(rf"(<!-- parameters of {kind} -->\n).*?(<!-- end -->)", rf"\1{table}\2", page, flags=re.DOTALL)
    return page


def _parameters(of: type[BaseModel], beside: type[BaseModel] | None = None) -> str:
    """A table of the fields; without those that another type has alike."""
    known = beside.model_json_schema()["properties"] if beside else {}
    told = "| parameter | default | may be | |\n| --- | --- | --- | --- |\n"
    for name, schema in of.model_json_schema()["properties"].items():
        if schema == known.get(name):
            continue
        field = of.model_fields[name]
        default = field.default
        unsaid = default is None or default is PydanticUndefined or isinstance(default, BaseModel)
        written = "*required*" if field.is_required() else "" if unsaid else f"`{json.dumps(default)}`"
        told += f"| `{name}` | {written} | {_allowed(schema)} | {_cell(schema.get('description', ''))} |\n"
    return told


def _allowed(schema: dict[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in schema:
        return "an object, see below"
    if schema.get("type") == "object":
        return "an object"
    if "anyOf" in schema:  # or null, which is the same as nothing
        return _allowed(next(one for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return _items(schema["items"])
    if schema["type"] == "string":
        return "a time, as `2027-01-31T12:00:00Z`" if schema.get("format") == "date-time" else "a text"
    if schema["type"] == "boolean":
        return "`true`, `false`"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]:,}" for key, sign in signs.items() if key in schema]
    return ("an integer " if schema["type"] == "integer" else "a number ") + ", ".join(bounds)


def _items(of: dict[str, Any]) -> str:
    if of.get("type") == "object":
        return "a list of objects"
    return "a list of texts" if "enum" not in of and of.get("type") == "string" else f"some of {_allowed(of)}"


def _cell(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "&#124;")


def main() -> None:
    """Generate in place, or compare."""
    pages = {"settings.md": settings, "metrics.md": metrics, "openai.md": openai}
    pages |= {"learning.md": learning, "goals.md": goals}
    for name, made in pages.items():
        page = made()
        target = DOCS / name
        if "--check" not in sys.argv:
            target.write_text(page, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != page:
            raise SystemExit(f"docs/{name} is out of date; run 'python scripts/docs.py'")


if __name__ == "__main__":
    main()
