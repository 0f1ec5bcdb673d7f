"""A real Prometheus beside a coordinator under load: its answers are what the callers counted.

The load goes on for a minute; a rate over five minutes therefore has less to go by than its window, and Prometheus says
what it saw, spread over the window.
"""

from __future__ import annotations

import bisect
import math
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from certificates import self_signed
from deploy.conftest import Watched
from deploy.driving import Asked
from deploy.expressions import alerts, filled, specified, targets
from deploy.prometheus import CLOCK_S, Labels, Samples, config, labels, scraping
from modelops.metrics.families import FAMILIES
from support import make_key, need, serving, wait_until

pytestmark = [pytest.mark.program("prometheus"), pytest.mark.timeout(240)]

#: A request whose engine breaks is asked once more: each that ends so has failed twice.
ATTEMPTS = 2
#: Between two scrapes, in seconds; Prometheus may be a little late.
INTERVAL_S = 1.0

#: What promtool says against names that the specification fixes.
SAID_OF_SPECIFIED_NAMES = {
    'moc_goals_active_total non-counter metrics should not have "_total" suffix',
    'moc_models_loaded_total non-counter metrics should not have "_total" suffix',
    "moc_gpu_total_memory_mb metric names should not contain abbreviated units",
    "moc_gpu_used_memory_mb metric names should not contain abbreviated units",
    "moc_model_memory_usage_mb metric names should not contain abbreviated units",
}
#: Panels that have no figure while no learning job was ever created.
NOTHING_YET = {"Learning job success rate", "Learning job duration, p95", "Goal duration, p95"}
#: Panels, and the families in them, of what a simulated card does not tell.
NOT_TOLD = {
    "GPU utilization": "moc_gpu_utilization_percent",
    "GPU temperature": "moc_gpu_temperature_celsius",
}


def query(watched: Watched, title: str) -> dict[Labels, float]:
    """What the specification's query of that title says at the end of the drive."""
    return watched.prometheus.query(specified()[title], watched.at)


# --- what was scraped is what callers were told ---
def test_every_call_is_counted_as_its_caller_saw_it(watched: Watched) -> None:
    driver, prometheus = watched.driver, watched.prometheus
    assert len(driver.calls) > 1000
    assert {call.code for call in driver.calls} == {"ok", "not_found", "invalid_request", "engine_failed", "overloaded"}
    counted = prometheus.query("moc_inference_requests_total", watched.settled)
    assert counted == driver.counts("model", "protocol", "code")
    failed = [call for call in driver.calls if call.code != "ok"]
    errors = Counter(labels(model=call.model, code=call.code) for call in failed)
    assert prometheus.query("moc_inference_errors_total", watched.settled) == errors


def test_every_call_over_grpc_and_zmq_is_counted(watched: Watched) -> None:
    """Over REST others ask too: Prometheus itself, and whoever loads models."""
    for protocol in ("grpc", "zmq"):
        counted = watched.prometheus.query(f"moc_{protocol}_requests_total", watched.settled)
        assert counted == watched.driver.counts("code", protocol=protocol)


def test_latencies_and_tokens_add_up_to_what_was_answered(watched: Watched) -> None:
    answered = watched.driver.of(code="ok")
    sums = watched.prometheus.query("moc_inference_latency_seconds_sum", watched.settled)
    written = watched.prometheus.query("moc_inference_tokens_generated_total", watched.settled)
    for model in ("quick", "vectors", "flaky"):
        mine = [call for call in answered if call.model == model]
        assert sums[labels(model=model)] == pytest.approx(sum(call.latency_s for call in mine), rel=1e-6)
        assert written[labels(model=model)] == sum(call.tokens for call in mine)


# --- the specification's six queries ---
def test_requests_per_second(watched: Watched) -> None:
    rates = query(watched, "Inference requests per second")
    scraped = watched.prometheus.samples("moc_inference_requests_total", "1m", watched.at)
    assert rates.keys() == {series for series, samples in scraped.items() if len(samples) > 1}
    assert len(rates) > 8
    for series, samples in scraped.items():
        calls = watched.driver.of(**dict(series))
        assert_counted(samples, calls, watched)
        if series in rates:
            assert_rate(rates[series], samples, 60.0)
        if (
            len(calls) > 30
        ):  # the drive filled the whole minute: the rate is the callers' own, up to a call at either end
            within = sum(watched.at - 60 < call.ended <= watched.at for call in calls)
            assert rates[series] == pytest.approx(within / 60, rel=0.02, abs=2 / 60)


def test_average_latency(watched: Watched) -> None:
    means = query(watched, "Average inference latency")
    scraped = watched.prometheus.samples("moc_inference_latency_seconds_count", "5m", watched.at)
    assert means.keys() == scraped.keys() == {labels(model=model) for model in ("quick", "vectors", "flaky")}
    slack_s = fetching_s(watched)
    for series, mean in means.items():
        calls = watched.driver.of(code="ok", **dict(series))
        (first, _), *_, (last, _) = scraped[series]
        surely = [it.latency_s for it in calls if it.began > first + slack_s and it.ended < last - slack_s]
        perhaps = [it.latency_s for it in calls if it.ended > first - slack_s and it.began < last + slack_s]
        assert len(perhaps) <= len(surely) + 12
        least, most = sum(surely) / len(perhaps), sum(perhaps) / len(surely)
        # Sum and count are each extended to the window's ends, and not always by the same.
        assert least / extended(scraped[series]) <= mean <= most * extended(scraped[series])


def test_gpu_memory(watched: Watched) -> None:
    assert query(watched, "GPU memory utilization") == {labels(device="gpu0"): 25.0}


def test_breaker_failures(watched: Watched) -> None:
    rates = query(watched, "Circuit breaker failure rate")
    scraped = watched.prometheus.samples("moc_circuit_breaker_failures_total", "5m", watched.at)
    failures = [call for call in watched.driver.of(model="flaky", code="engine_failed") for _ in range(ATTEMPTS)]
    flaky, quick, broken = (labels(breaker=name) for name in ("flaky", "quick", "broken"))
    assert_counted(scraped[flaky], failures, watched)
    assert_rate(rates[flaky], scraped[flaky], 300.0)
    assert rates[flaky] * 300 == pytest.approx(len(failures), rel=0.05, abs=2 * ATTEMPTS)
    assert rates[quick] == 0
    # Its only failure was there when it was first seen: a value, but no increase.
    assert scraped[broken][-1][1] == 1
    assert rates[broken] == 0


def test_models_loaded(watched: Watched) -> None:
    assert query(watched, "Active model count") == {labels(): watched.models_loaded}
    assert watched.models_loaded == 4


def test_learning_jobs(watched: Watched) -> None:
    """None was created: none of none is no number."""
    (rate,) = query(watched, "Learning job success rate").values()
    assert math.isnan(rate)


def fetching_s(watched: Watched) -> float:
    """When a page was made is known up to this."""
    took = watched.prometheus.query("max_over_time(scrape_duration_seconds[5m])", watched.settled)
    return max(took.values()) + CLOCK_S


def extended(samples: Samples) -> float:
    """A rate is its samples' increase, which Prometheus extends to the window's ends, by 1.1 intervals at either at
    most: how much that can make of it."""
    return 1 + 2.2 * 1.1 * INTERVAL_S / (samples[-1][0] - samples[0][0])


def assert_rate(rate: float, samples: Samples, window_s: float) -> None:
    """It is what its samples say."""
    least = (samples[-1][1] - samples[0][1]) / window_s
    assert least * 0.999 <= rate <= least * extended(samples)


def assert_counted(samples: Samples, calls: list[Asked], watched: Watched) -> None:
    """Each scrape shows the calls that had ended by then, and none that had not begun.

    What a caller has just been told may be counted a moment later: one call of each of the callers, two at most.
    """
    slack_s = fetching_s(watched)
    began, ended = sorted(call.began for call in calls), sorted(call.ended for call in calls)
    for when, value in samples:
        assert bisect.bisect(ended, when - slack_s) - 2 <= value <= bisect.bisect(began, when + slack_s)


# --- the dashboard and the alerts ---
def test_every_panel_is_answered_and_has_figures(watched: Watched) -> None:
    empty = {
        title
        for title, expression in targets()
        if all(math.isnan(value) for value in watched.prometheus.query(filled(expression), watched.settled).values())
    }
    assert empty == NOTHING_YET | NOT_TOLD.keys()


@pytest.mark.parametrize("name", alerts())
def test_every_alerts_expression_is_answered(watched: Watched, name: str) -> None:
    watched.prometheus.query(alerts()[name], watched.at)


def test_prometheus_has_the_rules_and_evaluates_them(watched: Watched) -> None:
    groups = watched.prometheus.get("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert rules.keys() == alerts().keys()
    assert {name: rule["lastError"] for name, rule in rules.items() if rule["health"] != "ok"} == {}
    breaker = rules["ModelOpsBreakerOpen"]["alerts"]  # pending until its two minutes are over
    assert [alert["labels"]["breaker"] for alert in breaker] == ["broken"]
    loads = rules["ModelOpsLoadsFail"]["alerts"]
    assert [(alert["labels"]["model"], alert["state"]) for alert in loads] == [("broken", "firing")]
    assert rules["ModelOpsDown"]["alerts"] == []


def test_every_family_has_been_seen(watched: Watched) -> None:
    """So nothing above is true only because there is nothing to show."""
    found = {family.name: family.samples for family in text_string_to_metric_families(watched.page)}
    bare = {family.name: family.name.removesuffix("_total") for family in FAMILIES}
    unseen = {name for name in bare if not (found.get(name) or found.get(bare[name]))}
    assert unseen == set(NOT_TOLD.values())


def test_promtool_says_nothing_against_our_own_names(watched: Watched) -> None:
    program = need("promtool")
    done = subprocess.run(
        [program, "check", "metrics"], input=watched.page, capture_output=True, text=True, check=False, timeout=60
    )
    assert set((done.stdout + done.stderr).splitlines()) == SAID_OF_SPECIFIED_NAMES


# --- with a key and a certificate ---
def test_it_is_scraped_with_a_key_over_tls(tmp_path: Path) -> None:
    """As the lines say that prometheus.yml has in comments; and not without."""
    need("prometheus")
    home = tmp_path / "home"
    home.mkdir()
    key = make_key(home, "prometheus", "--scope", "metrics")
    pair = self_signed(tmp_path / "tls")
    env = {"MODELOPS_TLS__CERT_FILE": str(pair.cert), "MODELOPS_TLS__KEY_FILE": str(pair.key)}
    with serving(home, env=env) as served:
        settings = config(optional=True)
        (job,) = settings["scrape_configs"]
        assert (job["scheme"], job["tls_config"]) == ("https", {"ca_file": "modelops-ca.pem"})
        assert job["authorization"] == {"credentials_file": "modelops.key"}
        (tmp_path / "modelops-ca.pem").write_bytes(pair.cert.read_bytes())
        (tmp_path / "modelops.key").write_text(f"{key}\n")
        with scraping(tmp_path, served, settings) as prometheus:
            wait_until(prometheus.scraped, what="a page")
            assert len(prometheus.query("moc_build_info")) == 1
            (tmp_path / "modelops.key").write_text("mok_00000000_0000")
            wait_until(lambda: prometheus.query("up == 0"), what="a refusal")
            (target,) = prometheus.get("targets")["activeTargets"]
            assert "401" in target["lastError"]
            (tmp_path / "modelops.key").write_text(key)
            refused = 'moc_requests_refused_total{reason="unauthenticated"}'
            wait_until(lambda: prometheus.query(refused), what="the count of the refusals")
