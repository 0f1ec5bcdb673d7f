"""Every answer is as the OpenAPI document says: to requests made from it, and to requests that are nearly so.

schemathesis makes them, the same in each run; SCHEMATHESIS_EXAMPLES says how many random ones for each operation,
beside those that try each bound of each field.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import schemathesis
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from contract import wires
from contract.wires import Wire
from kept_goals import REACHED, keep_goal
from kept_jobs import ENDED, keep
from modelops.api.operations import OPERATIONS
from modelops.transports.openapi import document
from support import Served, make_key, serving, tiny_gguf, wait_until

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "40"))
#: Name → type; they are loaded before each operation, whatever the one before did to them.
MODELS = {"quick": "llm", "vectors": "embedding", "scores": "reranker"}
#: These are not.
OTHERS = ("other", "another")
POOLING = {"llm": 0, "embedding": 1, "reranker": 4}

KNOWN = {
    "model_name": [*MODELS, *OTHERS],
    "model_version": ["v1", "v2", "v3", "all"],
    "model_path": [f"{name}.gguf" for name in MODELS],
    "job_id": [ENDED],
    "goal_id": [REACHED],
    **{kind: [name for name, other in MODELS.items() if other == kind] for kind in POOLING},
}
ASKING = {"infer": "llm", "chat": "llm", "embed": "embedding", "rerank": "reranker"}
#: A learning job that can be created: of all that may be said of one, little fits together.
JOB = {"job_type": "evaluate", "model_name": "quick", "dataset_path": "rows.jsonl"}
#: And such a goal.
GOAL = {"title": "it answers", "objective": {"type": "availability", "models": ["quick"]}}


def half(name: str) -> dict[str, Any]:
    """A value that is known, in half of the requests."""
    return {"dictionary": name, "probability": 0.5}


#: Refused for what no schema can say: a file that is not there, a model of another type, fields that exclude each
#: other, JSON within a text.
BY_MEANING = "|".join(
    (
        *("model_path", "is a model of type", "must be (a )?JSON", "exclude each other", "tool_choice (is|wants)"),
        *("logprobs only", "the same name", "parameters", "dataset", "output_model_name", "objective", "limits"),
        *("target_completion",),
    )
)
#: What follows from the system's state, or from what this release lacks. 500 is never right.
TOLD = ["501", "502", "503", "504", "507"]
CONFIG: dict[str, Any] = {
    "seed": 7,
    "request-timeout": 30,
    "generation": {
        "deterministic": True,
        "database": "none",
        "max-examples": EXAMPLES,
        # The key is the test's to show; that none and wrong ones are refused is tried by the check "ignored_auth".
        "with-security-parameters": False,
    },
    # Random names are those of no model; half of the requests are about one that there is.
    "dictionaries": {name: {"values": values} for name, values in KNOWN.items()},
    "parameters": {f"{place}.{name}": half(name) for name in KNOWN for place in ("path", "body")},
    "operations": [
        {"include-operation-id": name, "parameters": {"body.model_name": half(kind)}} for name, kind in ASKING.items()
    ],
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", *TOLD]},
        # 413: what is over a bound of the schema may be over that of the whole body too, which is seen first.
        "negative_data_rejection": {"expected-statuses": ["400", "401", "403", "404", "405", "409", "413", *TOLD]},
    },
}


def described() -> dict[str, Any]:
    """The document, with the events of streams described in the words of OpenAPI 3.1: 3.0 has only prose for them; and
    with an example of what is seldom right by chance."""
    found = document()
    for path, example in (("/learning/jobs", JOB), ("/goals", GOAL)):
        found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"] = example
    for operation in OPERATIONS:
        if stream := operation.stream:
            route = operation.route
            answers = found["paths"][route.path][route.method.lower()]["responses"][str(route.status)]["content"]
            assert stream.chunk.__name__ in answers["text/event-stream"]["schema"]["description"]
            data = {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"$ref": f"#/components/schemas/{stream.chunk.__name__}"},
            }
            answers["text/event-stream"]["schema"] = {
                "type": "object",
                "required": ["data"],
                "properties": {"data": data},
            }
    return found


api = schemathesis.openapi.from_dict(described(), config=schemathesis.Config.from_dict(CONFIG))


@dataclass
class Target:
    """A coordinator with a key. The files of its models are not its own to delete."""

    served: Served
    key: str
    statuses: Counter[tuple[str, int]]  # how often an operation was answered so


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("described")
    for name, kind in {**MODELS, **dict.fromkeys(OTHERS, "llm")}.items():
        tiny_gguf(folder / "files" / f"{name}.gguf", llama__pooling_type=POOLING[kind], general__name=name)
    env = {
        "MODELOPS_MODELS__ROOTS": str(folder / "files"),
        "MODELOPS_LEARNING__MAX_PARALLEL_JOBS": "0",
        "MODELOPS_GOALS__MAX_ACTIVE": "0",
        "MODELOPS_MEMORY__BUDGET_MB": "1000",  # what is loaded in passing makes room again
        # Nothing that is made up here is asked for over a network.
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "",
        "PIP_INDEX_URL": "http://127.0.0.1:9",
        "PIP_RETRIES": "0",
    }
    keep(folder / "data")
    keep_goal(folder / "data")
    (folder / "data" / "datasets").mkdir()
    (folder / "data" / "datasets" / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with serving(folder / "data", fake={"tokens": 2}, env=env) as served:
        key = make_key(served.data_dir, "tester", "--scope", "admin")
        made = Target(served, key, Counter())
        yield made
        log = served.log.read_text()
        assert "Traceback" not in log
        assert "task failed" not in log
        for label in {label for label, _ in made.statuses}:
            assert any(200 <= status < 300 for other, status in made.statuses if other == label), (
                f"{label}: only refused"
            )


@pytest.fixture
def standing(target: Target) -> None:
    """The models are loaded, and no others."""
    with wires.connected(target.served, target.key) as clients:
        wire: Wire = clients["rest"]
        wait_until(lambda: wire.call("status").code == "", what="the key being known")
        for model in wire.ok("list_models").models:
            if model.model_name not in MODELS:
                wire.call("unload_model", {"model_name": model.model_name, "force": True})
        for name, kind in MODELS.items():
            path = f"{name}.gguf"
            answer = wire.call("load_model", {"model_name": name, "model_path": path, "model_type": kind})
            assert answer.code in ("", "conflict"), answer.seen


@pytest.mark.usefixtures("standing")
@api.parametrize()
def test_every_answer_is_as_the_document_says(case: schemathesis.Case[Any], target: Target) -> None:
    response = case.call(base_url=target.served.rest, headers={"X-API-Key": target.key})
    target.statuses[case.operation.label, response.status_code] += 1
    excluded: list[schemathesis.CheckFunction] = []
    if response.status_code == 400 and re.search(BY_MEANING, response.json()["detail"]):
        excluded.append(positive_data_acceptance)
    if "x-schemathesis-unknown-property" in case.headers:
        excluded.append(negative_data_rejection)  # HTTP wants a header that nobody knows to be ignored
    case.validate_response(response, excluded_checks=excluded, headers={"X-API-Key": target.key})
