from __future__ import annotations

import re
from pathlib import Path

import pytest

from metrics.pages import kinds, samples, value
from modelops.metrics import Metrics
from modelops.metrics.families import (
    BREAKER_FAILURES,
    ERRORS,
    FAMILIES,
    GPU_USED,
    LATENCY,
    REST_REQUESTS,
    Family,
)

SPECIFICATION = Path(__file__).parents[2] / "docs/spec/api.md"
#: docs/spec/contract.md: those that only grow are counters, but for two; *_seconds of work are histograms.
GAUGES = {"moc_models_loaded_total", "moc_goals_active_total"}
LABELS = {"model", "device", "code", "protocol", "breaker"}


def specified() -> list[str]:
    """The names of the specification, read from it."""
    section = SPECIFICATION.read_text().partition("**Available Metrics**")[2].partition("**Grafana")[0]
    return re.findall(r"^(moc_\w+)", section, re.MULTILINE)


def kind(name: str) -> str:
    if name in GAUGES:
        return "gauge"
    if name.endswith("_total"):
        return "counter"
    return "histogram" if name.endswith("_seconds") else "gauge"


@pytest.mark.parametrize("name", specified())
def test_every_family_of_the_specification_is_announced_from_the_start(name: str) -> None:
    assert kinds(Metrics().page({}).decode())[name] == kind(name)
    (family,) = (family for family in FAMILIES if family.name == name)
    assert {*family.labels} <= LABELS


def test_there_are_those_and_others_in_base_units() -> None:
    assert len(specified()) == 29
    names = [family.name for family in FAMILIES]
    assert len({*names}) == len(names)
    for name in {*names} - {*specified()}:
        assert re.search(r"_(bytes|seconds|total|info|slots|tasks)$", name), name


def test_what_has_no_samples_is_announced_and_no_more() -> None:
    page = Metrics().page({}).decode()
    assert "# TYPE moc_gpu_used_memory_mb gauge" in page
    assert value(samples(page), GPU_USED.name) == 0
    assert not any(name == GPU_USED.name for name, _ in samples(page))


def test_families_without_labels_begin_at_0() -> None:
    found = samples(Metrics().page({}).decode())
    for name in ("moc_learning_jobs_total", "moc_learning_jobs_completed_total", "moc_goals_completed_total"):
        assert found[name, ()] == 0


def test_what_is_counted_and_what_is_read() -> None:
    metrics = Metrics()
    metrics.count(REST_REQUESTS, "ok")
    metrics.count(REST_REQUESTS, "ok", by=2)
    metrics.observe(LATENCY, 0.3, "m")
    found = samples(metrics.page({BREAKER_FAILURES: {("m",): 4}}).decode())
    assert found["moc_rest_requests_total", (("code", "ok"),)] == 3
    assert found["moc_inference_latency_seconds_sum", (("model", "m"),)] == 0.3
    assert found["moc_inference_latency_seconds_bucket", (("le", "0.25"), ("model", "m"))] == 0
    assert found["moc_inference_latency_seconds_bucket", (("le", "0.5"), ("model", "m"))] == 1
    assert found["moc_circuit_breaker_failures_total", (("breaker", "m"),)] == 4


def test_what_is_forgotten_of_one_model_stays_of_another() -> None:
    metrics = Metrics()
    for model in ("a", "b"):
        metrics.count(ERRORS, model, "engine_failed")
        metrics.count(ERRORS, model, "overloaded")
        metrics.observe(LATENCY, 1, model)
    metrics.forget("a")
    models = {dict(labels).get("model") for _, labels in samples(metrics.page({}).decode())}
    assert models == {"b", None}
    metrics.forget("never seen")


def test_labels_with_any_text_are_whole() -> None:
    metrics, odd = Metrics(), 'a"b\\c\nd{e="f"} é'
    metrics.count(REST_REQUESTS, odd)
    assert samples(metrics.page({}).decode())["moc_rest_requests_total", (("code", odd),)] == 1


def test_nothing_is_counted_where_it_is_off() -> None:
    metrics = Metrics(enabled=False)
    metrics.count(REST_REQUESTS, "ok")
    metrics.observe(LATENCY, 1, "m")
    metrics.forget("m")
    assert metrics.page({GPU_USED: {("gpu0",): 1}}) == b""


def test_two_coordinators_of_one_process_count_for_themselves() -> None:
    one, other = Metrics(), Metrics()
    one.count(REST_REQUESTS, "ok")
    assert value(samples(other.page({}).decode()), "moc_rest_requests_total") == 0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_says_what_it_is(family: Family) -> None:
    assert family.help.endswith(".")
    assert (family.kind == "histogram") is bool(family.buckets)
    assert [*family.buckets] == sorted(family.buckets)
