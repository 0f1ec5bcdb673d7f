"""The commands about models: what a person reads, what a script gets, and the exit status."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bad_http import Answer, BadServer, bad_server
from kept_models import keep_tuned
from modelops.api import types
from modelops.cli import main
from modelops.cli.jobwords import lineage
from modelops.client import Client
from support import Served, serving, tiny_gguf, wait_until

BUDGET = 130
Run = Callable[[str], Result]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with little memory: the models `m`, `n`, `v` (embedding), `r` (reranker), `tuned`, and `wide` and
    `wider`, whose context costs much; `two.gguf` is a file in a folder that is not its own."""
    folder = tmp_path_factory.mktemp("models")
    tiny_gguf(folder / "theirs" / "two.gguf", general__name="two")
    kinds: dict[str, dict[str, int]] = {
        "m": {},
        "n": {},
        "v": {"llama__pooling_type": 1},
        "r": {"llama__pooling_type": 4},
        "wide": {"llama__block_count": 64, "llama__context_length": 32_768},
        "wider": {"llama__block_count": 64, "llama__context_length": 32_768},
    }
    links = [(name, tiny_gguf(folder / name, general__name=name, **entries)) for name, entries in kinds.items()]
    keep_tuned(folder / "data", "tuned", tiny_gguf(folder / "tuned", general__name="tuned"))
    catalogue = folder / "catalogue.toml"
    catalogue.write_text('[m]\naliases = ["mm", "mmm"]\n')
    env = {
        "MODELOPS_MODELS__CATALOGUE": str(catalogue),
        "MODELOPS_MEMORY__BUDGET_MB": str(BUDGET),
        "MODELOPS_MODELS__ROOTS": str(folder / "theirs"),
        "MODELOPS_MODELS__ALLOW_PRIVATE_SOURCES": "true",
        "MODELOPS_ENGINE__CONTEXT_LENGTH": "8192",
    }
    with serving(folder / "data", links=links, fake={}, env=env) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@pytest.fixture
def client(served: Served) -> Iterator[Client]:
    """A client of the coordinator, with nothing loaded before and after."""
    with Client(served.rest) as made:
        yield made
        for model in made.models():
            made.unload(model.model_name, force=True)


@pytest.fixture
def run(served: Served, client: Client) -> Run:
    """Runs a command line, without the program's name."""
    assert client.models() == []
    runner = CliRunner(env={"MODELOPS_URL": served.rest, "COLUMNS": "200"})
    return lambda line: runner.invoke(main, shlex.split(line))


def said(result: Result, status: int = 0) -> str:
    """What a command wrote: to standard output where it did what it should, else, one line, to standard error."""
    assert result.exit_code == status, result.output
    if not status:
        assert result.stderr == ""
        return result.stdout
    assert result.stdout == ""
    assert re.fullmatch(r"modelops: .*\n", result.stderr)
    return result.stderr


def as_json(result: Result, status: int = 0) -> Any:
    assert result.exit_code == status, result.output
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


# --- load ---
def test_load_passes_every_option_on(run: Run, client: Client) -> None:
    options = "--context-length 512 --slots 1 --cache-type q8_0 --keep-alive 5m --pin --gpu-layers -1 --quantization"
    assert re.fullmatch(r"'m' is loaded: v1, \d+ MB\n", said(run(f"load m {options}")))
    found = client.model("m")
    assert (found.context_length, found.slots, found.cache_type, found.pinned) == (512, 1, "q8_0", True)
    assert found.gpu_layers == -1
    assert re.search(r"^m +v1 +loaded, pinned +\d+ MB +0 +0 +m\.gguf *$", said(run("models")), re.MULTILINE)
    client.unload("m")
    said(run("load m --keep-alive 5m"))
    assert client.model("m").expires_at
    client.unload("m")
    said(run("load x --path two.gguf --type embedding"))
    assert client.model("x").model_type == "embedding"


def test_a_dry_run_says_what_would_be_done(run: Run, client: Client) -> None:
    told = said(run("load m --dry-run --context-length 512 --slots 1 --cache-type q8_0"))
    assert re.fullmatch(
        r"'m' would be loaded; nothing was done: v1, \d+ MB on cpu \(3 layers\); context 512, 1 slot, cache q8_0, "
        r"1 thread\n",
        told,
    )
    plan = types.ModelLoadReply.model_validate(as_json(run("load m --dry-run --slots 2 --json"))).plan
    assert plan
    assert plan.slots == 2
    assert client.models() == []
    for name in ("m", "n"):
        client.load(name)
    told = said(run("load v --dry-run"))
    assert re.match(r"'v' would be loaded after [mn] went; nothing was done: v1, \d+ MB on cpu", told)
    assert re.search(r", evicting [mn]; context 2048, 4 slots, ", told)


@pytest.mark.parametrize("dry", ["", "--dry-run"])
def test_what_does_not_fit_is_told_with_what_would(run: Run, client: Client, dry: str) -> None:
    told = said(run(f"load wide {dry}"), 1)
    assert re.match(r"modelops: 'wide' needs \d+ MB and \d+ MB are free \(held: no model\); it would fit with ", told)
    bill = as_json(run(f"load wide {dry} --json"), 1)
    assert bill["code"] == "insufficient_memory"
    way = bill["details"]["would_fit.1"]
    assert way in told
    name, value = way.split(" ")
    said(run(f"load wide --{name.replace('_', '-')} {value}"))
    assert client.model("wide").status == "loaded"


@pytest.mark.parametrize(
    ("line", "status", "says"),
    [
        ("load m --keep-alive soon", 2, "keep_alive"),
        ("load m --slots 999", 2, "slots"),
        ("load m --context-length -1", 2, "context_length"),
        ("load nobody --dry-run", 1, "there is no model 'nobody'"),
        ("load x --path missing.gguf", 1, "no such file"),
        ("load x --path ftp://host/x.gguf", 2, "no such kind of source"),
        ("infer m hi --keep-alive soon", 2, "keep_alive"),
        ("explain nobody", 1, "there is no model 'nobody'"),
        ("versions nobody", 1, "there is no model 'nobody'"),
        ("register m missing.gguf", 1, "no such file"),
        ("register ../m two.gguf", 2, "model_name"),
        ("activate m v9", 1, "'m' has no version 'v9'"),
        ("activate m 1", 2, "model_version"),
        ("rollback n", 1, "'n' has had no other version active before"),
        ("rm m v9", 1, "'m' has no version 'v9'"),
        ("rm nobody", 1, "there is no model 'nobody'"),
        ("embed m hi", 2, "'m' is a model of type 'llm'"),
        ("rerank m hi there", 2, "'m' is a model of type 'llm'"),
        ("infer v hi", 2, "'v' is a model of type 'embedding'"),
        ("rerank r q d --top -1", 2, "top_n"),
    ],
)
def test_a_refusal_is_one_line_and_a_status(run: Run, line: str, status: int, says: str) -> None:
    assert says in said(run(line), status)
    if not line.startswith("infer m"):
        told = as_json(run(f"{line} --json"), status)
        assert set(told) == {"code", "error", "details"}
        assert says in told["error"]


def test_wrong_options_are_explained(run: Run) -> None:
    for line, says in (
        ("load m --cache-type q5", "'q5' is not one of"),
        ("load m --type image", "'image' is not one of"),
        ("load m --slots many", "not a valid integer"),
        ("embed v", "Missing argument 'TEXTS"),
        ("rerank r q", "Missing argument 'DOCUMENTS"),
        ("activate m", "Missing argument 'VERSION'"),
        ("register m", "Missing argument 'PATH'"),
    ):
        result = run(line)
        assert (result.exit_code, result.stdout) == (2, "")
        assert says in result.stderr


# --- from a source ---
@pytest.fixture
def origin(tmp_path: Path) -> Iterator[BadServer]:
    """Another server, with a model."""
    with bad_server() as server:
        server.answers["/far.gguf"] = Answer(content=tiny_gguf(tmp_path / "far.gguf", general__name="far").read_bytes())
        yield server


def test_load_fetches_a_source_and_waits_for_it(run: Run, client: Client, origin: BadServer) -> None:
    source = origin.url("/far.gguf")
    assert re.fullmatch(r"'far' is loaded: v1, \d+ MB\n", said(run(f"load far --path {source} --slots 1")))
    assert client.model("far").slots == 1
    client.unload("far")
    assert as_json(run(f"load far --path {source} --json"))["model_version"] == "v1"
    client.unload("far")
    assert "fetching 'far'" in said(run(f"load far --path {source} --no-wait"))
    wait_until(lambda: client.model("far").status == "loaded")
    client.unload("far")
    assert said(run("rm far")) == "removed far v1: 0 MB of disk\n"


def test_a_source_that_cannot_be_had_is_a_failure(run: Run, client: Client, origin: BadServer) -> None:
    told = said(run(f"load gone --path {origin.url('/gone.gguf')}"), 1)
    assert told.startswith("modelops: 'gone' was not loaded: ")
    assert "gone.gguf" in told
    assert "gone" in said(run("models"))
    assert said(run("unload gone")) == "the failure of 'gone' is forgotten\n"
    assert client.models() == []


def test_a_model_is_shown_with_its_versions(run: Run, client: Client) -> None:
    first, *rest = said(run("models show n")).splitlines()
    assert first.startswith("n: llm, ")
    assert any(line.startswith("v1, active: ") for line in rest)
    shown = as_json(run("models show n --json"))
    assert shown["model"]["model_name"] == "n"
    assert [version["model_version"] for version in shown["versions"]][:1] == ["v1"]
    assert "the options of 'show' stand behind it" in run("models --all show n").output


def test_what_else_a_model_is_called_is_shown(run: Run) -> None:
    assert said(run("models show mmm")).splitlines()[:2] == ["m: llm, available", "also called mm, mmm"]


def test_how_a_model_was_tuned_is_shown_until_it_is_forgotten(run: Run, client: Client) -> None:
    told = "tuned by a goal: slots 3, cache_type q8_0, batch_size 128, speculation ngram"
    assert said(run("models show tuned")).splitlines()[1] == told
    said(run("load tuned"))
    assert "'tuned' is loaded as it was tuned; unload it" in said(run("load tuned --untuned"), 1)
    client.unload("tuned")
    assert ", 4 slots, " in said(run("load tuned --untuned --dry-run"))
    assert told in said(run("models show tuned"))
    said(run("load tuned --untuned"))
    assert (client.model("tuned").slots, client.model("tuned").tuned) == (4, {})
    assert "tuned by" not in said(run("models show tuned"))


def test_what_a_job_has_made_is_told_with_what_it_was_made_from() -> None:
    made = types.ModelVersion(
        model_name="m:x",
        model_version="v1",
        digest="sha256:1",
        lineage={
            "job_id": "a1",
            "job_type": "lora",
            "base_model": "m",
            "base_version": "v2",
            "base_digest": "sha256:2",
            "dataset_digest": "sha256:3",
            "parameters": {"rank": 8, "evaluation": {"system": ""}},
            "scores": {"held_out": {"before": {"f1": 0.25, "rows": 4}, "after": {"f1": 0.5, "rows": 4}}},
            "parity": {"mean_difference": 0.0015, "base_difference": None},
        },
    )
    assert dict(lineage(made)) == {
        "digest": "sha256:1",
        "made by": "learning job a1, lora",
        "base": "m v2, sha256:2",
        "rows": "sha256:3",
        "parameters": "rank 8",
        "held out": "f1 0.25 → 0.5",
        "parity": "mean_difference 0.0015",
    }


# --- versions ---
def test_versions_are_registered_activated_rolled_back_and_removed(run: Run, client: Client) -> None:
    def marks() -> dict[str, str]:
        columns, *rows = said(run("versions n")).splitlines()
        assert columns.split() == ["VERSION", "SIZE", "REGISTERED", "FILE"]
        return {row.split()[0]: row.split()[1] for row in rows}

    assert said(run("register n two.gguf")) == "'n' v2: two.gguf\n"
    assert as_json(run("register n two.gguf --json"))["model_version"] == "v2"
    assert marks() == {"v1": "active", "v2": "0"}  # behind no mark stands the size
    client.load("n")
    assert said(run("activate n v2")) == "'n' v2 is active\n"
    assert marks() == {"v1": "previous", "v2": "active"}
    assert said(run("rollback n --drain-first")) == "'n' v1 is active\n"
    assert client.model("n").model_version == "v1"
    assert types.ModelInfo.model_validate(as_json(run("activate n v2 --drain-first --json"))).status == "loaded"
    assert as_json(run("rollback n --json"))["model_version"] == "v1"
    assert [version["active"] for version in as_json(run("versions n --json"))] == [True, False]
    assert "'n' v1 is loaded; unload it first" in said(run("rm n"), 1)
    assert said(run("rm n v2")) == "removed n v2: 0 MB of disk\n"
    assert marks() == {"v1": "active"}


def test_an_activation_that_does_not_fit_says_what_helps(run: Run, client: Client) -> None:
    client.register("wide", "two.gguf")
    client.load("wide", context_length=1024, slots=3)
    client.load("m", pin=True)
    assert "with drain_first the present one ends before" in said(run("activate wide v2"), 1)
    assert said(run("activate wide v2 --drain-first")) == "'wide' v2 is active\n"
    assert client.activate("wide", "v1", drain_first=True).model_version == "v1"


def test_prune_says_what_it_removed(run: Run, served: Served) -> None:
    assert said(run("prune")) == "removed nothing: 0 MB of disk\n"
    copy = served.data_dir / "quantised" / f"{'0' * 64}-Q8_0.gguf"
    for line in ("prune", "prune --json"):
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(b"x" * 2**21)
        result = run(line)
        assert "quantised copy" in result.stdout
        assert "2 MB of disk" in said(result) or as_json(result)["freed_mb"] == 2


# --- looking ---
def test_a_models_memory_is_explained_line_by_line(run: Run, client: Client) -> None:
    lines = said(run("explain m")).splitlines()
    assert lines[0] == "m v1"
    parts = [float(line.split()[-2]) for line in lines if line.startswith("  ")]
    sums = {line.split("  ")[0].strip(): line for line in lines[1:] if not line.startswith("  ")}
    assert re.fullmatch(r"computed +\d+\.\d MB", sums["computed"])
    assert sum(parts) == pytest.approx(float(sums["computed"].split()[-2]), abs=0.5)
    assert sums["projected by the engine"].endswith(" -")  # the fake one projects nothing
    assert re.search(r"\d+\.\d MB   \(.*(computed|measured).*\)$", sums["a load reserves"])
    assert re.fullmatch(r"now: \d+ MB on cpu \(3 layers\); context 2048, 4 slots, cache f16, 1 thread", lines[-1])
    assert types.ModelExplanation.model_validate(as_json(run("explain m --json"))).plan
    assert said(run("explain wider")).splitlines()[-1].startswith("now: 'wider' needs ")
    assert client.models() == []


# --- asking ---
def test_embed_writes_a_vector_for_each_text(run: Run) -> None:
    lines = said(run("embed v 'one two' three 'one two'")).splitlines()
    assert lines[0] == lines[2] != lines[1]
    assert [len(line.split()) for line in lines] == [8, 8, 8]
    assert sum(float(value) ** 2 for value in lines[0].split()) == pytest.approx(1.0, abs=1e-3)
    answer = types.EmbedResponse.model_validate(as_json(run("embed v 'one two' --json")))
    assert [f"{value:.6g}" for value in answer.embeddings[0].values] == lines[0].split()


def test_rerank_writes_the_documents_best_first(run: Run) -> None:
    assert said(run("rerank r 'a b' 'b c' 'a b' x")) == "   2.0000  a b\n   1.0000  b c\n   0.0000  x\n"
    assert said(run("rerank r 'a b' 'b c' 'a b' x --top 1")) == "   2.0000  a b\n"
    answer = types.RerankResponse.model_validate(as_json(run("rerank r 'a b' 'b c' 'a b' --json")))
    assert [found.index for found in answer.results] == [1, 0]


def test_infer_may_say_how_long_the_model_stays(run: Run, client: Client) -> None:
    assert said(run("infer n hi --max-tokens 2 --keep-alive 1h")) == "w0 w1 \n"
    assert client.model("n").expires_at
    said(run("infer n hi --max-tokens 2 --keep-alive 0"))
    wait_until(lambda: client.model("n").status == "available")
