"""OpenAI's client, LangChain's and Pydantic AI's as they are, against /v1: without a key, and with one behind TLS."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import tiktoken
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field, SecretStr
from pydantic_ai import Agent, Embedder, NativeOutput, PromptedOutput, exceptions
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider

from certificates import self_signed
from support import Served, make_key, serving, tiny_gguf

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]
ANSWER = "w0 w1 w2 "


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=40)
    country: str = Field(max_length=40)


class Certain(City):
    certainty: float = Field(ge=0, le=1)


class Addressed(City):
    zip: str = Field(pattern=r"^\d{5}$")


PARIS = City(name="Paris", country="France")


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


def calling(name: str, arguments: str) -> list[dict[str, Any]]:
    """A call, as an engine says it."""
    call = {"index": 0, "id": "call-1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return [{"delta": {"tool_calls": [call]}}, {"delta": {}, "finish_reason": "tool_calls"}]


BEHAVIOURS: dict[str, dict[str, Any]] = {
    "m": {"tokens": 3},
    "adding": {"calls": calling("add", '{"a": 2, "b": 3}'), "echo": True},
    "typed": {"choices": [{"delta": {"content": PARIS.model_dump_json()}}, {"delta": {}, "finish_reason": "stop"}]},
    "city": {"calls": calling("City", PARIS.model_dump_json())},
    "final": {"calls": calling("final_result", PARIS.model_dump_json())},
    "vectors": {},
}


@dataclass(frozen=True)
class Place:
    """A coordinator's address, and what its clients need."""

    url: str
    key: str = "any"
    authority: Path | None = None

    @property
    def verify(self) -> ssl.SSLContext | bool:
        """Whom to trust."""
        return ssl.create_default_context(cafile=self.authority) if self.authority else True

    @contextmanager
    def client(self, key: str = "") -> Iterator[openai.OpenAI]:
        http = openai.DefaultHttpxClient(verify=self.verify)
        with openai.OpenAI(base_url=self.url, api_key=key or self.key, max_retries=0, http_client=http) as made:
            yield made

    @asynccontextmanager
    async def async_client(self, key: str = "") -> AsyncIterator[openai.AsyncOpenAI]:
        http = openai.DefaultAsyncHttpxClient(verify=self.verify)
        async with openai.AsyncOpenAI(
            base_url=self.url, api_key=key or self.key, max_retries=0, http_client=http
        ) as made:
            yield made

    @asynccontextmanager
    async def chain(self, model: str, key: str = "", **options: Any) -> AsyncIterator[ChatOpenAI]:
        """LangChain's chat model."""
        with openai.DefaultHttpxClient(verify=self.verify) as http:
            async with openai.DefaultAsyncHttpxClient(verify=self.verify) as async_http:
                yield ChatOpenAI(
                    model=model,
                    base_url=self.url,
                    api_key=SecretStr(key or self.key),
                    max_retries=0,
                    http_client=http,
                    http_async_client=async_http,
                    **options,
                )

    @asynccontextmanager
    async def provider(self, key: str = "") -> AsyncIterator[OpenAICompatibleProvider]:
        """Pydantic AI's way to here."""
        async with self.async_client(key) as client:
            yield OpenAICompatibleProvider("modelops", openai_client=client)


def serve(folder: Path, env: dict[str, str] | None = None) -> AbstractContextManager[Served]:
    links = [
        (name, tiny_gguf(folder / f"{name}.gguf", general__name=name, llama__pooling_type=int(name == "vectors")))
        for name in BEHAVIOURS
    ]
    return serving(folder / "data", links=links, fake={"models": BEHAVIOURS}, env=env)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A coordinator that asks nobody for a key."""
    with serve(tmp_path_factory.mktemp("plain")) as served:
        yield Place(f"{served.rest}/v1")
        assert "Traceback" not in served.log.read_text()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One behind TLS, that wants a key."""
    folder = tmp_path_factory.mktemp("guarded")
    pair = self_signed(folder)
    env = {"MODELOPS_TLS__CERT_FILE": str(pair.cert), "MODELOPS_TLS__KEY_FILE": str(pair.key)}
    (folder / "data").mkdir()
    key = make_key(folder / "data", "client", "--scope", "infer", "--scope", "models")
    with serve(folder, env) as served:
        assert served.rest.startswith("https://")
        yield Place(f"{served.rest}/v1", key, pair.cert)
        assert "Traceback" not in served.log.read_text()


@pytest.fixture(params=["plain", "guarded"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of them."""
    found: Place = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def real(served: Served) -> Place:
    """The real default model."""
    return Place(f"{served.rest}/v1")


def was_told(text: str | None) -> list[dict[str, Any]]:
    """The messages that reached an engine which echoes."""
    found: list[dict[str, Any]] = json.loads(text or "")["messages"]
    return found


def check_addition(text: str | None) -> None:
    """The engine was told what it had wanted to know."""
    *_, wanted, told = was_told(text)
    assert json.loads(wanted["tool_calls"][0]["function"]["arguments"]) == {"a": 2, "b": 3}
    assert (told["role"], told["content"], told["tool_call_id"]) == ("tool", "5", "call-1")


# --- openai ---
def test_openai(place: Place) -> None:
    with place.client() as client:
        assert {model.id for model in client.models.list()} == BEHAVIOURS.keys()
        whole = client.chat.completions.create(model="m", messages=HELLO)
        assert whole.choices[0].message.content == ANSWER
        assert whole.usage
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (1, 3)
        *chunks, last = client.chat.completions.create(
            model="m", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
        assert last.usage == whole.usage
        found = client.embeddings.create(model="vectors", input=["a", "b"])
        assert [len(one.embedding) for one in found.data] == [8, 8]
        with pytest.raises(openai.NotFoundError, match="/v1/responses"):
            client.responses.create(model="m", input="Hello")


async def test_openai_async(place: Place) -> None:
    async with place.async_client() as client:
        whole = await client.chat.completions.create(model="m", messages=HELLO)
        assert whole.choices[0].message.content == ANSWER
        stream = await client.chat.completions.create(model="m", messages=HELLO, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == ANSWER
        found = await client.embeddings.create(model="vectors", input="a")
        assert len(found.data[0].embedding) == 8


@pytest.mark.parametrize("how", ["create", "parse", "stream"])
def test_openai_calls_a_function(how: str, place: Place) -> None:
    """What was answered is sent back as it came, with all that the client has added to it."""

    class Add(BaseModel):
        a: int
        b: int

    function = openai.pydantic_function_tool(Add, name="add")
    with place.client() as client:
        completions = client.chat.completions
        asked: dict[str, Any] = {"model": "adding", "messages": HELLO, "tools": [function]}
        said: Any
        if how == "stream":
            with completions.stream(**asked) as stream:
                said = stream.get_final_completion()
        else:
            said = (completions.create if how == "create" else completions.parse)(**asked)
        assert said.choices[0].finish_reason == "tool_calls"
        message = said.choices[0].message
        (call,) = message.tool_calls
        told = {"role": "tool", "tool_call_id": call.id, "content": str(add(**json.loads(call.function.arguments)))}
        for back in (message, message.to_dict()):
            ended = completions.create(**asked | {"messages": [*HELLO, back, told]})
            check_addition(ended.choices[0].message.content)


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")  # of their type: `parsed` is a generic
def test_openai_parses(place: Place) -> None:
    with place.client() as client:
        said = client.chat.completions.parse(model="typed", messages=HELLO, response_format=City).choices[0].message
        assert said.parsed == PARIS
        for back in (said, said.to_dict()):
            again: Any = [*HELLO, back, *HELLO]
            ended = client.chat.completions.create(model="adding", messages=again, tools=[])
            assert ended.choices[0].finish_reason == "tool_calls"
        with client.chat.completions.stream(model="typed", messages=HELLO, response_format=City) as stream:
            assert stream.get_final_completion().choices[0].message.parsed == PARIS
        with pytest.raises(openai.LengthFinishReasonError):
            client.chat.completions.parse(model="m", messages=HELLO, response_format=City, max_tokens=2)


@pytest.mark.engine
def test_openai_parses_what_the_model_says(real: Place) -> None:
    with real.client() as client:
        said = client.chat.completions.parse(
            model="smollm2",
            messages=[{"role": "user", "content": "The capital of France?"}],
            response_format=City,
            temperature=0,
        )
    assert isinstance(said.choices[0].message.parsed, City)


def test_openai_reads_the_environment(guarded: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", guarded.url)
    monkeypatch.setenv("OPENAI_API_KEY", guarded.key)
    with openai.OpenAI(max_retries=0) as client, pytest.raises(openai.APIConnectionError):
        client.models.list()
    monkeypatch.setenv("SSL_CERT_FILE", str(guarded.authority))
    with openai.OpenAI() as client:
        assert client.models.list().data


# --- langchain ---
async def test_langchain(place: Place) -> None:
    async with place.chain("m", stream_usage=True) as model:
        for said in (model.invoke("Hello"), await model.ainvoke("Hello")):
            assert said.text == ANSWER
            assert said.usage_metadata
            assert (said.usage_metadata["input_tokens"], said.usage_metadata["output_tokens"]) == (1, 3)
        for chunks in (list(model.stream("Hello")), [chunk async for chunk in model.astream("Hello")]):
            assert "".join(chunk.text for chunk in chunks) == ANSWER
            usages = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
            assert [(usage["input_tokens"], usage["output_tokens"]) for usage in usages] == [(1, 3)]
        assert [said.text for said in model.batch(["a", "b"])] == [ANSWER] * 2


async def test_langchain_calls_a_function(place: Place) -> None:
    async with place.chain("adding") as model:
        bound = model.bind_tools([tool(add)], tool_choice="any", parallel_tool_calls=False, strict=True)
        whole = bound.invoke("2 + 3?")
        streamed: AIMessageChunk | None = None
        for chunk in bound.stream("2 + 3?"):
            assert isinstance(chunk, AIMessageChunk)
            streamed = chunk if streamed is None else streamed + chunk
        assert streamed
        for said in (whole, streamed):
            assert isinstance(said, AIMessage)
            (call,) = said.tool_calls
            assert (call["name"], call["args"]) == ("add", {"a": 2, "b": 3})
            told = tool(add).invoke(call)
            assert isinstance(told, ToolMessage)
            ended = bound.invoke([HumanMessage("2 + 3?", name="Ada"), said, told])
            check_addition(ended.text)


@pytest.mark.parametrize(
    ("model", "method"), [("typed", "json_schema"), ("typed", "json_mode"), ("city", "function_calling")]
)
async def test_langchain_has_structure(model: str, method: Any, place: Place) -> None:
    async with place.chain(model) as chat:
        assert chat.with_structured_output(City, method=method).invoke("The capital of France?") == PARIS


@pytest.mark.engine
async def test_langchain_has_structure_of_what_the_model_says(real: Place) -> None:
    async with real.chain("smollm2", temperature=0) as model:
        assert isinstance(model.with_structured_output(City).invoke("The capital of France?"), City)


async def test_langchain_embeds_texts_and_no_tokens(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {"model": "vectors", "base_url": place.url, "api_key": place.key, "max_retries": 0}
    with openai.DefaultHttpxClient(verify=place.verify) as http:
        vectors = OpenAIEmbeddings(**made, http_client=http, check_embedding_ctx_length=False, chunk_size=256)
        assert [len(one) for one in vectors.embed_documents(["a", "b"] * 150)] == [8] * 300
        assert vectors.embed_query("a") == vectors.embed_documents(["a"])[0]
        # By default it fetches the tokens of OpenAI's models from their site, and sends those: here, one for each byte.
        bytewise = tiktoken.Encoding(
            "b", pat_str=".", mergeable_ranks={bytes([n]): n for n in range(256)}, special_tokens={}
        )
        monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: bytewise)
        with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
            OpenAIEmbeddings(**made, http_client=http).embed_query("a")


@pytest.mark.parametrize("field", ["certainty", "zip"])
async def test_what_no_engine_keeps_to_is_refused_of_a_type_and_taken_of_its_schema(field: str, place: Place) -> None:
    bounded = Certain if field == "certainty" else Addressed
    schema = bounded.model_json_schema()
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    with place.client() as client:
        with pytest.raises(openai.BadRequestError, match=rf"properties\.{field}\.\w+: is not kept to by the engine"):
            client.chat.completions.parse(model="typed", messages=HELLO, response_format=bounded)
        said = client.chat.completions.create(model="typed", messages=HELLO, response_format=form).choices[0].message
        assert City.model_validate_json(said.content or "") == PARIS
    async with place.chain("typed") as chat:
        with pytest.raises(openai.BadRequestError, match="is not kept to by the engine"):
            chat.with_structured_output(bounded).invoke("The capital of France?")
        assert chat.with_structured_output(schema).invoke("The capital of France?") == PARIS.model_dump()


# --- pydantic ai ---
async def test_pydantic_ai(place: Place) -> None:
    async with place.provider() as provider:
        as_for_openai = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=provider.client))
        assert (await Agent(as_for_openai).run("Hello")).output == ANSWER
        agent = Agent(OpenAIChatModel("m", provider=provider), instructions="Be brief.")
        whole = await agent.run("Hello")
        assert (whole.output, whole.usage.input_tokens, whole.usage.output_tokens) == (ANSWER, 1, 3)
        async with agent.run_stream("Hello") as stream:
            assert "".join([text async for text in stream.stream_text(delta=True)]) == ANSWER
        assert (stream.usage.input_tokens, stream.usage.output_tokens) == (1, 3)
        found = await Embedder(OpenAIEmbeddingModel("vectors", provider=provider)).embed_documents(["a", "b"])
        assert [len(one) for one in found.embeddings] == [8, 8]


async def test_pydantic_ai_calls_a_function(place: Place) -> None:
    async with place.provider() as provider:
        agent = Agent(OpenAIChatModel("adding", provider=provider), tools=[add])
        check_addition((await agent.run("2 + 3?")).output)
        async with agent.run_stream("2 + 3?") as stream:
            check_addition(await stream.get_output())


async def test_pydantic_ai_has_structure(place: Place) -> None:
    async with place.provider() as provider:
        by_a_call = Agent(OpenAIChatModel("final", provider=provider), output_type=City)
        by_a_form = Agent(OpenAIChatModel("typed", provider=provider), output_type=NativeOutput(City))
        for agent in (by_a_call, by_a_form):
            assert (await agent.run("The capital of France?")).output == PARIS
            async with agent.run_stream("The capital of France?") as stream:
                assert await stream.get_output() == PARIS


@pytest.mark.parametrize("form", [NativeOutput, PromptedOutput])
async def test_pydantic_ai_has_structure_or_tools(form: Any, place: Place) -> None:
    async with place.provider() as provider:
        typed = OpenAIChatModel("typed", provider=provider)
        assert (await Agent(typed, output_type=form(City)).run("The capital of France?")).output == PARIS
        with pytest.raises(exceptions.ModelHTTPError, match="exclude each other"):
            await Agent(typed, output_type=form(City), tools=[add]).run("The capital of France?")


@pytest.mark.engine
async def test_pydantic_ai_has_structure_of_what_the_model_says(real: Place) -> None:
    async with real.provider() as provider:
        model = OpenAIChatModel("smollm2", provider=provider, settings={"temperature": 0})
        agent = Agent(model, output_type=NativeOutput(City))
        assert isinstance((await agent.run("The capital of France?")).output, City)


# --- keys ---
async def test_a_wrong_key_is_an_error_of_their_own(guarded: Place) -> None:
    with guarded.client("wrong") as client, pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="m", messages=HELLO)
    async with guarded.async_client("wrong") as async_client:
        with pytest.raises(openai.AuthenticationError):
            await async_client.embeddings.create(model="vectors", input="a")
    async with guarded.chain("m", "wrong") as model:
        with pytest.raises(openai.AuthenticationError):
            model.invoke("Hello")
        with pytest.raises(openai.AuthenticationError):
            _ = [chunk async for chunk in model.astream("Hello")]
    async with guarded.provider("wrong") as provider:
        with pytest.raises(exceptions.ModelAuthenticationError):
            await Agent(OpenAIChatModel("m", provider=provider)).run("Hello")
