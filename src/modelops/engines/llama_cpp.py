"""Drives llama.cpp's HTTP server, whichever program provides it: the xllamacpp package or a llama-server executable.

Owns one engine's process, its socket and its key. It must not decide when to load, whom to serve or what to restart:
that is the pool's.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import from_json

from modelops import logs
from modelops.api.errors import DeadlineExceeded, EngineFailed, InvalidRequest, ModelOpsError
from modelops.engines import calling
from modelops.engines.base import CallPart, EngineBroke, EngineSpec, Likely, Piece, Prompt
from modelops.engines.hearing import Hearing
from modelops.engines.http import Answer, request
from modelops.engines.process import Exit, Process
from modelops.engines.replies import Reader
from modelops.engines.scores import Scorer, TokenScore
from modelops.tasks import Tasks

log = logging.getLogger(__name__)

#: What is said of a text to embed or to score, with status 500.
_TOO_LONG = re.compile(r"input \((\d+) tokens\) is (?:too large to process|larger than the max context size)")
#: What it says of a schema that it cannot keep to.
_SCHEMA = re.compile("schema|pattern|grammar", re.IGNORECASE)
#: What a chat template says of a conversation that it refuses, behind where in it that stands.
_TEMPLATE = re.compile(r"Jinja Exception: (.+)", re.DOTALL)
#: What is said, with status 500, of an earlier call whose arguments are JSON that it does not read, as `1e999`.
_ARGUMENTS = re.compile(r"Failed to parse tool call arguments")
#: What is said of an answer that its form's own reader does not understand, as where a schema's pattern lets quotes in.
_UNREADABLE = re.compile(r"produced output that does not match the expected \S+ format")
_READY_POLL_S = 0.02
#: How often a thread of an engine looks whether the others are there before it sleeps, and the variables that say so
#: otherwise. They wait for each other hundreds of times for each token. By OpenMP's own 300,000 one that waits for
#: another keeps the core that the other needs, as soon as any other program runs: 1 to 4 tokens per second on two
#: cores, where 500 give 43, and as many as ever (about 130) while nobody else runs.
_SPINS = 500
_WAITING = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
_LONGEST_REFUSAL = 64 * 1024  # bytes of an error's body that are looked at
_LONGEST_ANSWER = 64 * 2**20  # bytes of an answer that comes whole
_LONGEST_EVENT = 4 * 2**20  # bytes of one server-sent event; a token is a few hundred
_T = TypeVar("_T")


def find_executable(configured: str) -> str:
    """What to run: `configured`, else "" (the xllamacpp package), else llama-server on PATH. Raises EngineFailed."""
    if configured:
        if found := shutil.which(configured):
            return found
        raise EngineFailed(f"engine.executable names '{Path(configured).name}', which is no executable program")
    if importlib.util.find_spec("xllamacpp"):
        return ""
    if found := shutil.which("llama-server"):
        return found
    raise EngineFailed("there is no engine: install the package 'xllamacpp', or put llama-server on PATH")


def automatic_batch(file_bytes: int, threads: int, on_gpu: bool) -> int:
    """Prompt tokens that take about 0.3 s in one step, a power of two from 32 to 2048.

    An engine looks for vanished callers between steps, so a step bounds how long a cancelled prompt holds its slot.
    On a CPU the rate is about (threads * 10 GB/s) / file size tokens per second: measured with two model sizes' worth
    of 4-bit weights on AVX2. A GPU is so much faster that the largest step is short.
    """
    if on_gpu:
        return 2048
    tokens = 0.3 * threads * 10e9 / max(file_bytes, 1)
    batch = 32
    while batch < 2048 and batch * 1.5 <= tokens:
        batch *= 2
    return batch


def _guessing(spec: EngineSpec) -> list[str]:
    """How tokens are guessed ahead. The guesses are checked by the model: an answer is the same, but for rounding.

    A draft model stays in RAM, where its memory is reserved. Its own threads are llama-server's by default.
    """
    if spec.speculation == "ngram":
        return ["--spec-type", "ngram-simple"]
    if spec.speculation == "draft":
        if spec.draft is None:
            raise ValueError("a draft model is to guess, and there is none")
        return ["--spec-type", "draft-simple", "--model-draft", str(spec.draft), "--n-gpu-layers-draft", "0"]
    return []


class Engine:
    """One running engine: started once, asked many times, stopped once."""

    def __init__(self, spec: EngineSpec, socket: Path) -> None:
        self.spec = spec
        self._socket = socket
        self._key = secrets.token_urlsafe(24)
        self._process = Process(f"engine {spec.model_name}", logs.engine_lines(spec.model_name))
        self._tasks = Tasks(f"engine {spec.model_name}")
        self._hung = ""  # why it was ended
        self._knows_tools = False
        self._scorer = Scorer(self._ask, spec.slots)
        self._hearing = Hearing(
            spec.stall_timeout_s,
            speaks=spec.task == "generate",
            cpu_s=self._process.cpu_s,
            hung=self._end_hung,
        )

    @property
    def pid(self) -> int:
        """Root of the engine's tree of processes."""
        return self._process.pid

    def argv(self) -> Sequence[str]:
        """The command, in llama-server's own flags."""
        spec = self.spec
        program = [spec.executable] if spec.executable else [sys.executable, "-m", "modelops.engines.llama_server"]
        layers = [] if spec.gpu_layers < 0 else ["--n-gpu-layers", str(spec.gpu_layers)]
        split = ["--tensor-split", ",".join(map(str, spec.tensor_split))] if spec.tensor_split else []
        # Embeddings and scores need the whole input in one step; every slot may bring a full one. With a cache for each
        # slot, texts of different lengths that come together are computed in parts, and only the last part counts.
        task = {
            "generate": [],
            "embed": ["--embeddings", "--kv-unified"],
            "rerank": ["--reranking", "--kv-unified"],
        }[spec.task]
        pooling = ["--pooling", spec.pooling] if spec.pooling else []
        # Off unless a request says otherwise. What is kept of prompts outside their slots is not kept by adapter.
        adapters = [part for file in spec.adapters for part in ("--lora-scaled", f"{file}:0")]
        cache_ram = 0 if spec.adapters else spec.cache_ram_mb
        flash = ["--flash-attn", spec.flash_attention] if spec.flash_attention else []
        return [
            *program,
            *("--model", str(spec.file), "--alias", spec.model_name, "--host", str(self._socket)),
            *("--ctx-size", str(spec.context_length * spec.slots), "--parallel", str(spec.slots)),
            *("--threads", str(spec.threads), "--threads-batch", str(spec.threads)),
            *("--batch-size", str(spec.batch_size), "--ubatch-size", str(spec.step_size)),
            *("--cache-type-k", spec.cache_type, "--cache-type-v", spec.cache_type),
            *("--cache-ram", str(cache_ram), "--ctx-checkpoints", str(spec.context_checkpoints)),
            *(
                *layers,
                *split,
                *task,
                *pooling,
                *adapters,
                *flash,
                *_guessing(spec),
                "--jinja",
                "--slots",
                "--no-webui",
            ),
        ]

    def environment(self) -> Mapping[str, str]:
        """What the command finds in its environment beside our own: its key, how its threads wait, which GPUs it sees.

        A GPU that an engine sees costs memory there, even where it lays nothing on it.
        """
        added = {"LLAMA_API_KEY": self._key}
        if not _WAITING & os.environ.keys():
            added["GOMP_SPINCOUNT"] = str(_SPINS)
        if self.spec.gpus is not None:
            added["CUDA_VISIBLE_DEVICES"] = ",".join(self.spec.gpus) or "-1"
        return added

    async def start(self) -> None:
        """Start and wait until requests are answered. On failure nothing is left running; raises ModelOpsError."""
        started = False
        try:
            async with asyncio.timeout(self.spec.load_timeout_s):
                await self._process.start(self.argv(), self.environment())
                await self._ready()
                if self.spec.task == "generate":
                    await self._try_tools()
            started = True
        except TimeoutError:
            raise DeadlineExceeded(
                f"loading '{self.spec.model_name}' took more than {self.spec.load_timeout_s:.0f} s; "
                "raise engine.load_timeout_s if this machine is slow"
            ) from None
        except OSError as error:
            raise EngineFailed(f"the engine could not be started: {error.strerror}") from None
        finally:
            if not started:
                await self._process.kill()
                self._socket.unlink(missing_ok=True)

    async def exited(self) -> Exit:
        """Wait for the end of the process, asked for or not."""
        ended = await self._process.exited()
        return Exit(ended.code, self._hung) if self._hung else ended

    async def stop(self) -> None:
        """End the process within the spec's stop timeout, and remove the socket."""
        try:
            await self._process.stop(self.spec.stop_timeout_s)
        finally:
            self._hearing.close()
            await self._tasks.close()
            self._socket.unlink(missing_ok=True)

    def memory_bytes(self) -> int:
        """Resident memory now."""
        return self._process.memory_bytes()

    def taken_bytes(self) -> int:
        """Memory now that the machine cannot take back."""
        return self._process.taken_bytes()

    def pids(self) -> set[int]:
        """Its processes; none before the start and after the end."""
        return self._process.pids()

    def pause(self) -> None:
        """Stop it where it stands; its callers wait."""
        self._hearing.paused()
        self._process.pause()

    def resume(self) -> None:
        """Let it go on."""
        self._hearing.resumed()
        self._process.resume()

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Piece]:
        """The answer, piece by piece. Closing the generator frees the engine's slot.

        Raises InvalidRequest where the engine says that the prompt cannot be served, EngineFailed where it broke.
        """
        asked, reader = prompt, None
        if not self._knows_tools:
            reader = Reader(prompt.stop, _call_id) if calling.formed(prompt) else None
            prompt = calling.spelled(prompt)
        path, body = _request(prompt)
        if self.spec.adapters:
            body["lora"] = lora(self.spec, prompt.adapter)
        if reader:
            body["timings_per_token"] = True  # where the reader ends the answer, the engine does not count it
        most = int(prompt.options.get("top_logprobs", 0))
        try:
            # A new connection for each request: the engine closes a kept one after 100 requests or 5 idle seconds,
            # just when it is about to be used again. On a unix socket a connection costs nothing.
            async with self._asked(path, body) as answer:
                if answer.status != 200:
                    refusal = _refused(self.spec, answer.status, await answer.read_all(_LONGEST_REFUSAL))
                    if "tools" in asked.options and _SCHEMA.search(refusal.message):
                        refusal.details.setdefault("param", "tools")
                    raise refusal
                async for event in _events(answer):
                    if "error" in event:
                        raise _refused(self.spec, 500, json.dumps(event).encode())
                    if usage := event.get("usage"):
                        read = int(usage.get("prompt_tokens", 0))
                        yield Piece("", tokens=int(usage["completion_tokens"]), prompt_tokens=read)
                        return
                    if progress := event.get("prompt_progress"):
                        yield Piece("", prompt_tokens=int(progress["processed"]))
                    for choice in event.get("choices", ()):
                        piece = Piece(choice["text"]) if prompt.raw else _piece(choice["delta"])
                        if (finish := choice.get("finish_reason")) or choice.get("logprobs"):
                            piece = replace(piece, finish=finish or "", likely=_likely(choice.get("logprobs"), most))
                        if reader:
                            piece = reader.read(piece)
                        if piece.says or piece.finish:
                            yield piece
                        if reader and reader.stopped:
                            yield Piece("", tokens=(event.get("timings") or {}).get("predicted_n"))
                            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise await self._broken(error) from None
        raise await self._broken(None)

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """Each text as a vector of length 1, and the tokens of all. Raises as `generate`."""
        told = await self._ask("/v1/embeddings", {"input": list(texts)})
        try:
            found = sorted(told["data"], key=lambda one: one["index"])
            return [one["embedding"] for one in found], int(told["usage"]["prompt_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise await self._broken(error) from None

    async def rerank(self, query: str, documents: Sequence[str]) -> tuple[list[float], int]:
        """The score of each document, and the tokens of all. Raises as `generate`."""
        told = await self._ask("/v1/rerank", {"query": query, "documents": list(documents)})
        try:
            scores = {int(one["index"]): float(one["relevance_score"]) for one in told["results"]}
            return [scores[index] for index in range(len(documents))], int(told["usage"]["total_tokens"])
        except (KeyError, TypeError, ValueError) as error:
            raise await self._broken(error) from None

    async def tokenize(self, text: str, *, special: bool) -> list[int]:
        """The tokens of `text`; `special`: as a prompt has them, behind what the model begins with, and with the names
        of its special tokens read as those. Raises as `generate`."""
        return await self._understood(self._scorer.tokenize(text, special))

    async def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The model's chat template of `messages`, and of the beginning of the answer; `tokenize` reads it as
        `special`. Raises as `generate`."""
        return await self._understood(self._scorer.render(messages))

    async def score(self, prompt: Sequence[int], answer: Sequence[int], adapter: int | None = None) -> list[TokenScore]:
        """How probable each token of `answer` is behind all before it, to the model itself: before any sampling.

        `prompt` has a token at least; `adapter` is as in Prompt. At most as many as there are slots are worked on at
        once, the others wait. Raises as `generate`, and EngineFailed where the model gives no probabilities.
        """
        adapters = lora(self.spec, adapter) if self.spec.adapters else None
        return await self._understood(self._scorer.score(prompt, answer, adapters))

    async def _understood(self, answer: Awaitable[_T]) -> _T:
        try:
            return await answer
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise await self._broken(error) from None

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._asked(path, body) as answer:
                content = await answer.read_all(_LONGEST_ANSWER)
                if answer.status != 200:
                    raise _refused(self.spec, answer.status, content)
                told = from_json(content)
                if not isinstance(told, dict):
                    raise TypeError("an answer of the engine is no object")
                return told
        except (OSError, ValueError, TypeError) as error:
            raise await self._broken(error) from None

    def _asked(self, path: str, body: dict[str, Any]) -> contextlib.AbstractAsyncContextManager[Answer]:
        return request(self._socket, "POST", path, self._key, json.dumps(body).encode(), self._hearing)

    def _end_hung(self) -> None:
        """Whoever waits for it sees the connection break, and whoever watches it its end."""
        self._hung = f"has not said anything for {self.spec.stall_timeout_s:g} s"
        self._tasks.start("kill", self._process.kill())

    async def _broken(self, cause: Exception | None) -> EngineBroke:
        # Where the process died, its own last words say more than the broken connection.
        reason = "broke the connection"
        what = f" ({type(cause).__name__ if cause else 'the answer ended early'}); try again"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                reason, what = (await self.exited()).reason, ""
        return EngineBroke(f"the engine of '{self.spec.model_name}' {reason}{what}", f"its engine {reason}")

    async def _ready(self) -> None:
        while True:
            if not self._process.running:
                ended = await self._process.exited()
                raise EngineFailed(f"the engine {ended.reason}")
            # Connecting fails until the socket is there; 503 means that the model is still being read.
            with contextlib.suppress(OSError):
                async with request(self._socket, "GET", "/health", self._key) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(_READY_POLL_S)

    async def _try_tools(self) -> None:
        """Find out whether the model's chat template knows tools: the engine, which alone can tell, renders some.

        What it says of the template instead (`chat_template_caps`) not all versions say, it is about their own
        guesses, and does not tell whether they can read the calls of such a template; a file's header does not tell
        what an engine takes that finds no template there.
        """
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            body = json.dumps(calling.TRIAL).encode()
            async with request(self._socket, "POST", "/apply-template", self._key, body) as answer:
                told = await answer.read_all(_LONGEST_ANSWER)
                self._knows_tools = answer.status == 200 and calling.known(str(from_json(told)["prompt"]))
        way = "its chat template" if self._knows_tools else "the server, as its chat template knows none"
        name = self.spec.model_name
        log.info("tools are put to '%s' by %s", name, way, extra={"model": name})


def lora(spec: EngineSpec, adapter: int | None) -> list[dict[str, float]]:
    """What a request says to be answered with that adapter and no other. Those that it does not name would be as the
    request before had them in some versions, so it names all, always."""
    return [{"id": number, "scale": float(number == adapter)} for number in range(len(spec.adapters))]


def _call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def _request(prompt: Prompt) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "max_tokens": prompt.max_tokens or -1,
        "temperature": prompt.temperature,
        "top_p": prompt.top_p,
        "stop": list(prompt.stop),
        # Always streamed, with progress: only while it writes does a busy engine notice that its caller is gone.
        "stream": True,
        "return_progress": True,
        "stream_options": {"include_usage": True},
        **prompt.options,
    }
    if body.get("logprobs"):
        body["top_logprobs"] = body.get("top_logprobs") or 1  # asked for none it tells nothing of the token itself
    if prompt.seed is not None:
        body["seed"] = prompt.seed
    if prompt.raw:
        return "/v1/completions", body | {"prompt": prompt.text}
    if prompt.messages:
        return "/v1/chat/completions", body | {"messages": list(prompt.messages)}
    turns = [{"role": "user", "content": prompt.text}]
    if prompt.system:
        turns.insert(0, {"role": "system", "content": prompt.system})
    return "/v1/chat/completions", body | {"messages": turns}


def _piece(delta: Mapping[str, Any]) -> Piece:
    """What a chat's event adds to the answer."""
    text = delta.get("content") or ""
    if len(delta) == 1 and text:  # as nearly all do
        return Piece(text)
    calls = []
    for part in delta.get("tool_calls") or ():
        function = part.get("function") or {}
        name, arguments = function.get("name") or "", function.get("arguments") or ""
        calls.append(CallPart(int(part.get("index", 0)), part.get("id") or "", name, arguments))
    return Piece(text, reasoning=delta.get("reasoning_content") or "", calls=tuple(calls))


def _likely(told: Any, most: int) -> tuple[Likely, ...]:
    """The tokens of an event, each with at most so many others."""

    def likely(one: Mapping[str, Any], top: tuple[Likely, ...] = ()) -> Likely:
        token = str(one["token"])
        utf8 = map(int, one.get("bytes") or token.encode(errors="replace"))
        return Likely(token, float(one["logprob"]), tuple(utf8), top)

    content = (told or {}).get("content") or ()
    return tuple(likely(one, tuple(map(likely, (one.get("top_logprobs") or ())[:most]))) for one in content)


async def _events(answer: Answer) -> AsyncGenerator[dict[str, Any]]:
    """The JSON of each server-sent event. Raises ValueError where the engine sends something else."""
    rest = b""
    while block := await answer.read():
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > _LONGEST_EVENT:
            raise ValueError("an event of the engine is too long")
        for line in lines:
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                event = from_json(line[6:])  # one for each token: several times as fast as json.loads
                if not isinstance(event, dict):
                    raise TypeError("an event of the engine is no object")
                yield event


def _refused(spec: EngineSpec, status: int, body: bytes) -> ModelOpsError:
    try:
        error = json.loads(body)["error"]
        kind, message = error.get("type", ""), str(error.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        kind, message, error = "", "", {}
    if kind == "exceed_context_size_error":
        return InvalidRequest(
            f"the prompt has {error.get('n_prompt_tokens', 'too many')} tokens, and '{spec.model_name}' is served with "
            f"a context of {spec.context_length}; shorten it, or raise engine.context_length",
            details={"limit": "context_length"},
        )
    if too_long := _TOO_LONG.search(message):
        return InvalidRequest(
            f"a text has {too_long[1]} tokens, and '{spec.model_name}' is served with a context of "
            f"{spec.context_length}; shorten it, or load the model with a longer context_length",
            details={"limit": "context_length"},
        )
    if _ARGUMENTS.search(message):
        return InvalidRequest(
            "the arguments of a call in the conversation are no JSON that the engine reads: a number may be too large",
            details={"param": "messages"},
        )
    if status == 400 and (reason := _TEMPLATE.search(message)):
        return InvalidRequest(
            f"the chat template of '{spec.model_name}' refused the conversation: {reason[1][:300]}",
            details={"param": "messages"},
        )
    if status == 400:
        return InvalidRequest(f"the engine refused the request: {message[:300]}")
    if _UNREADABLE.search(message):  # the engine is well, and would do so again
        return EngineFailed(f"the answer of '{spec.model_name}' does not have the form that was asked for")
    return EngineBroke(
        f"the engine of '{spec.model_name}' answered {status}: {message[:300]}", f"its engine answered {status}"
    )
