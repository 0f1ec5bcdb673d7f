"""The driver, against a fake engine that misbehaves as told, and against the real one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from modelops.api.errors import DeadlineExceeded, EngineFailed, InvalidRequest, ModelOpsError
from modelops.engines.base import CallPart, EngineBroke, EngineSpec, Likely, Piece, Prompt
from modelops.engines.llama_cpp import Engine, automatic_batch, find_executable
from support import FAKE_ENGINE

Make = Callable[..., Engine]

PROMPT = Prompt(text="Hello", system="", raw=False, max_tokens=4, temperature=0.0, top_p=0.9, stop=(), seed=None)
SPEC = EngineSpec(
    model_name="m",
    file=Path("/srv/models/m.gguf"),
    executable=str(FAKE_ENGINE),
    slots=2,
    context_length=512,
    threads=1,
    batch_size=64,
    cache_ram_mb=0,
    gpu_layers=-1,
    load_timeout_s=20.0,
    stop_timeout_s=2.0,
)


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "e.sock"


@pytest.fixture
async def fake(socket: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Makes an engine whose program is the fake one; what was started is stopped at the end."""
    made: list[Engine] = []

    def make(behaviour: dict[str, Any], **changes: Any) -> Engine:
        monkeypatch.setenv("FAKE_ENGINE", json.dumps(behaviour))
        made.append(Engine(replace(SPEC, **changes), socket))
        return made[-1]

    yield make
    for engine in made:
        await engine.stop()


@pytest.mark.parametrize(
    ("gpus", "seen"), [(None, None), ((), "-1"), (("GPU-a",), "GPU-a"), (("GPU-a", "GPU-b"), "GPU-a,GPU-b")]
)
async def test_an_engine_sees_the_gpus_of_its_spec(
    socket: Path, gpus: tuple[str, ...] | None, seen: str | None
) -> None:
    environment = Engine(replace(SPEC, gpus=gpus), socket).environment()
    assert environment.get("CUDA_VISIBLE_DEVICES") == seen
    assert environment.keys() - {"CUDA_VISIBLE_DEVICES"} == {"LLAMA_API_KEY", "GOMP_SPINCOUNT"}


@pytest.mark.parametrize("variable", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
async def test_how_threads_wait_is_the_users_to_say(
    socket: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "passive")
    assert Engine(SPEC, socket).environment().keys() == {"LLAMA_API_KEY"}


def tree(socket: Path) -> list[psutil.Process]:
    """Every process that was started for the engine at `socket`."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(socket) in process.cmdline():
                found.append(process)
    return found


async def text(engine: Engine, prompt: Prompt = PROMPT) -> str:
    async with contextlib.aclosing(engine.generate(prompt)) as pieces:
        return "".join([piece.text async for piece in pieces])


# --- starting ---
async def test_start_returns_when_the_engine_is_ready_and_not_before(fake: Make) -> None:
    engine = fake({"load_s": 0.5})
    began = asyncio.get_running_loop().time()
    await engine.start()
    assert asyncio.get_running_loop().time() - began >= 0.5
    assert await text(engine) == "w0 w1 w2 w3 "


@pytest.mark.parametrize(
    ("behaviour", "changes", "kind", "message"),
    [
        ({"load_s": 3600, "child": True}, {"load_timeout_s": 1.0}, DeadlineExceeded, "loading 'm' took more than 1 s"),
        ({"load_fails": "error: no such layer"}, {}, EngineFailed, "the engine ended with status 1: error: no such"),
        ({}, {"executable": "/srv/bin/llama-server"}, EngineFailed, "cannot run llama-server: No such file"),
        ({}, {"executable": "/etc/passwd"}, EngineFailed, "cannot run passwd: Permission denied"),
    ],
    ids=["too slow", "it fails", "missing", "no program"],
)
async def test_a_start_that_fails_says_why_and_leaves_nothing(
    fake: Make,
    socket: Path,
    behaviour: dict[str, Any],
    changes: dict[str, Any],
    kind: type[ModelOpsError],
    message: str,
) -> None:
    before = psutil.Process().children(recursive=True)
    engine = fake(behaviour, **changes)
    with pytest.raises(kind, match=message):
        await engine.start()
    assert psutil.Process().children(recursive=True) == before
    assert not socket.exists()


async def test_a_start_that_is_cancelled_leaves_nothing(fake: Make, socket: Path) -> None:
    engine = fake({"load_s": 3600, "ignore_term": True})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await engine.start()
    assert not tree(socket)


# --- answering ---
@pytest.mark.parametrize(
    ("behaviour", "answered", "kind", "message"),
    [
        ({"garbage": True}, "", EngineFailed, "broke the connection"),
        ({"status": 500}, "", EngineFailed, "the engine of 'm' answered 500: as told"),
        ({"status": 503}, "", EngineFailed, "the engine of 'm' answered 503: as told"),
        ({"status": 400}, "", InvalidRequest, "the engine refused the request: as told"),
        ({"die_after": 0}, "", EngineFailed, "the engine of 'm' was killed by SIGKILL"),
        ({"die_after": 2}, "w0 w1 ", EngineFailed, "the engine of 'm' was killed by SIGKILL"),
    ],
    ids=["garbage", "500", "503", "400", "dies at once", "dies later"],
)
async def test_a_broken_answer_is_the_documented_error(
    fake: Make, behaviour: dict[str, Any], answered: str, kind: type[ModelOpsError], message: str
) -> None:
    engine = fake(behaviour)
    await engine.start()
    pieces: list[str] = []
    with pytest.raises(kind, match=message):
        async with contextlib.aclosing(engine.generate(PROMPT)) as generated:
            async for piece in generated:
                pieces.append(piece.text)
    assert "".join(pieces) == answered


async def test_an_engine_that_hangs_can_be_left_and_stopped(fake: Make, socket: Path) -> None:
    engine = fake({"hang_after": 2, "ignore_term": True}, stop_timeout_s=0.2)
    await engine.start()
    pieces: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), contextlib.aclosing(engine.generate(PROMPT)) as generated:
            async for piece in generated:
                pieces.append(piece.text)
    assert pieces == ["w0 ", "w1 "]
    await engine.stop()
    assert not tree(socket)


# --- conversations ---
TALK = replace(PROMPT, text="", messages=({"role": "user", "content": "Hello"},))


async def test_what_a_conversations_events_say_is_told_apart(fake: Make) -> None:
    call = {"index": 1, "id": "c", "type": "function", "function": {"name": "add", "arguments": "{"}}
    others = [{"token": "\ufffd", "logprob": -0.5, "bytes": [137]}, {"token": "Ho", "logprob": -1.5}]
    likely = {"content": [{"token": "Hi", "logprob": -0.5, "top_logprobs": others}]}
    engine = fake(
        {
            "choices": [
                {"delta": {"role": "assistant", "content": None}, "finish_reason": None},
                {"delta": {"reasoning_content": "Hm."}},
                {"delta": {"content": "Hi"}, "logprobs": likely},
                {"delta": {"tool_calls": [call]}},
                {"delta": {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]}},
                {"delta": {}, "finish_reason": "tool_calls"},
            ]
        }
    )
    await engine.start()
    pieces = [piece async for piece in engine.generate(replace(TALK, options={"logprobs": True, "top_logprobs": 1}))]
    assert pieces == [
        Piece("", reasoning="Hm."),
        Piece("Hi", likely=(Likely("Hi", -0.5, (72, 105), (Likely("\ufffd", -0.5, (137,)),)),)),
        Piece("", calls=(CallPart(1, "c", "add", "{"),)),
        Piece("", calls=(CallPart(1, arguments="}"),)),
        Piece("", finish="tool_calls"),
        Piece("", tokens=6, prompt_tokens=1),
    ]


async def test_a_conversation_is_asked_in_its_turns_and_with_its_options(fake: Make) -> None:
    engine = fake({"echo": True})
    await engine.start()
    told = json.loads(await text(engine, replace(TALK, max_tokens=0, options={"top_k": 5, "logprobs": True})))
    assert (told["path"], told["messages"]) == ("/v1/chat/completions", list(TALK.messages))
    assert (told["max_tokens"], told["top_k"], told["stream"]) == (-1, 5, True)
    assert told["top_logprobs"] == 1, "asked for none, it would not tell of the token itself"
    assert "top_logprobs" not in json.loads(await text(engine, TALK))


# --- functions ---
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
OFFERED = replace(TALK, max_tokens=0, stop=("!",), options={"tools": [ADD], "tool_choice": "auto"})


async def test_functions_are_left_to_a_template_that_knows_them(fake: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    engine = fake({"echo": True})
    await engine.start()
    assert "tools are put to 'm' by its chat template" in caplog.text
    told = json.loads(await text(engine, OFFERED))
    assert (told["tools"], told["tool_choice"], told["stop"]) == ([ADD], "auto", ["!"])
    assert told["messages"] == list(TALK.messages)


async def test_else_they_are_put_in_words_and_the_answer_into_a_form(
    fake: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    engine = fake({"no_tools": True, "echo": True})
    await engine.start()
    assert "tools are put to 'm' by the server" in caplog.text
    # The echo is no call: it is read as one that never comes to its arguments, and is not leaked.
    assert await text(engine, OFFERED) == ""
    told = json.loads(await text(engine, TALK))
    assert told["messages"] == list(TALK.messages)


def said(*texts: str) -> list[dict[str, Any]]:
    return [{"delta": {"content": text}} for text in texts] + [{"delta": {}, "finish_reason": "stop"}]


async def test_calls_are_read_from_the_form(fake: Make) -> None:
    engine = fake({"no_tools": True, "choices": said('{"name": "add", ', '"arguments": {"a"', ": 1}", "}")})
    await engine.start()
    pieces = [piece async for piece in engine.generate(OFFERED)]
    (first, *rest) = [part for piece in pieces for part in piece.calls]
    assert (first.index, first.name, first.id[:5]) == (0, "add", "call_")
    assert "".join(part.arguments for part in rest) == '{"a": 1}'
    assert [piece.finish for piece in pieces if piece.finish] == ["tool_calls"]
    assert not any(piece.text for piece in pieces)
    assert pieces[-1].tokens == 5


async def test_a_text_ends_at_a_stop_sequence_and_the_engine_with_it(fake: Make) -> None:
    choices = said('{"response": "', "Hello", "! And", " more", '"}')
    engine = fake({"no_tools": True, "choices": choices, "hang_after": 4})
    await engine.start()
    pieces = [piece async for piece in engine.generate(OFFERED)]
    assert "".join(piece.text for piece in pieces) == "Hello"
    assert [piece.finish for piece in pieces if piece.finish] == ["stop"]


@pytest.mark.parametrize(("says", "details"), [("unknown schema", {"param": "tools"}), ("no", {})])
async def test_a_form_that_is_refused_is_the_fault_of_the_tools(fake: Make, says: str, details: dict[str, str]) -> None:
    engine = fake({"no_tools": True, "status": 400, "says": says})
    await engine.start()
    with pytest.raises(InvalidRequest, match=f"the engine refused the request: {says}") as error:
        await text(engine, OFFERED)
    assert error.value.details == details


async def test_arguments_that_the_engine_does_not_read_are_the_callers_fault(fake: Make) -> None:
    engine = fake({"status": 500, "says": "Failed to parse tool call arguments as JSON: [json.exception…] '1e999'"})
    await engine.start()
    with pytest.raises(InvalidRequest, match="the arguments of a call in the conversation are no JSON") as error:
        await text(engine, TALK)
    assert error.value.details == {"param": "messages"}


async def test_why_a_template_refuses_a_conversation_is_told(fake: Make) -> None:
    said = (
        "Unable to generate parser for this template. " + "… " * 300 + "^\nError: Jinja Exception: Roles must alternate"
    )
    engine = fake({"status": 400, "says": said})
    await engine.start()
    with pytest.raises(InvalidRequest, match=r"the chat template of 'm' refused .*: Roles must alternate$") as error:
        await text(engine, TALK)
    assert error.value.details == {"param": "messages"}


# --- vectors and scores ---
async def test_vectors_and_scores_come_in_the_order_of_the_texts(fake: Make) -> None:
    engine = fake({}, task="embed")
    await engine.start()
    vectors, tokens = await engine.embed(["one two", "three", "one two"])
    assert vectors[0] == vectors[2] != vectors[1]
    assert tokens == 5
    await engine.stop()
    engine = fake({}, task="rerank")
    await engine.start()
    assert await engine.rerank("a b", ["b", "c", "b a"]) == ([1.0, 0.0, 2.0], 6)


@pytest.mark.parametrize("task", ["embed", "rerank"])
@pytest.mark.parametrize(
    ("behaviour", "kind", "message"),
    [
        ({"garbage": True}, EngineFailed, "broke the connection"),
        ({"status": 500}, EngineFailed, "the engine of 'm' answered 500: as told"),
        ({"status": 400}, InvalidRequest, "the engine refused the request: as told"),
        ({"die_after": 0}, EngineFailed, "the engine of 'm' was killed by SIGKILL"),
        (
            {"status": 500, "says": "input (777 tokens) is too large to process. increase the physical batch size"},
            InvalidRequest,
            "a text has 777 tokens, and 'm' is served with a context of 512; shorten it",
        ),
    ],
    ids=["garbage", "500", "400", "dies", "too long"],
)
async def test_vectors_and_scores_that_do_not_come_are_the_documented_error(
    fake: Make, task: str, behaviour: dict[str, Any], kind: type[ModelOpsError], message: str
) -> None:
    engine = fake(behaviour, task=task)
    await engine.start()
    with pytest.raises(kind, match=re.escape(message)):
        await (engine.embed(["x"]) if task == "embed" else engine.rerank("x", ["y"]))


async def test_an_answer_that_is_not_of_its_form_is_no_engine_that_broke(fake: Make) -> None:
    said = "The model produced output that does not match the expected peg-native format"
    engine = fake({"status": 500, "says": said})
    await engine.start()
    with pytest.raises(EngineFailed, match="does not have the form that was asked for") as failed:
        await text(engine)
    assert not isinstance(failed.value, EngineBroke)


async def test_an_engine_that_was_not_started_for_it_gives_none(fake: Make) -> None:
    engine = fake({})
    await engine.start()
    with pytest.raises(EngineFailed, match="answered 501"):
        await engine.embed(["x"])


# --- silent ---
def program(engine: Engine) -> psutil.Process:
    """The engine itself, below its guard."""
    return psutil.Process(engine.pid).children()[0]


SILENT = re.escape("the engine of 'm' has not said anything for 0.5 s")


@pytest.mark.parametrize("behaviour", [{"prompt_s": 3600}, {"hang_after": 2}], ids=str)
async def test_an_engine_that_says_nothing_is_ended(fake: Make, socket: Path, behaviour: dict[str, Any]) -> None:
    engine = fake(behaviour | {"ignore_term": True}, stall_timeout_s=0.5)
    await engine.start()
    asked = [asyncio.create_task(text(engine)) for _ in range(2)]
    for answer in asked:
        with pytest.raises(EngineBroke, match=SILENT) as broke:
            await answer
        assert broke.value.reason == "its engine has not said anything for 0.5 s"
    assert (await engine.exited()).reason == "has not said anything for 0.5 s"
    assert not tree(socket)


async def test_so_is_one_that_somebody_has_stopped(fake: Make) -> None:
    engine = fake({"token_s": 0.01}, stall_timeout_s=0.5)
    await engine.start()
    assert await text(engine) == "w0 w1 w2 w3 "
    program(engine).suspend()
    with pytest.raises(EngineBroke, match=SILENT):
        await text(engine)


async def test_one_word_to_anybody_is_a_sign_of_life(fake: Make) -> None:
    engine = fake({"token_s": 0.1}, stall_timeout_s=0.5)
    await engine.start()
    assert len(await text(engine, replace(PROMPT, max_tokens=12))) > 12


async def test_a_reader_that_is_slow_is_no_silent_engine(fake: Make) -> None:
    engine = fake({}, stall_timeout_s=0.3)
    await engine.start()
    async with contextlib.aclosing(engine.generate(PROMPT)) as pieces:
        assert (await anext(pieces)).text == "w0 "
        await asyncio.sleep(1.0)  # it has said everything long ago
        assert "".join([piece.text async for piece in pieces]) == "w1 w2 w3 "
    assert await text(engine) == "w0 w1 w2 w3 "


async def leave_early(engine: Engine, seconds: float) -> None:
    """Callers that wait for a moment only, one after another."""
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.7):
                await text(engine)


async def test_callers_that_leave_early_do_not_hide_it(fake: Make) -> None:
    engine = fake({}, stall_timeout_s=1.0)
    await engine.start()
    program(engine).suspend()
    with pytest.raises(EngineFailed):
        await leave_early(engine, 30)
    assert (await engine.exited()).reason == "has not said anything for 1 s"


async def test_nor_do_they_end_one_that_computes(fake: Make) -> None:
    engine = fake({"busy_s": 1.0}, stall_timeout_s=1.0)
    await engine.start()
    await leave_early(engine, 3.0)
    assert await text(engine) == "w0 w1 w2 w3 "


@pytest.mark.parametrize("task", ["embed", "rerank"])
async def test_vectors_and_scores_may_take_long_while_the_engine_computes(fake: Make, task: str) -> None:
    for behaviour in ({"busy_s": 2.5}, {"prompt_s": 3600}):
        engine = fake(behaviour, task=task, stall_timeout_s=1.0)
        await engine.start()
        asked = engine.embed(["x"]) if task == "embed" else engine.rerank("x", ["y"])
        if "busy_s" in behaviour:
            assert await asked
        else:
            with pytest.raises(EngineBroke, match="has not said anything for 1 s"):
                await asked
        await engine.stop()


async def test_an_engine_that_nobody_asks_may_be_silent(fake: Make) -> None:
    engine = fake({}, stall_timeout_s=0.2)
    await engine.start()
    for _ in range(2):
        assert await text(engine) == "w0 w1 w2 w3 "
        await asyncio.sleep(0.5)
    assert program(engine).is_running()


# --- paused ---
async def test_a_paused_engine_goes_on_where_it_was(fake: Make) -> None:
    engine = fake({"token_s": 0.01})
    await engine.start()
    (program,) = psutil.Process(engine.pid).children()
    async with contextlib.aclosing(engine.generate(replace(PROMPT, max_tokens=30))) as pieces:
        found = [(await anext(pieces)).text]
        engine.pause()
        while program.status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.005)
        engine.resume()
        found += [piece.text async for piece in pieces]
    assert "".join(found) == "".join(f"w{number} " for number in range(30))
    engine.pause()
    await engine.stop()  # a paused one ends like any other
    assert (await engine.exited()).reason == "was killed by SIGTERM"
    engine.pause()  # of what is gone: no harm
    engine.resume()


async def test_what_it_takes_is_its_own_memory_and_its_processes_are_told(fake: Make) -> None:
    engine = fake({"hold": 100_000})
    assert (engine.taken_bytes(), engine.pids()) == (0, set())
    await engine.start()
    before = engine.taken_bytes()
    assert before > 50_000 * 1024
    await text(engine)
    assert engine.taken_bytes() - before > 40_000 * 1024
    assert {process.pid for process in psutil.Process(engine.pid).children()} | {engine.pid} == engine.pids()
    await engine.stop()
    assert (engine.taken_bytes(), engine.pids()) == (0, set())


# --- its key, and its end ---
async def test_the_key_is_in_no_command_line(fake: Make, socket: Path) -> None:
    engine = fake({})
    await engine.start()
    guard, program = tree(socket)
    key = program.environ()["LLAMA_API_KEY"]
    assert len(key) >= 24
    assert not any(key in part for process in (guard, program) for part in process.cmdline())


async def test_stop_leaves_no_process_and_no_socket(fake: Make, socket: Path) -> None:
    engine = fake({"child": True})
    await engine.start()
    family = psutil.Process(engine.pid).children(recursive=True)
    assert len(family) == 2
    assert socket.exists()
    await engine.stop()
    assert not socket.exists()
    assert psutil.wait_procs(family, 0)[1] == []
    assert (await engine.exited()).reason == "was killed by SIGTERM"
    assert engine.memory_bytes() == 0


# --- which program, and how it is set ---
def test_an_executable_that_is_configured_must_be_one() -> None:
    assert Path(find_executable("sh")).name == "sh"
    assert find_executable("") == ""
    with pytest.raises(EngineFailed, match="'llama-server-of-mine', which is no executable"):
        find_executable("/srv/llama-server-of-mine")


@pytest.mark.parametrize(
    ("file_bytes", "threads", "on_gpu", "tokens"),
    [
        (98_000_000, 2, False, 64),
        (98_000_000, 1, False, 32),
        (8_000_000_000, 2, False, 32),
        (98_000_000, 64, False, 2048),
        (8_000_000_000, 2, True, 2048),
        (0, 1, False, 2048),
    ],
)
def test_the_automatic_batch_is_a_power_of_two_in_bounds(
    file_bytes: int, threads: int, on_gpu: bool, tokens: int
) -> None:
    assert automatic_batch(file_bytes, threads, on_gpu) == tokens


# --- the real engine ---
real = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def smol(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    """The real engine with the default model and a small context."""
    spec = replace(SPEC, file=smollm2, executable="", context_length=256)
    engine = Engine(spec, tmp_path_factory.mktemp("smol") / "e.sock")
    await engine.start()
    yield engine
    await engine.stop()


class TestReal:
    """What only the real engine can show."""

    pytestmark = real

    async def test_a_prompt_that_is_too_long_is_the_callers_mistake(self, smol: Engine) -> None:
        words = " ".join(secrets.choice(("red", "green", "blue")) for _ in range(400))
        with pytest.raises(InvalidRequest, match=r"has [34]\d\d tokens, and 'm' is served with a context of 256"):
            await text(smol, replace(PROMPT, text=words, raw=True))
        assert await text(smol)  # the next one is answered

    async def test_the_chat_template_is_applied_unless_raw(self, smol: Engine) -> None:
        counting = replace(PROMPT, text="One, two, three, four,", max_tokens=6)
        assert (await text(smol, replace(counting, raw=True))).startswith(" five")
        assert not (await text(smol, counting)).startswith(" five")

    async def test_a_system_turn_changes_the_answer(self, smol: Engine) -> None:
        asked = replace(PROMPT, text="Who are you?", max_tokens=16)
        assert await text(smol, asked) != await text(smol, replace(asked, system="You are a pirate named Bob."))

    async def test_stop_sequences_end_the_answer_and_are_no_part_of_it(self, smol: Engine) -> None:
        counting = replace(PROMPT, text="One, two, three, four,", raw=True, max_tokens=16)
        assert (await text(smol, counting)).startswith(" five, six, seven,")
        assert await text(smol, replace(counting, stop=("zebra", " seven"))) == " five, six,"

    async def test_tokens_are_counted_and_bounded(self, smol: Engine) -> None:
        pieces = [piece async for piece in smol.generate(replace(PROMPT, max_tokens=5))]
        assert pieces[-1].tokens == 5
        assert all(piece.tokens is None for piece in pieces[:-1])

    async def test_the_tokens_of_the_prompt_are_told_as_they_are_read(self, smol: Engine) -> None:
        async with contextlib.aclosing(smol.generate(replace(PROMPT, text="one two three " * 60))) as pieces:
            read = [piece.prompt_tokens async for piece in pieces if piece.prompt_tokens]
        assert read == sorted(read)
        assert len(read) > 1, "the engine says how far it is"
        assert 150 < read[-1] < 400

    async def test_a_seed_makes_sampling_repeatable(self, smol: Engine) -> None:
        story = replace(PROMPT, text="Tell a story.", temperature=1.0, max_tokens=24)
        seeded = [await text(smol, replace(story, seed=seed)) for seed in (7, 7, 8)]
        assert seeded[0] == seeded[1] != seeded[2]
        assert len({await text(smol, story) for _ in range(3)}) > 1


@pytest.mark.engine
@pytest.mark.parametrize(
    "changes",
    [{"flash_attention": "on"}, {"flash_attention": "off"}, {"speculation": "ngram"}, {"speculation": "draft"}],
    ids=lambda changes: " ".join(changes.values()),
)
async def test_an_answer_is_the_same_however_it_is_computed(
    smollm2: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Of a prompt that says the same again and again, so that what is guessed from it is right."""
    circle = "def area_of_circle(radius):\n    return 3.14159 * radius * radius\n\n"
    prompt = replace(PROMPT, text=circle * 3 + "def area_of_circle(", raw=True, max_tokens=24)
    spec = replace(SPEC, file=smollm2, executable="")
    told = []
    for number, way in enumerate(
        (spec, replace(spec, draft=smollm2 if "draft" in changes.values() else None, **changes))
    ):
        engine = Engine(way, tmp_path / f"{number}.sock")
        try:
            await engine.start()
            told.append(await text(engine, prompt))
        finally:
            await engine.stop()
    assert told[0].startswith("radius):\n    return 3.14159")
    assert told[0] == told[1]
