"""The document at /openapi.json promises all that docs/spec/api.md does, and /docs shows it without other servers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from openapi_spec_validator import OpenAPIV30SpecValidator

from contract.openapi import resolved
from support import Served

API = Path(__file__).parents[2] / "docs/spec/api.md"


@pytest.fixture(scope="module")
def document(served: Served) -> dict[str, Any]:
    response = httpx.get(f"{served.rest}/openapi.json")
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert isinstance(found, dict)
    return found


def specified() -> dict[str, Any]:
    (block,) = re.findall(r"^```yaml\n(openapi: .*?)^```$", API.read_text(), re.MULTILINE | re.DOTALL)
    found = yaml.safe_load(block)
    assert isinstance(found, dict)
    return found


def missing(want: Any, have: Any, at: str = "") -> list[str]:
    """Where `have` lacks something that `want` has, or has something else."""
    if isinstance(want, dict) and "$ref" in want and isinstance(have, dict):
        return []  # the specification names a schema and does not spell it out; that ours exists is tested below
    if isinstance(want, dict):
        if not isinstance(have, dict):
            return [f"{at}: {have!r} instead of an object"]
        lacks = [f"{at}/{key}: missing" for key in want if key not in have]
        return lacks + [fault for key in want if key in have for fault in missing(want[key], have[key], f"{at}/{key}")]
    if isinstance(want, list):
        if at.endswith("/enum"):  # a value more would be one that no client expects
            return [] if sorted(want) == sorted(have) else [f"{at}: {have} instead of {want}"]
        return [f"{at}: {item!r} missing" for item in want if not any(not missing(item, other) for other in have)]
    if at.endswith("/description"):  # a description may say more
        return [] if str(want).lower() in str(have).lower() else [f"{at}: {have!r} instead of {want!r}"]
    return [] if want == have else [f"{at}: {have!r} instead of {want!r}"]


def test_the_document_is_valid_openapi_3_0(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.0.3"
    assert [str(error) for error in OpenAPIV30SpecValidator(document).iter_errors()] == []


def test_the_document_has_all_that_the_specification_has(document: dict[str, Any]) -> None:
    want = specified()
    assert missing(resolved(want, want), resolved(document, document)) == []


def test_every_schema_that_the_specification_names_exists(document: dict[str, Any]) -> None:
    named = set(re.findall(r"#/components/schemas/(\w+)", API.read_text()))
    assert len(named) == 9
    assert named <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (["components", "schemas", "InferenceRequest", "properties", "max_tokens", "maximum"], 4096),
        (["components", "schemas", "InferenceRequest", "required"], ["model_name"]),
        (["components", "schemas", "HealthResponse", "properties", "status", "enum"], ["healthy"]),
        (["paths", "/models", "post", "responses", "507"], None),
        (["paths", "/models/{model_name}", "delete", "parameters"], []),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else "",
)
def test_the_comparison_sees_what_is_missing(path: list[str], change: Any, document: dict[str, Any]) -> None:
    want, have = specified(), resolved(document, document)
    place = have
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = change
    assert missing(resolved(want, want), have)


def test_the_docs_page_needs_no_other_server(served: Served) -> None:
    with httpx.Client(base_url=served.rest) as client:
        page = client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        assets = re.findall(r"""(?:href|src)=["']([^"']+)""", page.text)
        assert len(assets) == 2
        assert "//" not in page.text
        assert '"/openapi.json"' in page.text
        for asset in assets:
            answer = client.get(asset)
            assert answer.status_code == 200
            assert len(answer.content) > 10_000
            if asset.endswith(".css"):
                assert all(url.startswith("data:") for url in re.findall(r"""url\(["']?([^"')]+)""", answer.text))
                assert "@import" not in answer.text
