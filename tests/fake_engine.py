#!/usr/bin/env -S python3 -S
"""A llama-server that answers without a model: a real process, for tests of what engines do wrong.

Its behaviour comes as JSON in the variable FAKE_ENGINE:
  load_s       seconds from the start until /health says ok (before: 503)
  ready_file   a file until which /health says 503
  load_fails   end with status 1 and this message instead of serving; a list: one start each, then all is well
  count_file   a file in which each start adds a line, so that starts can be counted (needed by a list of load_fails)
  token_s      seconds between two tokens
  token_bytes  least length of a token
  prompt_s     seconds before the first
  busy_s       seconds before the first that it computes, rather than sleeps
  tokens       most tokens of an answer (default: max_tokens)
  die_after    kill the whole process with SIGKILL after that many tokens
  dies_once    a file that the first of them makes which dies so: the others do not
  hang_after   stop answering, the connection open, after that many tokens
  choices      what a chat is answered, one event each, in llama.cpp's own words: delta, logprobs, finish_reason
  calls        what a chat is answered first, in the same form: until its last message is that of a tool
  no_tools     its model's chat template knows no tools
  echo         answer with one token: the request's path and body, and the engine's flags, as JSON
  garbage      answer with bytes that are no HTTP events
  status       answer every request with this HTTP status
  sick_file    a file while which exists it answers every request with `status` (500 by default)
  says         what is said with that status
  child        start a child process that outlives nothing: it sleeps, in the tree
  ignore_term  do not end on SIGTERM
  hold         bytes of memory to take for each token of the context: half at the start, half with the first request
  models       how the engine of each model, by its name, behaves otherwise

Texts are embedded as eight numbers made of their checksums, and scored by the words that they share with the query, by
an engine that was started for that.
"""

import argparse
import json
import math
import os
import signal
import socketserver
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--host", required=True)
parser.add_argument("--alias", default="")
parser.add_argument("--embeddings", action="store_true")
parser.add_argument("--reranking", action="store_true")
FLAGS = parser.parse_known_args()[0]

BEHAVIOUR = json.loads(os.environ.get("FAKE_ENGINE", "{}"))
BEHAVIOUR |= BEHAVIOUR.get("models", {}).get(FLAGS.alias, {})
STARTED = time.monotonic()
ACTIVE = 0
LOCK = threading.Lock()
HELD: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    def reply(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            ready = time.monotonic() - STARTED >= BEHAVIOUR.get("load_s", 0)
            ready = ready and Path(BEHAVIOUR.get("ready_file", "/")).exists()
            self.reply(200 if ready else 503, {"status": "ok" if ready else "loading"})
        elif self.path == "/slots":
            self.reply(200, [{"id": number, "is_processing": True} for number in range(ACTIVE)])
        else:
            self.reply(404, {})

    def do_POST(self) -> None:
        global ACTIVE
        with LOCK:
            ACTIVE += 1
        try:
            self.answer()
        finally:
            with LOCK:
                ACTIVE -= 1

    def answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != f"Bearer {os.environ['LLAMA_API_KEY']}":
            self.reply(401, {"error": {"message": "Invalid API Key", "type": "authentication_error"}})
            return
        if self.path == "/apply-template":
            turns = [turn["content"] for turn in body["messages"]] if BEHAVIOUR.get("no_tools") else body
            self.reply(200, {"prompt": json.dumps(turns)})
            return
        if status := sickness():
            self.reply(
                status, {"error": {"message": BEHAVIOUR.get("says", "as told"), "type": "server_error", "code": status}}
            )
            return
        with LOCK:
            hold(2)
        self.close_connection = True
        if self.path == "/v1/embeddings":
            self.at_once(FLAGS.embeddings, vectors(body["input"]))
            return
        if self.path == "/v1/rerank":
            self.at_once(FLAGS.reranking, scores(body["query"], body["documents"]))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if BEHAVIOUR.get("garbage"):
            self.wfile.write(b"data: {this is no JSON\n\n")
            return
        read_prompt()
        chat = "chat" in self.path
        longest = body["max_tokens"] if body["max_tokens"] > 0 else 1 << 30  # -1: as many as there is room for
        count = 1 if BEHAVIOUR.get("echo") else min(longest, BEHAVIOUR.get("tokens", 1 << 30))
        choices = BEHAVIOUR.get("choices", ())
        if chat and body["messages"][-1]["role"] != "tool":
            choices = BEHAVIOUR.get("calls", choices)
        if choices:
            count = len(choices)
        for number in range(count):
            if number == BEHAVIOUR.get("die_after"):
                die()
            if number == BEHAVIOUR.get("hang_after"):
                time.sleep(3600)
            told = {"path": self.path, "flags": sys.argv[1:]} | body
            text = json.dumps(told) if BEHAVIOUR.get("echo") else f"w{number} ".ljust(BEHAVIOUR.get("token_bytes", 0))
            choice = {"delta": {"content": text}} if chat else {"text": text}
            choice = choices[number] if choices else choice
            self.event({"choices": [{"index": 0, "finish_reason": None, **choice}]})
            time.sleep(BEHAVIOUR.get("token_s", 0))
        self.event({"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": 1}})

    def at_once(self, started_for_it: bool, answer: object) -> None:
        """Vectors, or scores."""
        read_prompt()
        if BEHAVIOUR.get("die_after") == 0:
            die()
        if not started_for_it:
            error = {"message": "This server was not started for that", "type": "not_supported_error"}
            self.reply(501, {"error": error})
        else:
            self.reply(200, ["this is no answer"] if BEHAVIOUR.get("garbage") else answer)

    def event(self, value: object) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()


def sickness() -> int:
    """The HTTP status of every answer; 0 where it is well."""
    if file := BEHAVIOUR.get("sick_file"):
        return int(BEHAVIOUR.get("status", 500)) if Path(file).exists() else 0
    return int(BEHAVIOUR.get("status", 0))


def die() -> None:
    if file := BEHAVIOUR.get("dies_once"):
        if Path(file).exists():
            return
        Path(file).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def read_prompt() -> None:
    time.sleep(BEHAVIOUR.get("prompt_s", 0))
    end = time.monotonic() + BEHAVIOUR.get("busy_s", 0)
    while time.monotonic() < end:
        pass


def words(*texts: str) -> int:
    return sum(len(text.split()) for text in texts)


def vectors(texts: list[str]) -> object:
    """Each text as eight numbers, a vector of length 1; the last one first."""
    data: list[object] = []
    for index, text in enumerate(texts):
        found = [zlib.crc32(text.encode(), seed) / 2**31 - 1.0 for seed in range(8)]
        length = math.hypot(*found)
        data.insert(0, {"index": index, "embedding": [number / length for number in found]})
    return {"data": data, "usage": {"prompt_tokens": words(*texts)}}


def scores(query: str, documents: list[str]) -> object:
    """How many words each document has in common with the query; the last one first."""
    asked = set(query.split())
    shared = [len(asked & set(document.split())) for document in documents]
    results = [{"index": index, "relevance_score": float(count)} for index, count in enumerate(shared)]
    return {"results": results[::-1], "usage": {"total_tokens": words(query, *documents)}}


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, *args: object) -> None:
        pass  # a vanished client is nothing to report


def hold(halves: int) -> None:
    """Take memory for real, until it is `halves` halves of what was told."""
    while len(HELD) < halves and "hold" in BEHAVIOUR:
        context = int(sys.argv[sys.argv.index("--ctx-size") + 1])
        HELD.append(b"\1" * (BEHAVIOUR["hold"] * context // 2))


def failure() -> str:
    """Why this start fails, or nothing."""
    starts = 0
    if path := BEHAVIOUR.get("count_file"):
        with Path(path).open("a+") as file:
            file.write(f"{os.getpid()}\n")
            file.seek(0)
            starts = len(file.readlines())
    fails = BEHAVIOUR.get("load_fails", "")
    if isinstance(fails, list):
        return fails[starts - 1] if starts <= len(fails) else ""
    return str(fails)


def main() -> None:
    if why := failure():
        sys.exit(why)
    if BEHAVIOUR.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if BEHAVIOUR.get("child"):
        subprocess.Popen(["sleep", "3600"], start_new_session=True)
    hold(1)
    print("fake engine serving", flush=True)
    Server(FLAGS.host, Handler).serve_forever()


if __name__ == "__main__":
    main()
