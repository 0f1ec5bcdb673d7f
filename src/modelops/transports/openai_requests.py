"""From OpenAI's requests to our own. Pure: raises InvalidRequest where it cannot; its detail `param` names the field.

What a value may be is our own types' to check; here it is only looked at as far as it has another form.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from modelops.api.chat import CHOICES, LOOSE, ChatRequest
from modelops.api.errors import InvalidRequest
from modelops.api.forms import Unkept, check
from modelops.api.messages import Request
from modelops.api.types import EmbedRequest, GetModelRequest, InferenceRequest, RerankRequest
from modelops.transports.openai_fields import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, given, refuse

_Ours = TypeVar("_Ours", bound=Request)
#: Ours → theirs, where a field is called otherwise.
_NAMES = {
    "model_name": "model",
    "stop_sequences": "stop",
    "inputs": "input",
    "input_text": "prompt",
    "json_schema": "response_format",
    "json_object": "response_format",
}
_KNOWN = frozenset((*CHAT, *COMPLETIONS, *EMBEDDINGS, *RERANK))
#: A fault as our types tell it: of one field, or of several together.
_FAULT = re.compile(r"(\w+)((?:\.\w+)*)(.*)", re.DOTALL)
#: Of a tool: all that we know of one is what they say of its function.
_OF_FUNCTION = re.compile(r"(\.\d+)(\.\w+)")
_EXTRAS = ("top_k", "min_p", "repeat_penalty")
_COMPLETION_SAME = ("stream", "seed", "presence_penalty", "frequency_penalty", *_EXTRAS)
_CHAT_SAME = (*_COMPLETION_SAME, "logprobs", "top_logprobs", "parallel_tool_calls")
#: Of one request, which waits for one place; as many as OpenAI makes.
_MOST_ANSWERS = 128
_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"developer": "system"}
#: `parsed` is what OpenAI's client has read in the content, and sends back with it.
_ASSISTANTS = frozenset(("tool_calls", "reasoning_content", "annotations", "parsed"))
_PARTS = {"image_url": "image", "input_audio": "audio"}


@dataclass(frozen=True)
class Asked:
    """What is asked, and how many answers there are to be to each question."""

    questions: Sequence[ChatRequest] | Sequence[InferenceRequest]
    n: int

    @property
    def model(self) -> str:
        """Who is asked."""
        return self.questions[0].model_name

    @property
    def stream(self) -> bool:
        """Whether the answers are wanted as they are made."""
        return self.questions[0].stream


def model(fields: Mapping[str, Any]) -> GetModelRequest:
    """Which model is asked about."""
    return _parse(GetModelRequest, fields)


def chat(fields: Mapping[str, Any]) -> Asked:
    """A chat completion's request."""
    said = given(fields, CHAT)
    _want(said, "model", "messages")
    asked: dict[str, Any] = _sampling(said) | {name: said[name] for name in _CHAT_SAME if name in said}
    asked["messages"] = [_turn(f"messages.{at}", one) for at, one in enumerate(_list("messages", said["messages"]))]
    limits = {name: said[name] for name in ("max_completion_tokens", "max_tokens") if name in said}
    for name, limit in limits.items():
        if type(limit) is int and limit < 1:
            refuse(name, "must be at least 1")
        if asked.setdefault("max_tokens", limit) != limit:
            refuse(name, "is not what max_completion_tokens says")
    if "tools" in said:
        asked["tools"] = [_tool(f"tools.{at}", one) for at, one in enumerate(_list("tools", said["tools"]))]
    if "tool_choice" in said:
        asked["tool_choice"] = _choice(said["tool_choice"])
    if "response_format" in said:
        asked |= _format(said["response_format"])
    names = {"max_tokens": next(iter(limits), "max_tokens")} | _alone(said, "stop", "stop_sequences")
    return _several(said, [_parse(ChatRequest, asked, names, LOOSE)])  # what is strict has been checked by then


def completion(fields: Mapping[str, Any]) -> Asked:
    """A completion's requests: each text is gone on with as it stands."""
    said = given(fields, COMPLETIONS)
    _want(said, "model", "prompt")
    prompts = [said["prompt"]] if isinstance(said["prompt"], str) else _list("prompt", said["prompt"])
    if not 1 <= len(prompts) <= _MOST_ANSWERS:
        refuse("prompt", f"must be 1 to {_MOST_ANSWERS} texts")
    if not all(isinstance(prompt, str) for prompt in prompts):
        refuse("prompt", "texts are supported, and no tokens")
    asked = _sampling(said) | {name: said[name] for name in _COMPLETION_SAME if name in said}
    asked |= {"raw": True, "max_tokens": said.get("max_tokens", 16)}
    alone = _alone(said, "stop", "stop_sequences")
    names = ["prompt"] if isinstance(said["prompt"], str) else [f"prompt.{at}" for at in range(len(prompts))]
    return _several(
        said,
        [
            _parse(InferenceRequest, asked | {"input_text": prompt}, {"input_text": name} | alone)
            for name, prompt in zip(names, prompts, strict=True)
        ],
    )


def embedding(fields: Mapping[str, Any]) -> EmbedRequest:
    """An embedding's request; its form and its dimensions are for the answer."""
    said = given(fields, EMBEDDINGS)
    _want(said, "model", "input")
    if said.get("encoding_format", "float") not in ("float", "base64"):
        refuse("encoding_format", "must be float or base64")
    dimensions = said.get("dimensions", 1)
    if type(dimensions) is not int or dimensions < 1:
        refuse("dimensions", "must be a whole number from 1 on")
    inputs = [said["input"]] if isinstance(said["input"], str) else _list("input", said["input"])
    if inputs and isinstance(inputs[0], int | list):
        told = "tokens are not supported, they are another model's: send texts"
        refuse("input", f"{told} (LangChain's OpenAIEmbeddings does with check_embedding_ctx_length=False)")
    return _parse(EmbedRequest, {"model_name": said["model"], "inputs": inputs}, _alone(said, "input", "inputs"))


def rerank(fields: Mapping[str, Any]) -> RerankRequest:
    """A reranking's request."""
    said = given(fields, RERANK)
    _want(said, "model", "query", "documents")
    asked = {name: said[name] for name in ("query", "documents", "top_n") if name in said}
    return _parse(RerankRequest, asked | {"model_name": said["model"]})


def wants_usage(fields: Mapping[str, Any]) -> bool:
    """Whether a stream is to end with what it took."""
    options = fields.get("stream_options")
    if options is None:
        return False
    told = _object("stream_options", options, "include_usage", "include_obfuscation")
    if not fields.get("stream"):
        refuse("stream_options", "goes with 'stream': true only")
    if told.get("include_obfuscation", False) is not False:
        refuse("stream_options.include_obfuscation", "only False is supported")
    usage = told.get("include_usage", False)
    if not isinstance(usage, bool):
        refuse("stream_options.include_usage", "must be true or false")
    return usage


# --- parts ---
def _several(said: Mapping[str, Any], questions: Sequence[ChatRequest] | Sequence[InferenceRequest]) -> Asked:
    n = said.get("n", 1)
    if type(n) is not int or not 1 <= n * len(questions) <= _MOST_ANSWERS:
        refuse("n", f"must be a whole number from 1 on, of at most {_MOST_ANSWERS} answers in all")
    return Asked(questions, n)


def _sampling(said: Mapping[str, Any]) -> dict[str, Any]:
    stop = said.get("stop", [])
    return {
        "model_name": said["model"],
        "temperature": said.get("temperature", 1.0),
        "top_p": said.get("top_p", 1.0),
        "stop_sequences": [stop] if isinstance(stop, str) else stop,
    }


def _alone(said: Mapping[str, Any], theirs: str, ours: str) -> dict[str, str]:
    """How the only text of a list of ours is called, where theirs is that text itself."""
    return {f"{ours}.0": theirs} if isinstance(said.get(theirs), str) else {}


def _turn(at: str, message: Any) -> dict[str, Any]:
    told = _object(at, message, "role", "content", "name", "tool_call_id", *_ASSISTANTS)
    if not isinstance(role := told.get("role"), str) or role not in _ROLES:
        refuse(f"{at}.role", f"must be one of {', '.join(sorted(_ROLES))}")
    if role != "assistant" and (wrong := _ASSISTANTS & told.keys()):
        refuse(f"{at}.{min(wrong)}", "is for messages of the assistant only")
    if told.get("annotations"):
        refuse(f"{at}.annotations", "is not supported")
    turn: dict[str, Any] = {name: told[name] for name in ("name", "tool_call_id") if name in told}
    calls = _list(f"{at}.tool_calls", told.get("tool_calls", []))
    if "content" not in told and not calls:
        refuse(f"{at}.content", "is required")
    turn |= {"role": _ROLES[role], "content": _content(f"{at}.content", told.get("content", ""))}
    if calls:
        turn["tool_calls"] = [_call(f"{at}.tool_calls.{index}", call) for index, call in enumerate(calls)]
    return turn


def _content(at: str, content: Any) -> str:
    """The text; several parts become one a line, as the engine has it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        refuse(at, "must be a text, or a list of parts of type 'text'")
    texts = []
    for index, part in enumerate(content):
        place = f"{at}.{index}"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            name = _PARTS.get(str(kind), str(kind)[:32])
            refuse(place, "must be an object with a 'type'" if kind is None else f"{name} parts are not supported")
        texts.append(_text(f"{place}.text", _object(place, part, "type", "text").get("text")))
    return "\n".join(texts)


def _call(at: str, call: Any) -> dict[str, Any]:
    told = _object(at, call, "id", "type", "function", "index")
    if told.get("type", "function") != "function":
        refuse(f"{at}.type", "only calls of type 'function' are supported")
    function = _object(f"{at}.function", told.get("function", {}), "name", "arguments", "parsed_arguments")
    return {
        "id": _text(f"{at}.id", told.get("id", "")),
        "name": _text(f"{at}.function.name", function.get("name")),
        "arguments": _text(f"{at}.function.arguments", function.get("arguments", "")),
    }


def _tool(at: str, tool: Any) -> dict[str, Any]:
    if isinstance(tool, dict) and "name" in tool and "function" not in tool:
        refuse(at, 'must be {"type": "function", "function": {"name": …}}: what is said of the function stands in it')
    told = _object(at, tool, "type", "function")
    if told.get("type") != "function":
        refuse(f"{at}.type", "only tools of type 'function' are supported")
    function = _object(f"{at}.function", told.get("function", {}), "name", "description", "parameters", "strict")
    _want(function, "name", at=f"{at}.function.")
    made: dict[str, Any] = {name: function[name] for name in ("name", "description") if name in function}
    if "parameters" in function:
        made["parameters"] = _schema(f"{at}.function.parameters", function["parameters"], function)
    return made


def _choice(choice: Any) -> str:
    if isinstance(choice, str):
        if choice not in CHOICES:
            refuse("tool_choice", "must be auto, none, required, or an object that names a function")
        return choice
    told = _object("tool_choice", choice, "type", "function")
    if told.get("type") != "function":
        refuse("tool_choice.type", "only 'function' is supported")
    name = _text(
        "tool_choice.function.name", _object("tool_choice.function", told.get("function", {}), "name").get("name")
    )
    if name in CHOICES:
        refuse("tool_choice.function.name", f"a function called '{name}' cannot be chosen by name")
    return name


def _format(form: Any) -> dict[str, Any]:
    if isinstance(form, dict) and "schema" in form:
        refuse("response_format.schema", "is not supported; the schema is response_format.json_schema.schema")
    told = _object("response_format", form, "type", "json_schema")
    kind = told.get("type")
    if kind != "json_schema" and "json_schema" in told:
        refuse("response_format.json_schema", "goes with the type 'json_schema' only")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_object": True}
    if kind != "json_schema":
        refuse("response_format.type", "must be text, json_object or json_schema")
    at = "response_format.json_schema"
    schema = _object(at, told.get("json_schema", {}), "name", "description", "schema", "strict")
    return {"json_schema": _schema(f"{at}.schema", schema.get("schema"), schema)}


def _schema(at: str, schema: Any, holder: Mapping[str, Any]) -> str:
    """A schema as text; where its holder is `strict`, all of it is what an engine keeps to."""
    if not isinstance(schema, dict):
        refuse(at, "must be a JSON Schema, an object")
    strict = holder.get("strict", False)
    if not isinstance(strict, bool):
        refuse(f"{at.rpartition('.')[0]}.strict", "must be true or false")
    if strict:
        try:
            check(schema, strict=True)
        except Unkept as error:
            refuse(f"{at}.{error.path}" if error.path else at, f"{error.why}{_loosely(schema)}")
    return json.dumps(schema)


def _loosely(schema: dict[str, Any]) -> str:
    """What else could be done about a schema that is refused where it is strict."""
    with contextlib.suppress(Unkept):
        check(schema, strict=False)
        return "; or leave out 'strict'"
    return ""


def _object(at: str, value: Any, *known: str) -> dict[str, Any]:
    """The fields of an object that may have these; what is null is as if it were not there."""
    if not isinstance(value, dict):
        refuse(at, "must be an object")
    found = {name: one for name, one in value.items() if one is not None}
    for name in found:
        if name not in known:
            refuse(f"{at}.{name[:64]}", "is not supported")
    return found


def _list(at: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        refuse(at, "must be a list")
    return value


def _text(at: str, value: Any) -> str:
    if not isinstance(value, str):
        refuse(at, "must be a text")
    return value


def _want(said: Mapping[str, Any], *names: str, at: str = "") -> None:
    for name in names:
        if name not in said:
            refuse(f"{at}{name}", "is required")


def _parse(
    kind: type[_Ours],
    asked: Mapping[str, Any],
    names: Mapping[str, str] = _NAMES,
    context: Mapping[str, Any] | None = None,
) -> _Ours:
    """Our request; what is wrong with it is told in their names, some of which are in `names`."""
    try:
        return kind.parse(asked, context)
    except InvalidRequest as error:
        faults = [_theirs(fault, {**_NAMES, **names}) for fault in error.message.split("; ")]
        param = faults[0][0]
        raise InvalidRequest("; ".join(text for _, text in faults), details={"param": param} if param else {}) from None


def _theirs(fault: str, names: Mapping[str, str]) -> tuple[str, str]:
    """The field that is at fault, where one is named, and the whole."""
    found = _FAULT.fullmatch(fault)
    if found is None:
        return "", fault
    head, tail, rest = found.groups()
    if whole := names.get(f"{head}{tail}"):
        head, tail = whole, ""
    head = names.get(head, head)
    if head == "tools":
        tail = _OF_FUNCTION.sub(r"\1.function\2", tail)
    return f"{head}{tail}" if head.split(".")[0] in _KNOWN else "", f"{head}{tail}{rest}"
