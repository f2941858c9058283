"""A chat as people have it: through a pipe, and in a terminal."""

import io

import pytest

import inlay
from inlay.cli import demo
from inlay.generation import generate
from tests.support import models
from tests.support.command import run
from tests.support.terminal import Terminal, asked, piped

LONG = "".join(chr(97 + i % 26) for i in range(6_000))
"""Longer than the 4,095 bytes of a line that a terminal keeps."""

LETTER = "Dear Ann,\nthe parcel has not come.\nYours, Bo"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters of the demo's base that say little."""
    home = tmp_path_factory.mktemp("adapters")
    base = inlay.load(demo.BASE)
    for name in ("one", "two"):
        models.randomize(base.attach(inlay.Lora(r=2), name), seed=3, std=0.001)
        (home / name).mkdir()
        base.save(name, home / name, {})
    return home


def said(conversation):
    return [message["content"] for message in conversation if message["role"] == "user"]


def test_a_pipe_with_several_questions_is_answered_to_its_end(adapters, tmp_path):
    text = b"hello\nwho are you\n/adapter two\n\xff and\n/adapter none\n/system be brief\nonce more\n/new\nlast, without a newline"
    chosen = ["--adapter", adapters / "one", "--adapter", adapters / "two"]
    status, out, err = piped(tmp_path / "log", text, "chat", demo.BASE, *chosen, "--max-new-tokens", 3)
    assert status == 0, err
    calls = asked(tmp_path / "log")
    assert [said(conversation)[-1] for conversation, _ in calls] == [
        "hello", "who are you", "\ufffd and", "once more", "last, without a newline",
    ]  # fmt: skip
    assert [adapter for _, adapter in calls] == ["one", "one", "two", None, None]  # the first that was given is active
    assert [len(conversation) for conversation, _ in calls] == [1, 3, 5, 8, 2]
    assert calls[3][0][0] == {"role": "system", "content": "be brief"} == calls[4][0][0]
    assert len(out.splitlines()) >= len(calls)
    assert "active: one" in err


def test_a_terminal_with_everything_that_a_person_does(adapters, tmp_path):
    chosen = ["--adapter", adapters / "one", "--adapter", adapters / "two", "--max-new-tokens", 12, "--greedy"]
    with Terminal(tmp_path / "log", "chat", demo.BASE, *chosen) as terminal:
        terminal.until("one> ")
        terminal.type("Once there was\n")
        answer = terminal.until("one> ")
        terminal.type("\x1b[A\n")  # arrow up: the last line again
        assert terminal.until("one> ").strip()
        terminal.type("/adapter two\n")
        terminal.until("two> ")
        terminal.type("abd\x1b[D\x7fc\n")  # arrow left and backspace
        terminal.until("two> ")
        terminal.type("/new\n")
        terminal.until("two> ")
        terminal.type("Tell me a slow story\n")
        terminal.until("Tell me a slow story\n")
        assert terminal.until(" ")
        terminal.interrupt()
        terminal.until("the answer was interrupted")
        terminal.until("two> ")
        terminal.type("half a line")
        terminal.until("half a line")
        terminal.interrupt()
        terminal.until("two> ")
        terminal.type("And then\n")
        terminal.until("two> ")
        terminal.type("/new\n")
        terminal.until("two> ")
        terminal.type(f"{LONG}\n")
        terminal.until("longer than this model's positions")
        terminal.until("two> ")
        terminal.type(f"\x1b[200~{LETTER}\x1b[201~\n")  # as terminals mark a paste
        terminal.until("two> ")
        terminal.type("/new\n")
        terminal.until("two> ")
        terminal.type(f"{LETTER}\n")  # as those do that mark none
        terminal.until("two> ")
        terminal.type("\x04")
        assert terminal.ended() == 0
    questions = [said(conversation)[-1] for conversation, _ in terminal.asked()]
    assert questions == ["Once there was"] * 2 + ["acd", "Tell me a slow story", "And then", LONG, LETTER, LETTER]
    assert [adapter for _, adapter in terminal.asked()] == ["one"] * 2 + ["two"] * 6
    after = terminal.asked()[4][0]
    assert [message["role"] for message in after] == ["user", "assistant", "user"]  # what was answered so far is kept
    assert answer.strip()


def test_a_terminal_whose_answers_go_into_a_file(tmp_path):
    with (tmp_path / "answers").open("w") as file:
        with Terminal(tmp_path / "log", "chat", demo.BASE, "--max-new-tokens", 3, stdout=file) as terminal:
            terminal.until("base> ")
            terminal.type(f"{LONG}\n")
            terminal.until("longer than this model's positions")
            terminal.until("base> ")
            terminal.type("hello\n")
            terminal.until("base> ")
            terminal.terminate()
            assert terminal.ended() == 130
    assert [said(conversation) for conversation, _ in terminal.asked()] == [[LONG], ["hello"]]
    kept = (tmp_path / "answers").read_text()
    assert kept.strip()
    assert "base> " not in kept


def test_an_adapter_of_texts_is_continued_and_flags_say_otherwise(adapters, tmp_path, capsys, monkeypatch):
    base = inlay.load(demo.BASE)
    models.randomize(base.attach(inlay.Lora(r=2), "texts"), seed=3, std=0.001)
    (tmp_path / "texts").mkdir()
    base.save("texts", tmp_path / "texts", {"text": {"form": "text", "stop_tokens": ["</s>"]}})
    tokens = []
    own = generate.answers
    monkeypatch.setattr(
        generate, "answers", lambda base, asked, *more: tokens.append(asked[0].tokens) or own(base, asked, *more)
    )

    def asked_for(*arguments):
        monkeypatch.setattr("sys.stdin", io.StringIO("Once\nThere\n"))
        status, _, err = run(capsys, *arguments, "--max-new-tokens", 2)
        assert status == 0, err
        texts = [base.tokenizer.decode([i for i in row if i != base.tokenizer.bos_token_id]) for row in tokens]
        tokens.clear()
        return texts, err

    chat, text, talk = ["chat", demo.BASE, "--greedy", "--adapter"], tmp_path / "texts", adapters / "one"
    texts, err = asked_for(*chat, text)
    assert texts == ["Once", "There"]
    assert "texts was trained on plain text" in err
    texts, err = asked_for(*chat, talk)
    assert texts[0] == "Once\n"
    assert texts[1].startswith("Once\n")
    assert texts[1].endswith("There\n")
    assert "continued as it stands" not in err
    assert asked_for(*chat, talk, "--raw")[0] == ["Once", "There"]
    assert asked_for(*chat, text, "--system", "Be brief.")[0][0] == "Be brief.\nOnce\n"
    one = ["generate", demo.BASE, "--prompt", "Once", "--adapter"]
    assert asked_for(*one, text)[0] == ["Once"]
    assert asked_for(*one, talk)[0] == ["Once\n"]
    assert asked_for(*one, talk, "--raw")[0] == ["Once"]
    assert asked_for(*one, text, "--system", "Be brief.")[0] == ["Be brief.\nOnce\n"]
    for command in (["generate", demo.BASE, "--prompt", "x"], ["chat", demo.BASE]):
        status, _, err = run(capsys, *command, "--raw", "--system", "x")
        assert status == 2
        assert "no place for a system message" in err
