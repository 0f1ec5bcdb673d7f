"""Conversations: what an engine says in pieces, put together; and what becomes of them where it breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelops.api import types
from modelops.api.chat import ChatChunk, ChatRequest, ChatResponse
from modelops.api.errors import DeadlineExceeded, EngineFailed, InvalidRequest
from modelops.service import Coordinator
from service.asking import EMPTY, Start, call, load, until

TOOLS = [{"name": "add"}, {"name": "look_up"}]


def talk(**fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "a secret"}]
    return ChatRequest.parse({"model_name": "m", "messages": messages, "max_tokens": 3} | fields)


def said(**delta: Any) -> dict[str, Any]:
    """An event of the engine that says so much."""
    return {"index": 0, "finish_reason": None, "delta": delta}


def calling(index: int, **function: str) -> dict[str, Any]:
    return said(
        tool_calls=[{"index": index, **({"id": f"c{index}"} if "name" in function else {}), "function": function}]
    )


def ended(reason: str) -> dict[str, Any]:
    return {"index": 0, "finish_reason": reason, "delta": {}}


def likely(token: str, logprob: float, *others: tuple[str, float]) -> dict[str, Any]:
    """An event that says a token, and what else it might have been."""
    top = [{"token": other, "logprob": value, "bytes": []} for other, value in others]
    return said(content=token) | {"logprobs": {"content": [{"token": token, "logprob": logprob, "top_logprobs": top}]}}


async def streamed(door: Coordinator, request: ChatRequest) -> tuple[list[ChatChunk], ChatResponse]:
    """The chunks of the answer, and its end."""
    *chunks, last = [chunk async for chunk in door.chat_stream(call(), request)]
    assert not any(chunk.done or chunk.final for chunk in chunks)
    assert last.done
    assert last.final
    return chunks, last.final


async def test_an_answer_is_the_same_whole_and_in_pieces(door: Coordinator) -> None:
    whole = await door.chat(call(), talk())
    assert (whole.message.role, whole.message.content, whole.message.tool_calls) == ("assistant", "w0 w1 w2 ", [])
    assert (whole.tokens_generated, whole.prompt_tokens, whole.model_version) == (3, 1, "v1")
    assert (whole.success, whole.error_message) == (True, "")
    assert whole.latency_ms > 0
    chunks, final = await streamed(door, talk())
    assert [chunk.text for chunk in chunks] == ["w0 ", "w1 ", "w2 "]
    assert final.model_copy(update={"latency_ms": whole.latency_ms}) == whole


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls", "eaten"])
async def test_why_it_ended_is_told_where_it_is_known(door: Coordinator, behaviour: Any, reason: str) -> None:
    behaviour(choices=[said(content="Hi"), ended(reason)])
    found = await door.chat(call(), talk())
    assert (found.message.content, found.finish_reason) == ("Hi", "stop" if reason == "eaten" else reason)


async def test_calls_are_put_together_by_their_number(door: Coordinator, behaviour: Any) -> None:
    behaviour(
        choices=[
            said(role="assistant", content=None),
            calling(0, name="add", arguments=""),
            calling(0, arguments='{"a":'),
            calling(1, name="look_up", arguments="{"),
            calling(0, arguments=" 2}"),
            calling(1, arguments="}"),
            ended("tool_calls"),
        ]
    )
    chunks, final = await streamed(door, talk(tools=TOOLS))
    assert [[(part.index, part.id, part.name, part.arguments) for part in chunk.tool_calls] for chunk in chunks] == [
        [(0, "c0", "add", "")],
        [(0, "", "", '{"a":')],
        [(1, "c1", "look_up", "{")],
        [(0, "", "", " 2}")],
        [(1, "", "", "}")],
    ]
    assert [(part.id, part.name, part.arguments) for part in final.message.tool_calls] == [
        ("c0", "add", '{"a": 2}'),
        ("c1", "look_up", "{}"),
    ]
    assert (final.message.content, final.finish_reason) == ("", "tool_calls")
    assert (await door.chat(call(), talk(tools=TOOLS))).message == final.message


async def test_what_was_thought_is_told_apart(door: Coordinator, behaviour: Any) -> None:
    behaviour(
        choices=[said(reasoning_content="Hm, "), said(reasoning_content="so."), said(content="Yes."), ended("stop")]
    )
    chunks, final = await streamed(door, talk())
    assert [(chunk.reasoning, chunk.text) for chunk in chunks] == [("Hm, ", ""), ("so.", ""), ("", "Yes.")]
    assert (final.message.reasoning, final.message.content) == ("Hm, so.", "Yes.")


@pytest.mark.parametrize("most", [0, 1, 2])
async def test_how_likely_it_was_is_told_with_as_many_others_as_were_asked_for(
    door: Coordinator, behaviour: Any, most: int
) -> None:
    others = (("Hi", -0.25), ("Ho", -1.5))
    behaviour(choices=[likely("Hi", -0.25, *others), likely("", -1.0), likely("!", -3.4e38), ended("stop")])
    chunks, final = await streamed(door, talk(logprobs=True, top_logprobs=most))
    assert [(one.token, one.logprob) for one in final.logprobs] == [("Hi", -0.25), ("", -1.0), ("!", -3.4e38)]
    assert [(other.token, other.logprob) for other in final.logprobs[0].top] == list(others[:most])
    assert [one for chunk in chunks for one in chunk.logprobs] == final.logprobs
    assert (final.message.content, final.tokens_generated) == ("Hi!", 4)


async def test_what_the_catalogue_says_of_the_model_holds(start: Start, behaviour: Any, tmp_path: Path) -> None:
    behaviour(echo=True)
    catalogue = tmp_path / "catalogue.toml"
    catalogue.write_text('[m]\nsystem = "Be brief."\nstop = ["END"]\naliases = ["talker"]\n')
    async with start(models={"catalogue": catalogue}) as parts:
        found = await parts.coordinator.chat(call(), talk(model_name="talker", logprobs=True))
    told = json.loads(found.message.content)
    assert (told["path"], told["max_tokens"], told["stop"]) == ("/v1/chat/completions", 3, ["END"])
    assert [(turn["role"], turn["content"]) for turn in told["messages"]] == [
        ("system", "Be brief."),
        ("user", "a secret"),
    ]
    assert (told["logprobs"], told["top_logprobs"]) == (True, 1), "asked for none, it would tell nothing at all"


async def test_without_a_bound_the_engine_answers_as_long_as_it_can(door: Coordinator, behaviour: Any) -> None:
    behaviour(echo=True)
    told = json.loads((await door.chat(call(), talk(max_tokens=0))).message.content)
    assert told["max_tokens"] == -1


# --- where it breaks ---
@pytest.mark.parametrize("die_after", [0, 2])
async def test_a_whole_answer_is_asked_for_once_more(
    door: Coordinator, behaviour: Any, tmp_path: Path, die_after: int, caplog: pytest.LogCaptureFixture
) -> None:
    behaviour(die_after=die_after, dies_once=str(tmp_path / "dead"))
    assert (await door.chat(call(), talk())).message.content == "w0 w1 w2 "
    assert "request 1 is asked once more: its engine was killed by SIGKILL" in caplog.text
    assert "secret" not in caplog.text


async def test_a_stream_is_asked_for_once_more_before_its_first_word(
    door: Coordinator, behaviour: Any, tmp_path: Path
) -> None:
    behaviour(die_after=0, dies_once=str(tmp_path / "dead"))
    chunks, final = await streamed(door, talk())
    assert ([chunk.text for chunk in chunks], final.success) == (["w0 ", "w1 ", "w2 "], True)


@pytest.mark.parametrize(
    "choices",
    [
        [said(content="Hi"), said(content="!")],
        [said(reasoning_content="Hm"), said(content="!")],
        [calling(0, name="add", arguments="{"), calling(0, arguments="}")],
    ],
    ids=["text", "thought", "call"],
)
async def test_a_stream_that_has_said_anything_is_cut_short(
    door: Coordinator, behaviour: Any, choices: list[dict[str, Any]]
) -> None:
    behaviour(choices=choices, die_after=1)
    chunks, final = await streamed(door, talk(tools=TOOLS))
    assert len(chunks) == 1
    assert (final.success, final.tokens_generated, final.finish_reason) == (False, 1, "")
    assert "SIGKILL" in final.error_message
    assert (final.message.content, final.message.reasoning) == (chunks[0].text, chunks[0].reasoning)
    assert final.message.tool_calls == chunks[0].tool_calls
    with pytest.raises(EngineFailed, match="SIGKILL"):
        await door.chat(call(), talk())


async def test_an_engine_that_says_what_none_should_has_broken(door: Coordinator, behaviour: Any) -> None:
    for odd in (said(tool_calls=[{"index": "first"}]), said(tool_calls=5), said(content="x") | {"logprobs": [5]}):
        behaviour(choices=[odd])
        await door.load_model(call(), load())
        with pytest.raises(EngineFailed, match="broke the connection"):
            await door.chat(call(), talk())
        await door.unload_model(call(), types.ModelUnloadRequest(model_name="m", force=True))


async def test_a_stream_that_is_left_frees_its_slot(door: Coordinator, behaviour: Any) -> None:
    behaviour(token_s=0.01)
    stream = door.chat_stream(call(), talk(max_tokens=1000))
    assert (await anext(stream)).text == "w0 "
    assert (await door.status(call(), EMPTY)).active_requests == 1
    await stream.aclose()
    await until(door, lambda info: info.active_requests == 0)


async def test_the_deadline_holds(door: Coordinator, behaviour: Any) -> None:
    behaviour(hang_after=0)
    await door.load_model(call(), load())
    with pytest.raises(DeadlineExceeded):
        await door.chat(call(timeout_s=0.3), talk())
    assert (await door.status(call(), EMPTY)).active_requests == 0


@pytest.mark.parametrize("model_type", ["embedding", "reranker"])
async def test_a_model_of_another_type_does_not_talk(door: Coordinator, model_type: str) -> None:
    await door.load_model(call(), load(model_type=model_type))
    with pytest.raises(InvalidRequest, match=f"'m' is a model of type '{model_type}'"):
        await door.chat(call(), talk())


@pytest.mark.parametrize("kept", [False, True])
async def test_what_was_said_is_kept_only_where_the_settings_say_so(start: Start, kept: bool) -> None:
    async with start(log={"prompts": kept}) as parts:
        asked = call()
        await parts.coordinator.chat(asked, talk())
    messages = json.dumps([{"role": "user", "content": "a secret"}])
    assert (asked.record.prompt, asked.record.answer) == ((messages, "w0 w1 w2 ") if kept else ("", ""))
