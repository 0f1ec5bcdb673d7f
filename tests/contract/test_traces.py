"""One trace from the client's own span to the last byte, over all transports: its spans, their parents and times, what
they say, and what they do not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from collector import Collector, Context, Seen, Trace, collecting
from contract import wires
from contract.wires import TRANSPORTS, Wire
from support import Served, make_key, serving, tiny_gguf, wait_until

SECRET = "the cat is called Mortimer"
ASK: dict[str, Any] = {"input_text": SECRET, "max_tokens": 3, "temperature": 0.5, "seed": 7, "stop_sequences": ["#"]}
EXTRA: dict[str, dict[str, Any]] = {
    "slow": {"token_s": 0.2},
    "mortal": {"die_after": 0},
    "stuck": {"hang_after": 1},
    "late": {"prompt_s": 60},
}


def tracing(collector: Collector) -> dict[str, str]:
    return {"MODELOPS_TRACING__OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "20"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def served(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator that sends its traces. For each transport there are the models `plain-TRANSPORT`, `vectors-…`,
    `scores-…`, and one for each way of misbehaving: `mortal` dies of its first request, once."""
    folder = tmp_path_factory.mktemp("traced")
    tiny = tiny_gguf(folder / "tiny")
    files = {"plain": tiny, **dict.fromkeys(EXTRA, tiny)}
    files["vectors"] = tiny_gguf(folder / "embedding", llama__pooling_type=1)
    files["late"] = files["vectors"]
    files["scores"] = tiny_gguf(folder / "ranking", llama__pooling_type=4)
    models = {f"{kind}-{transport}": EXTRA.get(kind, {}) for kind in files for transport in TRANSPORTS}
    behaviours = {name: how | {"dies_once": str(folder / f"{name} died")} for name, how in models.items()}
    links = [(name, files[name.split("-")[0]]) for name in models]
    fake = {"token_s": 0.01, "models": behaviours}
    with serving(folder, links=links, fake=fake, env=tracing(collector)) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def clients(served: Served) -> Iterator[dict[str, Wire]]:
    with wires.connected(served) as found:
        yield found


@pytest.fixture
def asking(clients: dict[str, Wire]) -> Callable[[str], tuple[Wire, Context]]:
    """A client that has begun a trace."""

    def asking(transport: str) -> tuple[Wire, Context]:
        context = Context()
        clients[transport].trace = context.carried()
        return clients[transport], context

    return asking


Asking = Callable[[str], tuple[Wire, Context]]
everywhere = pytest.mark.parametrize("transport", TRANSPORTS)


def nested(trace: Trace, span: Seen) -> None:
    """Each part lies within its whole."""
    assert span.began <= span.ended
    for part in trace.below(span.span_id):
        assert span.began <= part.began
        assert part.ended <= span.ended
        nested(trace, part)


# --- one call ---
@everywhere
def test_a_call_is_one_trace_from_its_client_to_the_engine(
    transport: str, asking: Asking, collector: Collector
) -> None:
    (wire, context), model = asking(transport), f"plain-{transport}"
    before = time.time_ns()
    wire.ok("infer", model_name=model, **ASK)
    after = time.time_ns()
    trace = collector.of(context)
    assert trace.tree() == {"queue": {f"load {model}": {}}, f"chat {model}": {}}
    nested(trace, trace.root)
    root, queue, load, chat = trace.root, *(trace.named(name) for name in ("queue", f"load {model}", f"chat {model}"))
    assert before <= root.began
    assert queue.ended <= chat.began
    assert chat.ended <= after
    assert [span.kind for span in (root, queue, load, chat)] == ["server", "internal", "internal", "client"]
    assert not any(span.error for span in trace.spans)
    assert root.name == root.attributes["modelops.operation"] == "infer"
    assert root.attributes["modelops.protocol"] == transport
    assert root.attributes["modelops.request_id"]
    assert (root.attributes["modelops.model"], root.attributes["modelops.version"]) == (model, "v1")
    assert root.state == "theirs=1"
    assert root.resource["service.name"] == "modelops-coordinator"
    assert root.resource["service.version"]
    assert load.attributes == {"modelops.model": model, "modelops.version": "v1"}
    assert chat.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "modelops",
        "gen_ai.request.model": model,
        "gen_ai.request.stream": True,
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.stop_sequences": ["#"],
        "gen_ai.request.seed": 7,
        "gen_ai.response.model": f"{model}:v1",
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 3,
    }
    assert list(chat.events) == ["first token"]
    assert chat.began <= chat.events["first token"] <= chat.ended

    wire, context = asking(transport)
    wire.ok("infer", model_name=model, raw=True, **ASK)
    assert collector.of(context).tree() == {"queue": {}, f"text_completion {model}": {}}


@everywhere
def test_a_stream_ends_with_its_last_byte(transport: str, asking: Asking, collector: Collector) -> None:
    (wire, context), model = asking(transport), f"slow-{transport}"
    chunks = wire.stream({"model_name": model, **ASK})
    next(chunks)
    first = time.time_ns()
    rest = list(chunks)
    assert rest[-1].done
    trace = collector.of(context)
    assert trace.tree() == {"queue": {f"load {model}": {}}, f"chat {model}": {}}
    nested(trace, trace.root)
    chat = trace.named(f"chat {model}")
    assert chat.events["first token"] <= first < chat.ended <= trace.root.ended
    assert not any(span.error for span in trace.spans)


@everywhere
def test_vectors_and_scores(transport: str, asking: Asking, collector: Collector) -> None:
    wire, context = asking(transport)
    wire.ok("embed", model_name=f"vectors-{transport}", inputs=[SECRET])
    embedding = collector.of(context).named(f"embeddings vectors-{transport}")
    assert embedding.attributes["gen_ai.operation.name"] == "embeddings"
    assert embedding.attributes["gen_ai.usage.input_tokens"] == len(SECRET.split())
    wire, context = asking(transport)
    wire.ok("rerank", model_name=f"scores-{transport}", query=SECRET, documents=["a", "b"])
    assert collector.of(context).named(f"rerank scores-{transport}").kind == "client"


# --- what goes wrong ---
@everywhere
def test_a_refusal_is_the_error_of_its_span(transport: str, asking: Asking, collector: Collector) -> None:
    wire, context = asking(transport)
    assert wire.call("infer", {"model_name": "nobody", **ASK}).code == "not_found"
    trace = collector.of(context)
    assert (trace.root.error, trace.tree()) == ("not_found", {})
    wire, context = asking(transport)
    assert wire.call("infer", {"model_name": "nobody", "max_tokens": 0}).code == "invalid_request"
    assert collector.of(context).root.error == "invalid_request"


@everywhere
def test_a_request_that_is_asked_once_more_has_both_attempts(
    transport: str, asking: Asking, collector: Collector
) -> None:
    (wire, context), model = asking(transport), f"mortal-{transport}"
    wire.ok("infer", model_name=model, **ASK)
    trace = collector.of(context)
    parts = trace.below(trace.root.span_id)
    assert [part.name for part in parts] == ["queue", f"chat {model}"] * 2
    assert [part.error for part in parts] == ["", "engine_failed", "", ""]
    # The engine that comes back after its crash is loaded for nobody.
    assert [span.parent_id for span in trace.spans if span.name == f"load {model}"] == [parts[0].span_id]
    assert trace.root.error == ""
    nested(trace, trace.root)


@everywhere
def test_a_caller_that_leaves(transport: str, asking: Asking, collector: Collector) -> None:
    (wire, context), model = asking(transport), f"stuck-{transport}"
    chunks = wire.stream({"model_name": model, **ASK})
    next(chunks)
    chunks.close()
    trace = collector.of(context)
    assert (trace.root.error, trace.named(f"chat {model}").error) == ("cancelled", "cancelled")
    assert list(trace.named(f"chat {model}").events) == ["first token"]


@pytest.mark.parametrize("transport", ["rest", "zmq"])  # a gRPC client is told by its own library, and has left
def test_a_time_that_runs_out(transport: str, asking: Asking, collector: Collector) -> None:
    for kind, operation, fields in (("stuck", "infer", ASK), ("late", "embed", {"inputs": ["a"]})):
        (wire, context), model = asking(transport), f"{kind}-{transport}"
        wire.ok("load_model", model_name=model) if wire.info(model).status == "available" else None
        wire, context = asking(transport)
        answer = wire.call(operation, {"model_name": model, **fields}, timeout_s=0.5)
        assert answer.code == "deadline_exceeded"
        trace = collector.of(context)
        asked = trace.below(trace.root.span_id)[-1]
        assert asked.kind == "client"
        assert asked.error == trace.root.error == "deadline_exceeded"


# --- where the context comes from ---
@everywhere
def test_a_trace_that_its_caller_does_not_record_is_not_sent(
    transport: str, clients: dict[str, Wire], asking: Asking, collector: Collector
) -> None:
    quiet = Context()
    clients[transport].trace = quiet.carried(flags="00")
    clients[transport].ok("infer", model_name=f"plain-{transport}", **ASK)
    wire, context = asking(transport)
    wire.ok("health")
    collector.of(context)  # what came before has been sent by now
    assert not [span for span in collector.spans() if span.trace_id == quiet.trace_id]


@everywhere
@pytest.mark.parametrize(
    "sent", ["", "nonsense", "00-0-0-01", f"00-{'0' * 32}-{'1' * 16}-01", "x" * 4000], ids=lambda text: text[:9]
)
def test_a_context_that_is_none_begins_a_new_trace(
    transport: str, sent: str, clients: dict[str, Wire], collector: Collector
) -> None:
    wire, before = clients[transport], {span.span_id for span in collector.spans()}
    wire.trace = {"traceparent": sent, "tracestate": "=,=" * 300}
    wire.ok("get_model", model_name=f"scores-{transport}")

    def new() -> list[Seen]:
        return [span for span in collector.spans() if span.span_id not in before and span.name == "get_model"]

    wait_until(new)
    (root,) = new()
    assert (root.parent_id, root.state, root.error) == ("", "", "")


@everywhere
def test_a_tracestate_that_is_too_long_is_left_out(
    transport: str, clients: dict[str, Wire], collector: Collector
) -> None:
    wire, context = clients[transport], Context()
    wire.trace = context.carried() | {"tracestate": "theirs=" + "x" * 2000}
    wire.ok("health")
    assert collector.of(context).root.state == ""


# --- loads ---
@everywhere
@pytest.mark.parametrize("wait", [True, False])
def test_a_load_belongs_to_the_call_that_asks_for_it(
    wait: bool, transport: str, clients: dict[str, Wire], collector: Collector
) -> None:
    wire, context, model = clients[transport], Context(), f"plain-{transport}"
    wire.call("unload_model", {"model_name": model, "force": True})
    wire.trace = context.carried()
    wire.ok("load_model", model_name=model, wait=wait)
    wait_until(lambda: collector.of(context).tree())  # where nobody waits for it, it ends after its call
    trace = collector.of(context)
    assert (trace.root.name, trace.tree()) == ("load_model", {f"load {model}": {}})


@pytest.fixture
def small(collector: Collector, tmp_path: Path) -> Iterator[Served]:
    """A coordinator that has room for two of the models `a`, `b`, `c`, and for one version of each."""
    links = [(name, tiny_gguf(tmp_path / name, general__name=name)) for name in "abc"]
    tiny_gguf(tmp_path / "theirs" / "next.gguf", general__name="next")
    env = tracing(collector) | {"MODELOPS_MEMORY__BUDGET_MB": "130", "MODELOPS_ENGINE__CONTEXT_LENGTH": "8192"}
    env |= {"MODELOPS_MODELS__ROOTS": str(tmp_path / "theirs")}
    with serving(tmp_path, links=links, fake={"token_s": 0.05}, env=env) as running:
        yield running


def test_a_load_belongs_to_who_wants_it_also_when_another_has_to_go_first(small: Served, collector: Collector) -> None:
    with wires.connected(small) as clients:
        wire = clients["zmq"]
        wire.ok("infer", model_name="a", **ASK)
        wire.ok("infer", model_name="b", **ASK)
        context = Context()
        wire.trace = context.carried()
        wire.ok("infer", model_name="c", **ASK)
        assert collector.of(context).tree() == {"queue": {"load c": {}}, "chat c": {}}


@pytest.mark.parametrize("drain_first", [False, True])
def test_a_version_is_loaded_for_who_activates_it_and_not_for_who_was_in_its_way(
    drain_first: bool, small: Served, collector: Collector, threads: ThreadPoolExecutor
) -> None:
    with wires.connected(small) as clients, wires.connected(small) as others:
        rest = clients["rest"]
        rest.ok("load_model", model_name="a")
        rest.ok("register_version", model_name="a", model_path="next.gguf")
        context, theirs = Context(), Context()
        others["grpc"].trace = theirs.carried()
        chunks = others["grpc"].stream({"model_name": "a", **ASK, "max_tokens": 10})
        next(chunks)
        rest.trace = context.carried()
        fields = {"model_name": "a", "model_version": "v2", "drain_first": drain_first}
        activating = threads.submit(rest.ok, "activate_version", **fields)
        assert list(chunks)[-1].final.success
        assert activating.result(30).model_version == "v2"
        assert collector.of(context).tree() == {"load a": {}}
        assert collector.of(context).named("load a").attributes["modelops.version"] == "v2"
        assert collector.of(theirs).tree() == {"queue": {}, "chat a": {}}


# --- what is said of callers and of what they say ---
@everywhere
def test_nothing_of_what_is_asked_or_answered_is_in_a_trace(
    transport: str, asking: Asking, collector: Collector
) -> None:
    wire, context = asking(transport)
    fields = {"model_name": f"plain-{transport}", "input_text": SECRET, "system": SECRET, "max_tokens": 2}
    assert wire.ok("infer", **fields).output_text == "w0 w1 "
    collector.of(context)
    wire, context = asking(transport)
    list(wire.stream(fields))
    collector.of(context)
    said = repr(collector.spans())
    assert SECRET not in said
    assert "w0 " not in said


def test_texts_and_names_of_keys_are_told_where_that_is_asked_for(collector: Collector, tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "tiny"))]
    env = tracing(collector) | {"MODELOPS_TRACING__CONTENT": "true"}
    key = make_key(tmp_path, "alice", "--scope", "infer")
    with serving(tmp_path, links=links, fake={"tokens": 2}, env=env) as running, wires.connected(running, key) as found:
        for transport, wire in found.items():
            for most, why in ((2, "length"), (9, "stop")):
                context = Context()
                wire.trace = context.carried()
                wire.ok("infer", model_name="m", input_text=SECRET, system="Be brief.", max_tokens=most)
                trace = collector.of(context)
                assert trace.root.attributes["modelops.caller"] == "alice", transport
                told = trace.named("chat m").attributes
                asked, answered, system = (
                    json.loads(told[f"gen_ai.{name}"])
                    for name in ("input.messages", "output.messages", "system_instructions")
                )
                assert asked == [{"role": "user", "parts": [{"type": "text", "content": SECRET}]}]
                parts = [{"type": "text", "content": "w0 w1 "}]
                assert answered == [{"role": "assistant", "parts": parts, "finish_reason": why}]
                assert system == [{"type": "text", "content": "Be brief."}]
        assert key not in repr(collector.spans())


# --- collectors that do not take them ---
@pytest.mark.parametrize("how", ["down", "hangs", "refuses"])
def test_a_collector_that_takes_nothing_costs_nothing(how: str, tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "tiny"))]
    with collecting() as collector:
        env = tracing(collector) | {"OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4"}
        if how == "down":
            env["MODELOPS_TRACING__OTLP_ENDPOINT"] = "http://127.0.0.1:9"
        elif how == "hangs":
            collector.goes_on.clear()
        else:
            collector.status = 401
        with serving(tmp_path, links=links, fake={"tokens": 2}, env=env) as running, wires.connected(running) as found:
            for _ in range(20):
                for wire in found.values():
                    wire.trace = Context().carried() | {"tracestate": "=,=" * 50}
                    wire.ok("infer", model_name="m", **ASK)
            if how == "refuses":
                wait_until(lambda: "it answers 401" in running.log.read_text())
            elif how == "hangs":
                wait_until(lambda: collector.asked)
            assert running.stop(5) == 0
        log = running.log.read_text()
        assert log.count("the collector does not take traces") <= 1
        assert not [line for line in log.splitlines() if "opentelemetry" in line or "urllib3" in line]
        assert "Traceback" not in log
