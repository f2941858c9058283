"""What reaches the terminal: no control characters of others, no traceback, the right status."""

import io
import json
import subprocess
import sys

import pytest

from inlay import cli, screen
from inlay.errors import ConfigError, explain, printable
from inlay.formats.peft import CONFIG
from inlay.io.records import RECORD
from tests.support.command import run

NASTY = "\x1b[2J\x1b]0;owned\x07\x9b31mreal\r\x08\x7f\u202eevil\u2066\ud800"


def is_plain(text):
    """No character of it does anything to a terminal."""
    return all(c in "\t\n" or (c >= " " and c not in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069" and not "\x7f" <= c <= "\x9f" and not "\ud800" <= c <= "\udfff") for c in text)  # fmt: skip


def test_text_is_left_as_it_is_but_for_what_controls():
    assert (
        printable("a\tb\nü 你好 \U0001f600 \u200f\u200d%s{}\\u001b")
        == "a\tb\nü 你好 \U0001f600 \u200f\u200d%s{}\\u001b"
    )
    assert printable("\x1b[2J\u202e", in_one_line=True) == "\\u001b[2J\\u202e"
    assert printable("a\nb\u2028c", in_one_line=True) == "a\\u000ab\\u2028c"
    assert json.loads(f'"{printable(NASTY)}"') == NASTY
    assert not is_plain(NASTY)
    assert is_plain(printable(NASTY))


def test_a_message_has_no_control_characters_and_no_line_of_others():
    text = explain(f"wrong {NASTY}", found=["a\n  hint:  rm -rf ~", NASTY], do=NASTY)
    assert is_plain(text)
    assert [line[:9] for line in text.split("\n")] == ["wrong \\u0", "  found: ", "  found: ", "  hint:  "]


def _does(monkeypatch, command):
    """Let every command do this."""
    monkeypatch.setattr(cli, "_recorded", lambda name, arguments, run: command(name, arguments))


def test_what_a_command_and_the_libraries_print_is_plain(capsys, monkeypatch):
    def command(name, arguments):
        print(NASTY, end="", flush=True)  # as the streamer of transformers does
        sys.stdout.writelines([NASTY, "\n"])
        screen.emit({"answer": NASTY})
        screen.fact("base", f"{NASTY}\nloads in  everything")
        screen.say("base", NASTY)
        return 0

    _does(monkeypatch, command)
    before = sys.stdout
    status, out, err = run(capsys, "inspect", "x")
    assert (status, sys.stdout) == (0, before)
    assert is_plain(out + err)
    assert "owned" in out
    assert "owned" in err
    assert json.loads(out.splitlines()[1])["answer"] == NASTY
    assert out.splitlines()[2].startswith("base      ")
    assert "\nloads in" not in out


def test_a_stream_is_otherwise_what_it_was():
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    plain = screen._Printable(stream)
    plain.reconfigure(errors="strict")
    assert (plain.isatty(), plain.encoding, plain.write("\x07a")) == (False, "utf-8", 7)


@pytest.mark.parametrize("command", ["inspect", "generate"])
def test_names_of_a_downloaded_adapter_control_nothing(place, capsys, command):
    record = json.loads((place / "good" / RECORD).read_text())
    record["base"]["name"] = f"{NASTY}\nloads in  everything"
    record["data"] = {"path": NASTY, "sha256": NASTY}
    (place / "good" / RECORD).write_text(json.dumps(record))
    arguments = (
        [place / "good"]
        if command == "inspect"
        else [place / "base", "--adapter", place / "good", "--prompt", "x", "--max-new-tokens", 1]
    )
    status, out, err = run(capsys, command, *arguments)
    assert status == 0, err
    assert is_plain(out + err)
    assert "\nloads in  everything" not in out + err
    (place / "good" / CONFIG).write_text(
        json.dumps({**json.loads((place / "good" / CONFIG).read_text()), f"brand{NASTY}\nerror: new": 1})
    )
    status, out, err = run(capsys, command, *arguments)
    assert status == 1
    assert is_plain(out + err)
    assert "\nerror: new" not in err
    assert "brand" in err


class PanicException(BaseException):
    """As libraries in Rust raise it."""


def _deep():
    return _deep()


def _raised(error):
    def command(name, arguments):
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (_raised(KeyError("x\x1b[2J\ny")), ["Inlay failed: this is a fault of its own", "found: KeyError: 'x\\x1b[2J\\ny', in ", "hint:  --debug shows where"]),
        (_raised(PanicException("index out of bounds")), ["found: PanicException: index out of bounds"]),
        (_raised(MemoryError()), ["there is not enough memory for this\n  found: MemoryError"]),
        (_raised(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")), ["there is not enough memory for this"]),
        (lambda name, arguments: _deep(), ["RecursionError"]),
        (lambda name, arguments: json.loads("{", object_hook=None, cls=lambda **how: 1 / 0), ["ZeroDivisionError"]),
        (lambda name, arguments: __import__("transformers").AutoConfig.for_model("none"), ["this model's own code, in transformers, failed\n  found: ", "hint:  --debug shows where"]),
        (lambda name, arguments: __import__("yaml").safe_load(5), ["the library yaml failed on what it was given"]),
    ],
)  # fmt: skip
def test_what_nobody_foresaw_is_an_error_in_words(capsys, monkeypatch, command, says):
    _does(monkeypatch, command)
    status, out, err = run(capsys, "inspect", "x")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
    assert is_plain(err)
    for text in says:
        assert text in err, err
    with pytest.raises(BaseException):  # noqa: B017
        run(capsys, "inspect", "x", "--debug")


@pytest.mark.parametrize(("error", "status"), [(SystemExit(2), 2), (KeyboardInterrupt(), 130), (ConfigError("a"), 1)])
def test_what_was_meant_keeps_its_status(capsys, monkeypatch, error, status):
    _does(monkeypatch, _raised(error))
    assert run(capsys, "inspect", "x")[0] == status


def test_what_libraries_do_at_the_end_without_memory_is_no_traceback():
    program = """
import atexit, sys
from inlay import cli

def fail(*given):
    raise MemoryError

atexit.register(fail)
cli._run = fail
sys.exit(cli.main(["inspect", "x"]))
"""
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert made.returncode == 1
    assert made.stderr.splitlines()[:2] == ["error: there is not enough memory for this", "  found: MemoryError"]
    assert "Traceback" not in made.stderr
