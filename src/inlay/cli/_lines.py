"""What a person types, message by message: with editing and history in a terminal, line by line from a pipe.

A terminal hands over whole lines by itself, but cuts them at 4,095 bytes and knows no arrow keys. `readline` reads key by key.
Between two messages the terminal stays in that mode: what is typed or pasted then is neither cut nor shown twice.

A paste of several lines is one message. Most terminals mark where a paste begins and ends, which GNU readline reads; elsewhere
lines that come at once after the prompt are taken for one. What was typed before the prompt stays a message per line.
"""

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any

from inlay.errors import DataError, explain

QUOTES = '"""'
"""Alone on a line they begin a message of several lines, and alone on one they end it."""

PASTE_SECONDS = 0.03
"""Lines that follow each other faster than this have been pasted."""

CUT = 1024 if sys.platform == "darwin" else 4095
"""As many bytes of a line a terminal keeps that hands over whole lines."""


class Lines:
    """The messages that come in on stdin; use it in a `with` block, which leaves the terminal as it was."""

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty()
        self._exits = contextlib.ExitStack()
        self._editor = _editor() if self.is_terminal else None

    def __enter__(self) -> "Lines":
        if self.is_terminal and self._editor:
            self._exits.enter_context(_mode(sys.stdin.fileno(), echo=False))
        elif isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="replace")  # a stray byte ends no conversation; only before the first is read
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    def read(self, prompt: str) -> str | None:
        """The next message without the spaces around it; None at the end of the input.

        What stands between lines of `QUOTES` is a message whatever it begins with: a slash in front becomes two.

        **Raises:**

        - `DataError`: the terminal has cut a line, or its bytes are not text.
        """
        text = self._next(prompt)
        if text is None or text.partition("\n")[0].strip() != QUOTES:
            return text and text.strip()
        while not text.rstrip().endswith(f"\n{QUOTES}") and (more := self._next("... ")) is not None:
            text += f"\n{more}"
        text = text.strip().removeprefix(QUOTES).removesuffix(QUOTES).strip()
        return f"/{text}" if text.startswith("/") else text

    def _next(self, prompt: str) -> str | None:
        """What comes in at a time: a line, or several that were pasted."""
        if not self.is_terminal:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        early = self._editor is None or _waits(0)
        try:
            with _stdout_is_terminal():
                lines = [self._line(prompt)]
                while not early and not lines[0].startswith("/") and _waits(PASTE_SECONDS):
                    lines.append(self._line("... "))
        except EOFError:
            print(file=sys.stderr)
            return None
        except UnicodeDecodeError:
            raise DataError(explain("what was typed is not text", found="bytes that are not UTF-8")) from None
        if self._editor is None and len(lines[0].encode("utf-8", "replace")) + 1 >= CUT:
            raise DataError(
                explain(
                    "the terminal has cut this line",
                    found=f"{CUT:,} bytes, the most that it keeps",
                    do="shorter lines, or inlay chat ... < FILE",
                )
            )
        return "\n".join(lines)

    def _line(self, prompt: str) -> str:
        with _mode(sys.stdin.fileno(), echo=True) if self._editor else contextlib.nullcontext():
            return input(prompt)  # readline shows what is typed where the terminal would, and only there


def _editor() -> Any:
    """Python's `readline`, set up; None where Python was built without it."""
    try:
        import readline
    except ImportError:
        return None
    readline.parse_and_bind("set enable-bracketed-paste on")
    readline.set_auto_history(True)
    return readline


def _waits(seconds: float) -> bool:
    """More input is there, or comes within this time."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


@contextlib.contextmanager
def _mode(terminal: int, echo: bool) -> Iterator[None]:
    """Within the block the terminal gives every key at once, and shows them or not; Ctrl-C still interrupts."""
    import termios

    before = termios.tcgetattr(terminal)
    keys = termios.tcgetattr(terminal)
    keys[3] = keys[3] & ~(termios.ICANON | termios.ECHO) | (termios.ECHO if echo else 0)
    termios.tcsetattr(terminal, termios.TCSADRAIN, keys)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _stdout_is_terminal() -> Iterator[None]:
    """Within the block stdout goes to the terminal of stderr, where it goes elsewhere: `readline` edits on no other."""
    sys.stdout.flush()
    if sys.stdout.isatty() or not sys.stderr.isatty():
        yield
        return
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
