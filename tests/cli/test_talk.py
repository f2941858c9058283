"""What lines with a slash do in a chat, and what no fault in one turn does."""

import json
import re
from pathlib import Path

import pytest

import inlay
from inlay.base.base import Base
from inlay.cli import demo
from inlay.cli._talk import ORDERS, How, Talk, marked
from inlay.data.forms import read_rows
from inlay.generation.sampling import Sampling
from inlay.tasks.causal_lm import prepare
from inlay.text import template
from tests.support import models
from tests.support.command import run
from tests.support.terminal import Terminal, asked, piped

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "chat.md"


@pytest.fixture(scope="module")
def base():
    """The demo's base with two adapters, each of which answers otherwise."""
    made = inlay.load(demo.BASE)
    for seed, name in enumerate(("one", "two")):
        models.randomize(made.attach(inlay.Lora(r=2), name), seed=seed, std=0.3)
    return made


@pytest.fixture
def calls(monkeypatch):
    """What the base was asked: prompts, adapters, settings."""
    made, own = [], Base.generate

    def generate(self, prompts, adapters=None, **how):
        made.append((prompts, adapters, how))
        return own(self, prompts, adapters, **how)

    monkeypatch.setattr(Base, "generate", generate)
    return made


@pytest.fixture
def talk(base):
    base.active = None
    return Talk(base, How(model=str(demo.BASE), sampling=Sampling(temperature=1.0), max_new_tokens=6), [])


def hear(talk, *lines):
    assert all(talk.hear(line) for line in lines)


def test_help_is_what_there_is_and_the_guide_shows_it(talk, capsys):
    hear(talk, "/help")
    shown = capsys.readouterr().err
    assert all(f"/{name} {order.given}".strip() in shown and order.help in shown for name, order in ORDERS.items())
    assert len(shown.splitlines()) <= 24, "one screen"
    typed = {order.help: f"/{name} {order.given}".strip().replace("|", "\\|") for name, order in ORDERS.items()}
    rows = "\n".join(f"| `{order}` | {does} |" for does, order in typed.items())
    assert rows in GUIDE.read_text("utf-8")
    assert talk.hear("/quit") is False


def test_an_order_that_there_is_not_is_no_message(talk, calls, capsys):
    hear(talk, "/sytem be brief", "/what is this", "/undo everything", "/ adapter", "/")
    err = capsys.readouterr().err
    assert err.count("error: ") == 5
    assert "hint:  /system" in err
    assert "/undo takes nothing" in err
    assert not calls
    assert not talk.turns
    hear(talk, "//etc/hosts is a file")
    assert calls[0][0] == [[{"role": "user", "content": "/etc/hosts is a file"}]]


def test_an_answer_is_made_anew_by_another_draw_and_takes_the_place_of_the_first(talk, calls):
    hear(talk, "Once there was", "And then")
    first = list(talk.turns)
    hear(talk, "/retry", "/retry")
    assert [prompts for prompts, _, _ in calls[1:]] == [calls[1][0]] * 3
    assert len({how["seed"] for _, _, how in calls}) == 4
    assert talk.turns[:1] == first[:1]
    assert len(talk.turns) == 2
    assert talk.turns[1].question == "And then"
    assert talk.turns[1].answer != first[1].answer


def test_all_answer_a_question_from_one_batch_and_the_first_difference_is_marked(talk, calls, capsys):
    hear(talk, "/adapter two", "Once there was")
    kept = talk.turns[0].answer
    capsys.readouterr()
    hear(talk, "/compare")
    out = capsys.readouterr().out
    prompts, adapters, how = calls[-1]
    assert adapters == [None, "one", "two"]
    assert prompts == [[{"role": "user", "content": "Once there was"}]] * 3
    assert len(set(how["seed"])) == 1, "the same draws: what differs is the adapters' doing"
    parts = re.split(r"^--- (\w+)\n", out, flags=re.MULTILINE)[1:]
    assert parts[::2] == ["base", "one", "two"]
    answers = [part.strip() for part in parts[1::2]]
    assert [answer.count("[[") for answer in answers] == [1, 1, 1]
    plain = [answer.replace("[[", "").replace("]]", "") for answer in answers]
    assert plain[2] == kept.strip(), "what answered before says the same again"
    assert [turn.question for turn in talk.turns] == ["Once there was"], "the conversation is as it was"
    hear(talk, "/compare one none -- And then", "/compare -- And then")
    assert [adapters for _, adapters, _ in calls[-2:]] == [["one", None], [None, "one", "two"]]
    assert [len(prompts[0]) for prompts, _, _ in calls[-2:]] == [3, 3], "what was said before is before it"
    asked_so_far = len(calls)
    hear(talk, "/compare And then", "/new", "/compare")
    assert len(calls) == asked_so_far
    err = capsys.readouterr().err
    assert "no adapter of that name is attached\n  found: 'And'" in err
    assert "/compare -- QUESTION asks all" in err
    assert "there is no question to compare" in err


def test_rows_may_have_seeds_of_their_own(base):
    def ask(seed, count=2):
        return base.generate(["Once"] * count, temperature=1.0, max_new_tokens=8, seed=seed)

    assert ask([5, 5]) == ask(5, 1) * 2
    assert ask([5, 6]) == ask(5)
    for wrong, says in (([1], "differ in number"), ([1, 2**63], "not of 64 bits")):
        with pytest.raises(inlay.ConfigError, match=says):
            ask(wrong)


def test_the_mark_is_on_the_first_word_that_is_not_the_same():
    assert marked(["a b c", "a x c", "a b d"]) == ["a [[b]] c", "a [[x]] c", "a [[b]] d"]
    assert marked(["a  b\nc", "a b d"]) == ["a  b\n[[c]]", "a b [[d]]"], "spaces are no words"
    assert marked(["a", "a b", ""]) == ["[[a]]", "[[a]] b", ""]
    assert marked(["a b", "a b c"]) == ["a b", "a b [[c]]"]
    assert marked(["a b", "a b"]) == ["a b", "a b"]
    assert marked(["a b"]) == ["a b"]
    assert marked([]) == []


def test_another_adapter_answers_from_then_on_and_what_was_said_is_kept(talk, base, calls, tmp_path, capsys):
    place = tmp_path / "third"
    place.mkdir()
    base.save("one", place, {})
    hear(talk, "Once there was", "/adapter two", "And then", f"/adapter {place}", "And then", "/adapter")
    assert [adapters for _, adapters, _ in calls] == [None, "two", "third"]
    assert [len(prompts[0]) for prompts, _, _ in calls] == [1, 3, 5]
    err = capsys.readouterr().err
    assert "active    two · the conversation goes on" in err
    assert "adapters  one, two, third (active), none, the base" in err
    hear(talk, "/adapter thrid", "/adapter some/name-on-the-hub", f"/adapter {tmp_path}")
    err = capsys.readouterr().err
    assert "hint:  /adapter third" in err
    assert err.count("error: ") == 3
    assert base.active == "third"
    base.detach("third")


def test_a_system_message_is_set_shown_and_cleared_and_tried_first(talk, calls, base, capsys, monkeypatch):
    hear(talk, "/system Be brief.", "Once", "/system", "/system none", "And", "/system")
    err = capsys.readouterr().err
    assert err.count("system    Be brief.") == 2
    assert "Be brief. · the template takes it" in err
    assert err.count("no system message") == 2
    assert [prompts[0][0]["role"] for prompts, _, _ in calls] == ["system", "user"]
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    )
    monkeypatch.setattr(base.tokenizer, "chat_template", refusing)
    hear(talk, "/system Be long.")
    assert "no system" in capsys.readouterr().err
    assert talk.system == ""


def test_what_was_said_is_saved_as_a_row_to_train_on(talk, base, tmp_path, capsys):
    path = tmp_path / "new folder" / "chat.jsonl"
    hear(talk, "/system Be brief.", f"/save {path}")
    assert "no whole answer" in capsys.readouterr().err
    hear(talk, "Once there was")
    talk.turns[0] = talk.turns[0]._replace(answer="a whole «answer»\nof two lines", is_cut=False)
    hear(talk, "And then", f"/save {path}")
    assert talk.turns[1].is_cut, "six tokens end no answer here"
    rows = read_rows(str(path))
    prepared = prepare(rows, base.tokenizer, 500, "completions", "drop")
    trained = base.tokenizer.decode([t for t, on in zip(*_only(prepared), strict=True) if on])
    assert "two lines" in trained
    assert "Once" not in trained
    assert talk.turns[1].answer.strip()[-4:] not in trained, "what was cut is not trained on"
    before = path.read_bytes()
    assert [m["role"] for m in json.loads(before)["messages"]] == ["system", *["user", "assistant"] * 2]
    hear(talk, "/drop", f"/save {path}", "/save", f"/save {tmp_path} --overwrite")
    assert path.read_bytes() == before
    talk.turns[0] = talk.turns[0]._replace(is_cut=False)
    hear(talk, f"/save {path}", f"/save {tmp_path} --overwrite", f"/save {path}/below")
    err = capsys.readouterr().err
    assert "nothing is overwritten" in err
    assert err.count("could not be written") == 2
    assert path.read_bytes() == before
    hear(talk, f"/save {path} --overwrite")
    assert len(json.loads(path.read_bytes())["messages"]) == 3
    assert [p.name for p in path.parent.iterdir()] == ["chat.jsonl"]


def _only(prepared):
    """(the tokens, which of them are trained on) of the only row."""
    (example,) = prepared.examples
    return example.input_ids, example.trained


def test_questions_are_forgotten_from_either_end(talk, calls, capsys):
    hear(talk, "a", "b", "c", "/drop", "/undo")
    assert [turn.question for turn in talk.turns] == ["b"]
    hear(talk, "/retry")
    assert calls[-1][0] == [[{"role": "user", "content": "b"}]]
    hear(talk, "/undo", "/undo", "/retry")
    assert len(calls) == 4
    assert "no question to answer anew" in capsys.readouterr().err


def test_a_conversation_that_has_no_room_says_how_it_goes_on(talk, calls, capsys, monkeypatch):
    hear(talk, "a", "b " * 40)
    question = {"role": "user", "content": "c"}
    whole = [message for turn in talk.turns for message in ({**question, "content": turn.question}, question)]
    room = len(template.prompt_ids(talk.base.tokenizer, [*whole, question]))
    monkeypatch.setitem(vars(talk.base), "max_length", room - 1)
    hear(talk, "c")
    err = capsys.readouterr().err
    assert "longer than this model's positions" in err
    assert "/drop forgets the oldest question, /new forgets all; then /retry" in err
    assert [turn.question for turn in talk.turns] == ["a", "b " * 40]
    hear(talk, "/drop", "/drop", "/retry")
    assert [turn.question for turn in talk.turns] == ["c"]


class Panic(BaseException):
    """As those of libraries in Rust."""


@pytest.mark.parametrize("fault", [RuntimeError("boom"), Panic("boom"), MemoryError(), OSError(5, "boom"), KeyError(1)])
def test_no_fault_of_a_library_ends_it(talk, base, capsys, monkeypatch, fault):
    hear(talk, "Once")
    kept = list(talk.turns)
    with monkeypatch.context() as broken:
        broken.setattr(Base, "generate", lambda *given, **how: (_ for _ in ()).throw(fault))
        hear(talk, "And", "/compare", "/retry")
    err = capsys.readouterr().err
    assert err.count("error: ") == 3
    assert "Traceback" not in err
    assert talk.turns == kept
    hear(talk, "/retry")
    assert [turn.question for turn in talk.turns] == ["Once", "And"]


def test_nobody_who_reads_ends_it(talk, monkeypatch):
    monkeypatch.setattr(Base, "generate", lambda *given, **how: (_ for _ in ()).throw(BrokenPipeError()))
    with pytest.raises(BrokenPipeError):
        talk.hear("Once")


def test_a_system_message_that_no_template_takes_is_refused_at_the_start(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(Talk, "set_system", lambda self, text: (_ for _ in ()).throw(inlay.DataError(f"no {text}")))
    assert run(capsys, "chat", demo.BASE, "--system", "brief")[0] == 1


def test_a_pipe_takes_orders_and_messages_of_several_lines(tmp_path):
    text = '"""\n/usr/bin:\n\n    indented\n"""\n/retry\n/compare -- B\n/save chat.jsonl\n/quit\nnever asked\n"""\n'
    text = text.replace("chat.jsonl", str(tmp_path / "chat.jsonl"))
    status, out, err = piped(tmp_path / "log", text.encode(), "chat", demo.BASE, "--max-new-tokens", 40)
    assert status == 0, err
    calls = asked(tmp_path / "log")
    assert [conversation[-1]["content"] for conversation, _ in calls] == ["/usr/bin:\n\n    indented"] * 2 + ["B"]
    assert "--- base\n" in out


def test_ctrl_c_stops_an_answer_and_twice_ends_the_chat(tmp_path):
    with Terminal(tmp_path / "log", "chat", demo.BASE, "--max-new-tokens", 12, "--greedy") as terminal:
        terminal.until("base> ")
        terminal.type("Tell me a slow story\n")
        terminal.until("story\n")
        assert terminal.until(" ")
        terminal.interrupt()
        terminal.until("the answer was interrupted")
        terminal.until("base> ")
        terminal.type("/save chat.jsonl\n")
        terminal.until("no whole answer to save")  # it is the beginning of one
        terminal.until("base> ")
        terminal.interrupt()
        terminal.until("Ctrl-C once more ends the chat")
        terminal.until("base> ")
        terminal.type("/compare\n")  # of the slow one; the press before is forgotten
        terminal.until("/compare\n")
        terminal.interrupt()
        terminal.until("interrupted; the conversation goes on")
        terminal.until("base> ")
        terminal.type('"""\n')
        terminal.until("... ")
        terminal.type("  of two\n")
        terminal.until("... ")
        terminal.type("lines\n")
        terminal.until("... ")
        terminal.type('"""\n')
        terminal.until("base> ")
        terminal.type("half a line")
        terminal.until("half a line")
        terminal.interrupt()  # the first since a message
        terminal.until("Ctrl-C once more ends the chat")
        terminal.until("base> ")
        terminal.interrupt()
        assert terminal.ended() == 130
    assert "nothing was left half-written" not in terminal.screen
    conversations = [conversation for conversation, _ in terminal.asked()]
    assert conversations[2][-1]["content"] == "of two\nlines"
    assert [message["role"] for message in conversations[2]] == ["user", "assistant", "user"]
