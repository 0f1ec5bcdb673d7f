"""`modelops chat` as a person and as a script have it: a real coordinator, a real terminal, and how it ends."""

from __future__ import annotations

import contextlib
import json
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.command import environment, modelops, started
from cli.terminal import Terminal, terminal
from modelops.cli.talk import Talk
from modelops.cli.typed import Dropped, Keyboard, entry
from modelops.client import Client
from support import Served, make_key, serving, tiny_gguf, wait_until

PROMPT = r">>> $"
TITLE, CLEARED = "\x1b]0;owned\x07", "\x9b2J"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with `quick`, which says "w0 w1 w2 ", `echo`, which says what it was told, `slow`, which never
    comes to an end, and those that do what their names say."""
    folder = tmp_path_factory.mktemp("chat")
    thinking = [{"delta": {"reasoning_content": "Hm."}}, {"delta": {"content": "Yes."}}]
    fake: dict[str, Any] = {
        "tokens": 3,
        "models": {
            "echo": {"echo": True},
            "slow": {"token_s": 0.02, "tokens": 100_000},
            "broken": {"status": 500},
            "thinker": {"choices": thinking},
            "musing": {"choices": thinking[:1] * 2, "hang_after": 1},
            "dying": {"die_after": 2},
            "endless": {"choices": [{"delta": {"content": "and"}, "finish_reason": "length"}]},
            "full": {"status": 400, "says": "input (5000 tokens) is too large to process"},
            "wild": {
                "choices": [
                    {"delta": {"reasoning_content": f"Hm.{TITLE}"}},
                    {"delta": {"content": f"a\tb\n{TITLE[:2]}"}},
                    {"delta": {"content": f"{TITLE[2:]}{CLEARED}größer\xa0!\r"}},
                ]
            },
            "rude": {"status": 400, "says": f"No.{TITLE}"},
        },
    }
    links = [(name, tiny_gguf(folder / "tiny.gguf")) for name in ("quick", *fake["models"])]
    links.append(("vectors", tiny_gguf(folder / "vectors.gguf", llama__pooling_type=1)))
    with serving(folder / "data", links=links, load=["quick", "echo", "slow"], fake=fake) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@contextlib.contextmanager
def talking(served: Served, *arguments: str, home: Path) -> Iterator[Terminal]:
    """The command in a terminal, ready for the first turn."""
    with terminal("chat", *arguments, url=served.rest, XDG_STATE_HOME=str(home)) as running:
        running.shows(PROMPT)
        yield running


def told(text: str) -> list[tuple[str, str]]:
    """The turns that an echo says it was told."""
    return [(turn["role"], turn["content"]) for turn in json.loads(text)["messages"]]


def turn(running: Terminal, keys: str) -> str:
    """Type an entry; what is shown until the next prompt."""
    before = len(running.picture())
    running.type(f"{keys}\r")
    wait_until(lambda: (shown := running.picture()[before:]).count("\n") >= 1 and shown.endswith(">>> "), what=keys)
    return running.picture()[before:]


def redirected(how: str, *arguments: str, url: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command through pipes, but for what a shell is told of them."""
    line = ["sh", "-c", f'exec "$@" {how}', "sh", sys.executable, "-m", "modelops.cli", "chat", *arguments]
    return subprocess.run(line, env=environment(url), input=stdin, capture_output=True, text=True, timeout=60)


def said(running: Terminal, file: Path) -> list[str]:
    """What has been said so far."""
    turn(running, f"/save {file}")
    return [message["content"] for message in json.loads(file.read_text())["messages"]]


def active(served: Served) -> int:
    with Client(served.rest) as client:
        return client.status().active_requests


# --- through pipes ---
def test_each_line_is_a_turn_of_one_conversation(house: Served) -> None:
    done = modelops("chat", "echo", "--system", "Be brief.", url=house.rest, stdin="one\n\n /two\n")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert told(first) == [("system", "Be brief."), ("user", "one")]
    assert told(second) == [*told(first), ("assistant", first), ("user", "/two")], "no line is a command"


def test_options_reach_the_engine(house: Served) -> None:
    options = ("--max-tokens", "7", "--temperature", "0", "--seed", "5")
    asked = json.loads(modelops("chat", "echo", *options, url=house.rest, stdin="one").stdout)
    assert (asked["max_tokens"], asked["temperature"], asked["seed"]) == (7, 0.0, 5)
    asked = json.loads(modelops("chat", "echo", url=house.rest, stdin="one").stdout)
    assert (asked["max_tokens"], asked["temperature"]) == (-1, 0.7)
    assert "seed" not in asked


def test_json_is_an_object_for_each_answer(house: Served) -> None:
    done = modelops("chat", "quick", "--json", url=house.rest, stdin="one\ntwo\n")
    assert (done.returncode, done.stderr) == (0, "")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["message"]["content"] for answer in answers] == ["w0 w1 w2 "] * 2
    done = modelops("chat", "nobody", "--json", url=house.rest, stdin="one\n")
    assert (done.returncode, done.stderr, json.loads(done.stdout)["code"]) == (1, "", "not_found")


def test_a_refusal_is_told_and_the_conversation_goes_on_without_it(house: Served) -> None:
    done = modelops("chat", "nobody", url=house.rest, stdin="one\ntwo\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("modelops: there is no model 'nobody'") == 2


@pytest.mark.parametrize(
    ("option", "value"), [("--max-tokens", "-1"), ("--temperature", "9"), ("--seed", "-1"), ("--system", "\udcff")]
)
def test_an_option_that_no_turn_could_have_is_misuse(option: str, value: str) -> None:
    done = modelops("chat", "m", option, value, url="http://127.0.0.1:1", stdin="one\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert ("content" if option == "--system" else option[2:].replace("-", "_")) in done.stderr


def test_an_answer_that_is_cut_short_is_told_as_far_as_it_came(house: Served) -> None:
    done = modelops("chat", "dying", url=house.rest, stdin="one\n")
    assert (done.returncode, done.stdout) == (1, "w0 w1 \n")
    assert done.stderr.startswith("modelops: the answer was cut short: ")


def test_what_is_thought_is_not_the_answer(house: Served) -> None:
    done = modelops("chat", "thinker", url=house.rest, stdin="one\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Yes.\n", "Hm.\n")


def test_an_answer_that_ends_at_its_length_says_so(house: Served, tmp_path: Path) -> None:
    told = "the answer ends at its length\n"
    done = modelops("chat", "endless", url=house.rest, stdin="one\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "and\n", told)
    done = modelops("chat", "endless", "--json", url=house.rest, stdin="one\n")
    assert (json.loads(done.stdout)["finish_reason"], done.stderr) == ("length", "")
    with talking(house, "endless", home=tmp_path) as running:
        assert turn(running, "one").endswith(f"and\n{told}>>> ")
        assert f"\x1b[2m{told[:-1]}" in running.output


def test_verbose_tells_how_fast_it_was(house: Served) -> None:
    done = modelops("chat", "quick", "--verbose", url=house.rest, stdin="one\n")
    assert done.stdout == "w0 w1 w2 \n"
    assert "1 tokens read, 3 answered in 0." in done.stderr
    assert done.stderr.endswith(" tokens/s\n")


def test_bytes_that_are_no_text_do_no_harm(house: Served, tmp_path: Path) -> None:
    (tmp_path / "asked").write_bytes(b"\xff\xfe\n")
    with (tmp_path / "asked").open() as asked, started("chat", "quick", url=house.rest, stdin=asked) as process:
        assert process.communicate(timeout=60) == ("w0 w1 w2 \n", "")
    assert process.returncode == 0


def test_without_standard_input_nothing_is_said(house: Served) -> None:
    done = redirected("<&-", "quick", url=house.rest)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_where_nothing_can_be_written_it_says_so(house: Served) -> None:
    done = redirected(">/dev/full", "quick", url=house.rest, stdin="one\n")
    assert done.returncode == 1
    assert done.stderr == "modelops: the conversation cannot go on: No space left on device\n"
    done = redirected(">&-", "quick", url=house.rest, stdin="one\n")
    assert (done.returncode, done.stderr) == (0, "")


def test_who_reads_no_further_is_no_failure_to_tell(house: Served) -> None:
    done = redirected("| true", "slow", url=house.rest, stdin="one\n")
    assert done.stderr == ""


def test_interrupted_it_ends_as_any_command_and_frees_the_slot(house: Served, tmp_path: Path) -> None:
    (tmp_path / "asked").write_text("one\n")
    with (tmp_path / "asked").open() as asked, started("chat", "slow", url=house.rest, stdin=asked) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == "w0 "
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 130
    wait_until(lambda: active(house) == 0, what="the slot")


def test_a_key_for_asking_is_enough(tmp_path: Path) -> None:
    links = [("m", tiny_gguf(tmp_path / "m.gguf"))]
    key = make_key(tmp_path / "data", "asker", "--scope", "infer")
    with serving(tmp_path / "data", links=links, fake={"tokens": 1}) as served:
        done = modelops("chat", "m", url=served.rest, stdin="one\n", MODELOPS_API_KEY=key)
        assert (done.returncode, done.stdout, done.stderr) == (0, "w0 \n", "")
        refused = modelops("chat", "m", url=served.rest, stdin="one\n")
        assert refused.returncode == 1
        assert "MODELOPS_API_KEY" in refused.stderr
        home = str(tmp_path)
        with terminal("chat", "nobody", url=served.rest, XDG_STATE_HOME=home, MODELOPS_API_KEY=key) as running:
            running.shows(PROMPT)
            assert "talking with m\n" in turn(running, "/model m"), "it may not look whether there is one"
            assert "w0" in turn(running, "one")


# --- at a terminal ---
def test_a_conversation_has_its_history_and_commands(house: Served, tmp_path: Path) -> None:
    with talking(house, "quick", home=tmp_path) as running:
        assert "w0 w1 w2" in turn(running, "one")
        assert "talking with echo" in turn(running, "/model echo")
        assert "that is the system turn now" in turn(running, "/system Be brief.")
        saved = tmp_path / "said.json"
        assert "written to" in turn(running, f"/save {saved}")
        assert stat.S_IMODE(saved.stat().st_mode) == 0o600
        assert json.loads(saved.read_text()) == {
            "model_name": "echo",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "w0 w1 w2 "},
            ],
        }
        assert "forgotten" in turn(running, "/clear")
        assert "written to" in turn(running, f"/save {saved}"), "over what it has written itself"
        assert json.loads(saved.read_text())["messages"] == [{"role": "system", "content": "Be brief."}]
        running.type("/quit\r")
        assert running.ended() == 0


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("/help", "/save FILE"),
        ("/dance", "there is no command '/dance'"),
        ("/dance now", "to say it, begin with a space"),
        ("/save", "where to?"),
        ("/save /nowhere/at/all", "cannot be written: No such file"),
        ("/save /etc/passwd", "cannot be written: File exists"),
        ("/save ~nobody-here/said", "cannot be written: No such file"),
        ("/system", "the model's own system turn holds now"),
        ("/model", "talking with quick"),
        ("/model nobody", "modelops: there is no model 'nobody'"),
        ("/model vectors", "modelops: 'vectors' is a model of type 'embedding'; talking takes one of type 'llm'"),
        (f"/model {'x' * 129}", "modelops: model_name: "),
        ("   ", ""),
    ],
)
def test_a_command_that_does_little_says_so(house: Served, tmp_path: Path, typed: str, says: str) -> None:
    with talking(house, "quick", home=tmp_path) as running:
        assert says in turn(running, typed)
        assert "w0 w1 w2" in turn(running, "one"), "it goes on as before"
        running.type("\x04")
        assert running.ended() == 0


def test_a_refusal_ends_nothing(house: Served, tmp_path: Path) -> None:
    with talking(house, "broken", home=tmp_path) as running:
        assert "answered 500" in turn(running, "one")
        turn(running, "/model quick")
        assert "w0 w1 w2" in turn(running, "two")
        assert said(running, tmp_path / "said") == ["two", "w0 w1 w2 "], "what was not answered is not part of it"


def test_a_conversation_that_no_longer_fits_goes_on_after_clear(house: Served, tmp_path: Path) -> None:
    with talking(house, "full", home=tmp_path) as running:
        assert "/clear" not in turn(running, "too long from the start"), "that would not help"
        turn(running, "/model quick")
        turn(running, "one")
        turn(running, "/model full")
        told = turn(running, "two")
        assert "is served with a context of" in told
        assert told.endswith("\n/clear forgets what has been said, and makes room\n>>> ")
        assert said(running, tmp_path / "said") == ["one", "w0 w1 w2 "]
        turn(running, "/model quick")
        assert "w0 w1 w2" in turn(running, "three")
    piped = modelops("chat", "full", url=house.rest, stdin="one\n")
    assert "/clear" not in piped.stderr


def test_so_does_one_of_too_many_turns(house: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(house.rest) as client:
        talk = Talk(client, "quick", "", {}, as_json=False, verbose=False, commands=True)
        talk.turns = [{"role": "user", "content": "one"}] * 1000
        assert not talk.say("two")
        assert "/clear forgets" in capsys.readouterr().err
        talk.command("/clear")
        assert talk.say("two")


def test_nothing_that_a_model_says_is_told_to_the_terminal(house: Served, tmp_path: Path) -> None:
    shown = r"\x1b]0;owned\x07"
    with terminal("chat", f"no{TITLE}body", url=house.rest, XDG_STATE_HOME=str(tmp_path)) as running:
        assert running.ended() == 1
        assert f"there is no model 'no{shown}body'" in running.picture()
        assert "\x07" not in running.output
    with talking(house, "wild", home=tmp_path) as running:
        assert f"Hm.{shown}\na\tb\n{shown}\\x9b2Jgrößer\xa0!\\r\n" in turn(running, "two")
        turn(running, "/model rude")
        assert f"No.{shown}" in turn(running, "three")
        assert not {"\x07", "\x9b"} & {*running.output}
    done = modelops("chat", "wild", url=house.rest, stdin="one\n")
    assert done.stdout.startswith(f"a\tb\n{TITLE}{CLEARED}größer"), "a program has it as it is"


@pytest.mark.parametrize(
    "text", ["/etc/passwd what is it", " /clear", "// why", "/ 2", "/", '"""/clear"""', "/clear\\\r"]
)
def test_what_begins_with_a_slash_may_be_said(house: Served, tmp_path: Path, text: str) -> None:
    with talking(house, "quick", home=tmp_path) as running:
        assert "w0 w1 w2" in turn(running, text)
        assert said(running, tmp_path / "said")[0] == text.strip(' "\\\r')


def test_a_command_may_be_followed_by_any_space(house: Served, tmp_path: Path) -> None:
    with talking(house, "quick", home=tmp_path) as running:
        assert "that is the system turn now" in turn(running, "/system\tBe  brief. ")
        assert said(running, tmp_path / "said") == ["Be  brief."]


def test_ctrl_c_ends_the_answer_and_not_the_program(house: Served, tmp_path: Path) -> None:
    with talking(house, "slow", home=tmp_path) as running:
        running.type("one\r")
        running.shows("w3 ")
        assert active(house) == 1
        running.type("\x03")
        running.shows(r"cancelled\n>>> $")
        wait_until(lambda: active(house) == 0, what="the slot")
        turn(running, "/model echo")
        assert '"w0 w1 ' in turn(running, "two"), "what had come of it is part of the conversation"
        running.type("half a th\x03")
        running.shows(r"Ctrl-D or /quit leaves\n>>> $")
        running.type("\x04")
        assert running.ended() == 0


def test_a_thought_that_is_cancelled_has_its_line(house: Served, tmp_path: Path) -> None:
    with talking(house, "musing", home=tmp_path) as running:
        running.type("one\r")
        running.shows("^Hm.$")
        running.type("\x03")
        running.shows(r"^Hm\.(\^C)?\ncancelled\n>>> $")
        assert said(running, tmp_path / "said") == [], "a thought is no answer"


def test_ctrl_d_before_the_end_of_an_entry_drops_it(house: Served, tmp_path: Path) -> None:
    with talking(house, "quick", home=tmp_path) as running:
        for begun in ('"""half', "half\\"):
            running.type(f"{begun}\r")
            running.shows(r"\.\.\. $")
            running.type("\x04")
            running.shows(r"dropped; Ctrl-D once more leaves\n>>> $")
            turn(running, "whole")
        assert said(running, tmp_path / "said") == ["whole", "w0 w1 w2 "] * 2
        running.type("\x04")
        assert running.ended() == 0


def test_an_entry_may_have_several_lines(house: Served, tmp_path: Path) -> None:
    with talking(house, "echo", home=tmp_path) as running:
        running.type("one\\\r")
        running.shows(r"\.\.\. $")
        assert '"one\\ntwo"' in turn(running, "two").replace("\n", "")
        running.type('"""three\r')
        running.shows(r"\.\.\. $")
        running.type("/clear\r")
        wait_until(lambda: running.picture().endswith("/clear\n... "))
        assert '"three\\n/clear\\nfour"' in turn(running, 'four"""').replace("\n", "")


def test_what_was_typed_comes_back_the_next_time_unless_it_should_not(house: Served, tmp_path: Path) -> None:
    memory = tmp_path / "modelops" / "chat_history"
    with talking(house, "echo", "--no-history", home=tmp_path) as running:
        turn(running, "a secret")
        running.type("\x04")
        assert running.ended() == 0
    assert not memory.exists()
    with talking(house, "echo", home=tmp_path) as running:
        turn(running, "größer")
        running.type("\x04")
        assert running.ended() == 0
    assert memory.read_text() == "größer\n"
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600
    with talking(house, "echo", home=tmp_path) as running:
        running.type("\x1b[A")
        running.shows("größer$")
        assert '"content": "gr' in turn(running, "")


def test_where_nobody_listens_it_says_so_before_anything_is_typed(tmp_path: Path) -> None:
    with terminal("chat", "m", url="http://127.0.0.1:1", XDG_STATE_HOME=str(tmp_path)) as running:
        assert running.ended() == 3
        assert "start one with 'modelops serve'" in running.picture()


@pytest.mark.parametrize(
    ("model", "status", "says"),
    [("nobody", 1, "there is no model 'nobody'"), ("vectors", 2, "'vectors' is a model of type 'embedding'")],
)
def test_so_it_does_where_there_is_nobody_to_talk_with(
    house: Served, tmp_path: Path, model: str, status: int, says: str
) -> None:
    with terminal("chat", model, url=house.rest, XDG_STATE_HOME=str(tmp_path)) as running:
        assert running.ended() == status
        assert running.picture().startswith(f"modelops: {says}")


# --- what is typed ---
@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (["one"], "one"),
        ([""], ""),
        (["one\\", "two\\", "", "three"], "one\ntwo\n"),
        (['"""one"""'], "one"),
        (['"""', "one \\", "", "two", '"""'], "one \\\n\ntwo"),
        (['  """one', 'two"""  '], "one\ntwo"),
        (['say """one'], 'say """one'),
        (['""""""'], ""),
    ],
    ids=str,
)
def test_an_entry_is_as_many_lines_as_it_says(lines: list[str], found: str) -> None:
    left = iter(lines)
    asked: list[str] = []

    def line(prompt: str) -> str:
        asked.append(prompt)
        return next(left)

    assert entry(line) == (found, False)
    assert asked[0] == ">>> "
    assert set(asked[1:]) <= {"... "}


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/clear", True),
        ("/save\tfile", True),
        ("/dance  now ", True),
        ("/clear\n", True),
        ("/system one\ntwo", False),
        ("/save-as", True),
        (" /clear", False),
        ("/etc/hosts", False),
        ("/", False),
        ("/ clear", False),
        ("clear", False),
        ('"""/clear"""', False),
    ],
    ids=repr,
)
def test_a_command_is_one_line_of_a_slash_and_a_word(text: str, command: bool) -> None:
    assert entry(lambda _: text).command is command


@pytest.mark.parametrize("begun", ['"""one', "one\\"])
def test_an_entry_that_is_not_ended_is_none(begun: str) -> None:
    def line(prompt: str) -> str:
        if prompt == "... ":
            raise EOFError
        return begun

    with pytest.raises(Dropped):
        entry(line)


@pytest.mark.parametrize("kept", [1999, 2000, 2001])
def test_what_is_remembered_does_not_grow_for_ever(tmp_path: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "memory"
    memory.write_text("".join(f"{number}\n" for number in range(kept)))
    keyboard = Keyboard(memory)
    lines: Any = iter(["last"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert keyboard.line(">>> ") == "last"
    found = memory.read_text().splitlines()
    assert found[-2:] == [str(kept - 1), "last"]
    assert len(found) == (kept + 1 if kept <= 2000 else 1001)
    assert stat.S_IMODE(memory.stat().st_mode) == 0o600


def test_a_memory_that_cannot_be_kept_is_no_reason_not_to_talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    keyboard = Keyboard(tmp_path / "file" / "memory")
    monkeypatch.setattr("builtins.input", lambda _: "one")
    assert [keyboard.line(">>> ") for _ in range(2)] == ["one", "one"]
