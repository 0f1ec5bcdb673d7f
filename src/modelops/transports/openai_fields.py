"""Which fields of OpenAI's requests are understood here, and which are refused, by name. Data, and its check; pure.

docs/openai.md is made from these tables. What is not in them is refused as unknown.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from modelops.api.errors import InvalidRequest


@dataclass(frozen=True)
class Field:
    """What becomes of one field.

    Of one that is `refused`, the values in `neutral` are taken nevertheless: they ask for what is done anyway. `note`
    is for the page.
    """

    kind: Literal["supported", "accepted", "refused"]
    note: str = ""
    neutral: tuple[Any, ...] = ()


Fields = Mapping[str, Field]


def _supported(note: str = "") -> Field:
    return Field("supported", note)


def _refused(*neutral: Any, note: str = "") -> Field:
    return Field("refused", note, neutral)


_SAMPLING: Fields = {
    "temperature": _supported("0 to 2; 1 by default"),
    "top_p": _supported("1 by default"),
    "stop": _supported("a text or up to 10"),
    "seed": _supported("0 to 4294967294"),
    "presence_penalty": _supported("-2 to 2"),
    "frequency_penalty": _supported("-2 to 2"),
    "stream": _supported("`false` by default"),
    "stream_options": _supported("`include_usage`; with `stream` only"),
    "n": _supported(
        "up to 128 answers in all, made one after another: they are one request, to rates too, and take one place; "
        "with `seed`, each is made by the next one"
    ),
    "logit_bias": _refused({}),
    "user": Field("accepted", "the caller is known by its key"),
}
#: llama.cpp's own.
_EXTRAS: Fields = {
    "top_k": _supported("not OpenAI's; as llama.cpp has it"),
    "min_p": _supported("not OpenAI's; as llama.cpp has it"),
    "repeat_penalty": _supported("not OpenAI's; as llama.cpp has it"),
}

CHAT: Fields = {
    "model": _supported(),
    "messages": _supported(
        "up to 1,000, of the roles `system`, `developer` (as `system`), `user`, `assistant` with `tool_calls`, `tool`; "
        "content: a text, or parts of type `text`, one a line. `name` is shown where the model's template does; it has "
        "up to 128 characters, as `tool_call_id`. Where the last one is an assistant's, the answer goes on with it, "
        "but not with `tools` that the model's chat template does not know. Of "
        "an assistant's, `reasoning_content` is accepted without effect, and so is what OpenAI's client adds: "
        "`parsed`, `parsed_arguments`, `index`"
    ),
    "max_completion_tokens": _supported("by default as many as the context has room for"),
    "max_tokens": _supported("the older name of `max_completion_tokens`"),
    **_SAMPLING,
    "logprobs": _supported(
        "of a character that several tokens make up, and of a text that might have become one of `stop`, the engine "
        "tells the last token only: `token` is all of it then"
    ),
    "top_logprobs": _supported("0 to 20; with `logprobs` only"),
    "response_format": _supported(
        "`text`, `json_object`, `json_schema`: with `strict` the answer always has [its form](#schemas); none "
        "together with `tools`, but for `tool_choice` `none`"
    ),
    "tools": _supported(
        "up to 128, of type `function`. Also of models whose chat template knows no tools: [how](api.md#functions). "
        "With `strict` all of `parameters` is [what calls keep to](#schemas); where the template knows tools, as far "
        "as its form of calls lets them"
    ),
    "tool_choice": _supported(
        "`auto`, `none`, `required`, or a function. A model whose chat template knows tools may answer with a text "
        "where a call is wanted: look whether there is one. Of [other models](api.md#functions) there is"
    ),
    "parallel_tool_calls": _supported("by default one call in an answer"),
    "metadata": Field("accepted", "nothing is stored"),
    "store": _refused(False),
    "service_tier": _refused("auto", "default"),
    "modalities": _refused(["text"]),
    "audio": _refused(),
    "function_call": _refused(note="the older form of `tool_choice`"),
    "functions": _refused(note="the older form of `tools`"),
    "moderation": _refused(),
    "prediction": _refused(),
    "prompt_cache_key": Field("accepted", "a hint: what prompts have in common the engine finds by itself"),
    "prompt_cache_options": _refused(),
    "prompt_cache_retention": _refused(),
    "reasoning_effort": _refused(),
    "safety_identifier": Field("accepted", "as `user`"),
    "verbosity": _refused(),
    "web_search_options": _refused(),
    **_EXTRAS,
}
COMPLETIONS: Fields = {
    "model": _supported(),
    "prompt": _supported("a text of up to 10,000 characters, or a list of up to 128. No tokens"),
    "max_tokens": _supported("1 to 2048; 16 by default"),
    **_SAMPLING,
    "best_of": _refused(1),
    "echo": _refused(False),
    "logprobs": _refused(),
    "suffix": _refused(""),
    **_EXTRAS,
}
EMBEDDINGS: Fields = {
    "model": _supported("of type `embedding`"),
    "input": _supported(
        "a text of up to 32,768 characters, or up to 256 of them. No tokens, which are "
        "[another model's](clients/langchain.md#embeddings)"
    ),
    "encoding_format": _supported("`float`, which is the default, or `base64`: 32 bit floats, little-endian"),
    "dimensions": _refused(note="but for the number that the model's vectors have"),
    "user": _SAMPLING["user"],
}
#: Not OpenAI's: as Jina and Cohere have it.
RERANK: Fields = {
    "model": _supported("of type `reranker`"),
    "query": _supported("up to 32,768 characters"),
    "documents": _supported("up to 256 texts, of up to 32,768 characters each"),
    "top_n": _supported("by default all"),
    "return_documents": _refused(False),
}

#: What is called otherwise elsewhere → here.
_FOREIGN = {
    **dict.fromkeys(("n_predict", "num_predict", "max_new_tokens"), "max_tokens"),
    "stop_sequences": "stop",
    "repetition_penalty": "repeat_penalty",
}
#: What is said elsewhere in fields of other forms → how it is said here.
_SAID_OTHERWISE = {
    "system": "it is a message of the role 'system', of a chat completion",
    "options": "what stands in it are fields of the request itself",
}


def given(fields: Mapping[str, Any], known: Fields) -> dict[str, Any]:
    """The fields that have something to say: those that are null are as if they were not there.

    Raises InvalidRequest for one that is refused or unknown.
    """
    said = {name: value for name, value in fields.items() if value is not None}
    for name, value in said.items():
        field = known.get(name)
        if field is None:
            hint = _hint(name[:64], known)
            refuse(name[:64], f"no field of this request{f'; {hint}' if hint else ''}")
        if field.kind == "refused" and name != "dimensions" and not any(_same(value, one) for one in field.neutral):
            only = " or ".join(repr(one) for one in field.neutral)
            refuse(name, f"only {only} is supported" if only else "is not supported")
    return said


def refuse(name: str, why: str) -> NoReturn:
    """Refuse what the field `name`, a path with dots, holds."""
    raise InvalidRequest(f"{name}: {why}", details={"param": name})


def _hint(name: str, known: Fields) -> str:
    """What whoever sent the unknown `name` is to send; empty where nobody knows."""
    if name in _SAID_OTHERWISE:
        return _SAID_OTHERWISE[name]
    supported = [one for one, field in known.items() if field.kind == "supported"]
    close = [_FOREIGN[name]] if _FOREIGN.get(name) in supported else difflib.get_close_matches(name, supported, n=1)
    return f"did you mean '{close[0]}'?" if close else ""


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)  # true is no 1
