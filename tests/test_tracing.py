"""Spans without a coordinator: what is recorded of them, what is sent, and what a start says that cannot do it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector import Collector, Context, Trace, collecting
from modelops.api.errors import Overloaded
from modelops.app import StartError, running
from modelops.settings import Settings
from modelops.tracing import NO_SPAN, Span, Tracing, acting_for, current, part
from modelops.tracing.otel import OpenTelemetry
from support import wait_until


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with collecting() as found:
        yield found


@pytest.fixture
def tracing(collector: Collector) -> Iterator[Tracing]:
    made = OpenTelemetry(collector.url, sample_ratio=1.0, version="1.2.3")
    yield made
    made.close()


def begin(tracing: Tracing) -> tuple[Span, Context]:
    context = Context()
    return tracing.begin("call", {"about": "it"}, context.carried(), time.time_ns()), context


def test_a_span_says_what_it_was_told(tracing: Tracing, collector: Collector) -> None:
    began = time.time_ns() - 10**9
    context = Context()
    span = tracing.begin("call", {"whole": 1, "part": 0.5, "is": True}, context.carried(), began)
    span.note({"texts": ("a", "b")})
    span.event("now")
    span.child("part", {"of": "it"}, "client").end()
    span.end()
    span.end("late")  # it has ended
    trace = collector.of(context)
    assert trace.root.attributes == {"whole": 1, "part": 0.5, "is": True, "texts": ["a", "b"]}
    assert (trace.root.began, trace.root.error, list(trace.root.events)) == (began, "", ["now"])
    assert trace.named("part").attributes == {"of": "it"}
    assert span.trace_id == context.trace_id
    assert trace.root.resource["service.version"] == "1.2.3"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (Overloaded("full", retry_after_s=1), "overloaded"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (ValueError("ours"), "internal"),
    ],
)
def test_a_part_ends_with_what_it_is_left_by(
    error: BaseException, told: str, tracing: Tracing, collector: Collector
) -> None:
    span, context = begin(tracing)
    with pytest.raises(type(error)), part(span, "part"):
        raise error
    with part(span, "good"):
        pass
    span.end(told)
    trace = collector.of(context)
    assert [trace.named(name).error for name in ("call", "part", "good")] == [told, told, ""]


@pytest.fixture(scope="module")
def unsampled() -> Iterator[Tracing]:
    """Records nothing of its own traces, and so sends nothing."""
    made = OpenTelemetry("http://127.0.0.1:9", sample_ratio=0.0, version="1")
    yield made
    made.close()


WRITTEN = st.text() | st.text("0123456789abcdef-,=", max_size=600)


@given(st.dictionaries(st.sampled_from(["traceparent", "tracestate"]), WRITTEN))
def test_whatever_callers_send_there_is_a_span(unsampled: Tracing, carrier: dict[str, str]) -> None:
    assert len(unsampled.begin("call", {}, carrier, 1).trace_id) == 32


def test_what_is_not_sampled_has_an_id_and_no_parts(unsampled: Tracing, monkeypatch: pytest.MonkeyPatch) -> None:
    span = unsampled.begin("call", {}, {}, 1)
    assert span.child("part") is span
    context = Context()
    assert unsampled.begin("call", {}, context.carried(flags="00"), 1).trace_id == context.trace_id
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    off = OpenTelemetry("http://127.0.0.1:9", sample_ratio=1.0, version="1")
    assert off.begin("call", {}, {}, 1).trace_id == ""
    off.close()


def test_what_callers_record_is_recorded_whatever_the_ratio(collector: Collector) -> None:
    tracing = OpenTelemetry(collector.url, sample_ratio=0.0, version="1")
    span, context = begin(tracing)
    span.end()
    tracing.close()
    assert collector.of(context).root.name == "call"


def test_the_standard_variables_hold(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20them,x-team=a")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    tracing = OpenTelemetry(f"{collector.url}/", sample_ratio=1.0, version="1")
    span, context = begin(tracing)
    span.end()
    tracing.close()
    resource = collector.of(context).root.resource
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("mine", "test")
    assert (collector.headers["authorization"], collector.headers["x-team"]) == ("Bearer them", "a")


def test_long_values_are_cut(tracing: Tracing, collector: Collector) -> None:
    span, context = begin(tracing)
    span.note({"long": "x" * 100_000})
    span.end()
    assert len(collector.of(context).root.attributes["long"]) == 32_768


def test_spans_that_have_ended_are_sent_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    with collecting() as collector:
        tracing = OpenTelemetry(collector.url, sample_ratio=1.0, version="1")
        for number in range(1000):
            tracing.begin(f"call {number}", {}, {}, 1).end()
        tracing.close()
        assert len(collector.spans()) == 1000


def test_the_log_says_once_that_a_collector_takes_nothing_and_once_that_it_does(
    tracing: Tracing, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    collector.status = 404

    def asked(times: int) -> bool:
        return collector.asked >= times

    for count in (1, 2, 3):
        begin(tracing)[0].end()
        wait_until(partial(asked, count))
    wait_until(lambda: caplog.messages)
    collector.status = 200
    begin(tracing)[0].end()
    wait_until(lambda: len(caplog.messages) == 2)
    assert caplog.messages == [
        "the collector does not take traces (it answers 404): they are lost meanwhile",
        "the collector takes traces again",
    ]


def test_tasks_know_whom_they_were_begun_for(tracing: Tracing) -> None:
    span, _ = begin(tracing)
    assert current() is NO_SPAN
    with acting_for(span):
        assert current() is span
    assert current() is NO_SPAN
    span.end()


def test_nothing_is_recorded_of_what_is_no_span() -> None:
    span = Tracing().begin("call", {}, Context().carried(), 1)
    assert (span.trace_id, span.child("part")) == ("", span)
    span.note({"a": 1})
    span.event("now")
    span.end("late")


# --- starting ---
def settings(folder: Path, endpoint: str) -> Settings:
    ports = {"rest_port": 0, "grpc_port": 0, "zmq_port": 0}
    return Settings.model_validate({"data_dir": folder, "server": ports, "tracing": {"otlp_endpoint": endpoint}})


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost:4318",
        "collector",
        "grpc://host:4317",
        "http://",
        "http://:4318",
        "http://host:0",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://ho st:4318",
        "http://host:4318/?token=secret",
        "http://host:4318#secret",
        "http://user:secret@ho\nst",
    ],
)
async def test_an_address_that_is_none_is_refused_at_the_start(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"tracing.otlp_endpoint .* http://host:4318") as refused:
        async with running(settings(tmp_path, endpoint)):
            pass
    assert "secret" not in str(refused.value)


PROGRAM = """
import asyncio, json, sys
sys.modules.update(dict.fromkeys(sys.argv[3:]))  # these cannot be imported
from pathlib import Path
from modelops.app import StartError, running
from modelops.settings import Settings

async def start():
    ports = {"rest_port": 0, "grpc_port": 0, "zmq_port": 0}
    told = {"data_dir": Path(sys.argv[1]), "server": ports, "tracing": {"otlp_endpoint": sys.argv[2]}}
    async with running(Settings.model_validate(told)):
        print([name for name in sys.modules if name.split(".")[0] in ("opentelemetry", "requests")])

try:
    asyncio.run(start())
except StartError as error:
    print(error)
"""


def started(folder: Path, endpoint: str, *missing: str) -> str:
    """What a coordinator of its own process has imported of OpenTelemetry, or why it does not start."""
    argv = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder), endpoint, *missing]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


def test_nothing_is_imported_where_no_collector_is_named(tmp_path: Path) -> None:
    assert started(tmp_path, "") == "[]"
    assert "opentelemetry.sdk.trace" in started(tmp_path, "http://127.0.0.1:9")


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter", "requests"])
def test_a_missing_package_is_told_with_what_to_install(missing: str, tmp_path: Path) -> None:
    told = started(tmp_path, "http://127.0.0.1:9", missing)
    assert "pip install 'modelops-coordinator[tracing]'" in told
    assert "tracing.otlp_endpoint" in told


def test_a_trace_has_one_root(tracing: Tracing, collector: Collector) -> None:
    tracing.begin("call", {}, {}, 1).end()
    wait_until(collector.spans)
    assert Trace(collector.spans()).tree() == {}
