"""The messages of `chat`: a conversation instead of one turn, with tools, forced formats and log probabilities.

Schemas are JSON written as text, so that all transports carry them alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, ValidationInfo, model_validator
from pydantic_core.core_schema import CoreSchema, no_info_after_validator_function

from modelops.api.errors import InvalidRequest
from modelops.api.forms import check
from modelops.api.messages import (
    KeepAlive,
    MinP,
    Name,
    Penalty,
    RepeatPenalty,
    Request,
    Response,
    Seed,
    Stop,
    Text,
    TopK,
    from_json,
)
from modelops.api.types import FinishReason

Role = Literal["system", "user", "assistant", "tool"]
#: What `tool_choice` may be beside the name of a function.
CHOICES = ("auto", "none", "required")


class Schema(str):
    """A JSON Schema as text, and read."""

    __slots__ = ("read",)
    read: Mapping[str, Any]

    def __new__(cls, text: str = "", read: Mapping[str, Any] | None = None) -> Self:
        """`read` is what the text says."""
        made = super().__new__(cls, text)
        made.read = read or {}
        return made

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(_read, handler(Text))


def _read(text: str) -> Schema:
    try:
        found = from_json(text.encode()) if text else {}
    except InvalidRequest:
        raise ValueError("must be JSON") from None
    if type(found) is not dict:
        raise ValueError("must be a JSON object")
    check(found, strict=False)
    return Schema(text, found)


#: Of the context of `ChatRequest.parse`: the answer is to have the form as far as an engine keeps to it.
LOOSE: Mapping[str, Any] = {"loose": True}


def _kept(schema: Schema, info: ValidationInfo) -> Schema:
    if not (info.context or {}).get("loose"):
        check(schema.read, strict=True)
    return schema


_FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class ToolCall(Request):
    """A function that the model wants called: `arguments` are JSON as the model wrote it, which may be none."""

    id: Text = ""
    name: Text = ""
    arguments: Text = ""


class ChatTurn(Request):
    """One turn. `tool_calls` are of an assistant's; `tool_call_id` says which call a `tool` message answers."""

    role: Role
    content: Text = ""
    name: Text = Field("", max_length=128)
    tool_calls: list[ToolCall] = Field([], max_length=128)
    tool_call_id: Text = Field("", max_length=128)


class Tool(Request):
    """A function that the model may want called."""

    name: _FunctionName
    description: Text = ""
    parameters: Schema = Field(Schema(), description="JSON Schema of its arguments, as text.")


class ChatRequest(Request):
    """A conversation for a model to go on with, in the model's own chat template."""

    model_name: Name
    messages: list[ChatTurn] = Field(min_length=1, max_length=1000)
    max_tokens: int = Field(0, ge=0, le=2**20, description="0: as many as the context has room for.")
    temperature: float = Field(0.7, ge=0.0, le=2.0, allow_inf_nan=False)
    top_p: float = Field(0.9, ge=0.0, le=1.0, allow_inf_nan=False)
    stop_sequences: list[Stop] = Field([], max_length=10)
    seed: Seed | None = None
    stream: bool = Field(False, description="Answer as the text is made (REST: server-sent events).")
    keep_alive: KeepAlive | None = Field(
        None, description='How long the model stays after this answer: seconds or "5m"; 0: not at all; -1: for ever.'
    )
    tools: list[Tool] = Field([], max_length=128)
    tool_choice: Text = Field(
        "auto", max_length=64, description="auto, none, required (some function), or the name of one."
    )
    parallel_tool_calls: bool | None = Field(None, description="Several calls in one answer; by default one.")
    json_object: bool = Field(False, description="The answer is a JSON object.")
    json_schema: Annotated[Schema, AfterValidator(_kept)] = Field(
        Schema(), description="The answer is JSON of this schema, written as text."
    )
    logprobs: bool = Field(False, description="Tell how likely each token of the answer was.")
    top_logprobs: int = Field(0, ge=0, le=20, description="And so many of those that were likely in its place.")
    top_k: TopK | None = None
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        names = [tool.name for tool in self.tools]
        if len({*names}) < len(names):
            raise ValueError("tools: two of them have the same name")
        if self.tool_choice not in (*CHOICES, *names):
            raise ValueError("tool_choice is auto, none, required or the name of one of the tools")
        if self.tool_choice not in ("auto", "none") and not self.tools:
            raise ValueError("tool_choice wants a function called, and there are no tools")
        offered = self.tools and self.tool_choice != "none"
        if offered and (self.json_schema or self.json_object):
            name = "json_schema" if self.json_schema else "json_object"
            raise ValueError(f"{name} and tools exclude each other: a call has the form of its function")
        if offered and self.logprobs:
            raise ValueError("logprobs and tools exclude each other: what becomes a call is not told token by token")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs are told with logprobs only")
        return self


class ToolCallPart(Response):
    """A piece of the call number `index`: its id and name come first, its arguments piece by piece."""

    index: int = 0
    id: str = ""
    name: str = ""
    arguments: str = ""


class Alternative(Response):
    """A token that might have been, and the natural logarithm of its probability.

    `utf8` are its bytes: a token may be a part of a character, of which `token` cannot show anything.
    """

    token: str
    logprob: float
    utf8: list[int] = []


class TokenLogprob(Response):
    """A token of the answer, with the natural logarithm of its probability, and those in its place.

    Of a character that several tokens make up, the engine tells only the last.
    """

    token: str
    logprob: float
    utf8: list[int] = []
    top: list[Alternative] = []


class ChatMessage(Response):
    """What the model said, and which functions it wants called."""

    role: Role = "assistant"
    content: str = ""
    tool_calls: list[ToolCallPart] = []
    reasoning: str = Field("", description="What a model that thinks aloud thought before.")


class ChatResponse(Response):
    """The answer. `success` is false only where it was cut short after output had begun."""

    message: ChatMessage = ChatMessage()
    finish_reason: FinishReason = Field("", description="stop, length (of the answer or the context) or tool_calls.")
    prompt_tokens: int = 0
    tokens_generated: int = 0
    latency_ms: float = 0.0
    model_version: str = ""
    logprobs: list[TokenLogprob] = []
    success: bool = True
    error_message: str = ""


class ChatChunk(Response):
    """A piece of a streamed answer; `final` comes with `done` and holds the whole."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallPart] = []
    logprobs: list[TokenLogprob] = []
    done: bool = False
    final: ChatResponse | None = None
