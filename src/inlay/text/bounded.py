"""Chat templates within bounds: a template is a program out of a download, and nobody has read it.

A template can loop for longer than anyone waits (two loops over 100,000), ask for 30 GB in a word
(`'a'.center(30000000000)`), or raise anything. So it runs in a process of its own, `_renderer.py`, which

- ends after `SECONDS` of the processor's time for one text (of the clock where a system counts no other),
- can't have more than `MEMORY` bytes (where the system keeps a limit, as Linux does),
- writes at most 8 characters for each byte that it was given, and a million beside,

and whatever it raises becomes an error in words. Counting steps inside this process would not do: one step can ask for
all memory, and no list of the operations that can is complete. The process starts with the first text and is kept: a text
costs 0.1 ms more than rendering it here.
"""

import atexit
import contextlib
import functools
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from inlay.errors import DataError, FormatError, explain
from inlay.text import _renderer

SECONDS = 2.0
"""The processor's time that a template may take for one text: thousands of times what an honest one needs."""

MEMORY = 1_000_000_000
"""Bytes of address space that a template may have."""


def rendered(template: str, variables: str, source: str) -> str:
    """What the template makes of its variables.

    **Arguments:**

    - `variables`: a JSON object, as text.
    - `source`: whose text it is, for messages: a prompt, or a row of a file.

    **Raises:**

    - `DataError`: the template refuses or can't render this; it names `source`.
    - `FormatError`: the template is not Jinja, or goes beyond the bounds.
    """
    ((letter, text),) = _process().ask(template, [_bytes(variables)])
    if letter == _renderer.TEXT:
        return text
    if letter == _renderer.REFUSED:
        raise DataError(
            explain(
                "the chat template of this model refuses the messages",
                found=f"{source}: {text}",
                do="use roles that it knows, in the order that it wants; a system text can open the first user message",
            )
        )
    if letter == _renderer.FAILED:
        raise failure(source, text)
    raise _beyond(letter, source, text)


def rendered_all(template: str, variables: Sequence[str]) -> list[str | None]:
    """What the template makes of each of several variables, and None where `rendered` is to be asked; quicker than that."""
    room = _PIPE_BYTES - len(_bytes(template))
    groups = _groups([_bytes(text) for text in variables], room)
    answers = (answer for group in groups for answer in _process().ask(template, group))
    return [text if letter == _renderer.TEXT else None for letter, text in answers]


def _groups(requests: Sequence[bytes], room: int) -> Iterator[list[bytes]]:
    """Requests that are all under way before the first answer is read: as many as `room` bytes hold, or one."""
    group: list[bytes] = []
    size = 0
    for request in requests:
        if group and size + len(request) > room:
            yield group
            group, size = [], 0
        group.append(request)
        size += len(request) + 16
    yield group


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def failure(source: str, reason: str) -> DataError:
    """The error for a template that can't render what it is given."""
    return DataError(
        explain(
            "the chat template of this model fails on these messages",
            found=f"{source}: {reason}",
            do="messages of the form that it wants, or a template that is right in the model's chat_template.jinja",
        )
    )


def _beyond(letter: int, source: str, text: str) -> FormatError:
    if letter == _renderer.SYNTAX:
        wrong, found = "the chat template of this model is not Jinja", text
    else:
        wrong = "the chat template of this model does not come to an end"
        found = {
            _renderer.LONG: f"{source}: its text has {text}",
            _renderer.MEMORY: f"{source}: it asks for more than {MEMORY / 1e9:.3g} GB of memory",
        }.get(letter, f"{source}: {text}")
    return FormatError(explain(wrong, found=found, do="a template that is right in the model's chat_template.jinja"))


_PIPE_BYTES = 32_000
"""What a pipe holds everywhere before it has to be read from."""


class _Renderer:
    """The process that renders, as this process sees it."""

    def __init__(self) -> None:
        import jinja2
        import markupsafe

        places = {str(Path(str(module.__file__)).parents[1]) for module in (jinja2, markupsafe)}
        self._process = subprocess.Popen(
            # isolated: neither the current folder nor the environment says what it imports
            [sys.executable, "-I", "-S", str(Path(_renderer.__file__)), str(SECONDS), str(MEMORY), *sorted(places)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us
        )
        self._template = b""
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, template: str, requests: Sequence[bytes]) -> list[tuple[int, str]]:
        """The letter and the text of each answer; letter 0 where the process ended instead."""
        with self._lock:
            try:
                return self._exchange(_bytes(template), requests)
            except BaseException:  # Ctrl-C, say: the answer to this would be taken for the next one's
                self.close()
                raise

    def _exchange(self, template: bytes, requests: Sequence[bytes]) -> list[tuple[int, str]]:
        assert self._process.stdin is not None, "it was made with a pipe"
        assert self._process.stdout is not None, "it was made with a pipe"
        parts = [struct.pack(">Q", len(requests))]
        for request in requests:
            is_known = template == self._template
            parts += [struct.pack(">QQ", _renderer.SAME if is_known else len(template), len(request))]
            parts += [request] if is_known else [template, request]
            self._template = template
        answers: list[tuple[int, str]] = []
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"".join(parts))
            self._process.stdin.flush()
            while len(answers) < len(requests):
                head = self._process.stdout.read(9)
                if len(head) < 9:
                    break
                letter, length = struct.unpack(">BQ", head)
                answers.append((letter, self._process.stdout.read(length).decode("utf-8", "surrogatepass")))
        if len(answers) < len(requests):
            self.close()
            ended = 0, f"it takes more than {SECONDS:.3g} s of the processor, or ends its process otherwise"
            answers += [ended] * (len(requests) - len(answers))
        return answers

    def close(self) -> None:
        """End the process; the next text gets another one."""
        _process.cache_clear()
        atexit.unregister(self.close)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):  # what was not written yet can't be
                pipe.close()  # type: ignore[union-attr]  # it was made with pipes


@functools.cache
def _process() -> _Renderer:
    return _Renderer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_process.cache_clear)  # the pipes belong to the parent
