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
import dataclasses
import functools
import os
import struct
import subprocess
import sys
import threading
from collections import deque
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
    _process().settle()  # what may end the process meanwhile is this text alone
    ((letter, text),) = _answers(_process().begin(_bytes(template), [_bytes(variables)]))
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


def begun(template: str, variables: Sequence[str]) -> "list[Group]":
    """Several texts under way, a few at a time in a group, for `ended`; meanwhile this process can do something else."""
    asked, text = _bytes(template), [_bytes(each) for each in variables]
    return [_process().begin(asked, group) for group in _groups(text, _PIPE_BYTES - len(asked))]


def ended(group: "Group") -> list[str | None]:
    """What the template makes of each of a group, and None where `rendered` is to be asked."""
    return [text if letter == _renderer.TEXT else None for letter, text in _answers(group)]


def _answers(group: "Group") -> list[tuple[int, str]]:
    """The letter and the text of each answer; letter 0 where the process ended instead."""
    if group.answers is None and group.renderer is not _process():  # it has ended, or is that of the parent process
        return [_ENDED] * group.num_texts
    return group.renderer.end(group)


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
        }.get(letter, f"{source}: it takes more than {SECONDS:.3g} s of the processor, or ends its process otherwise")
    return FormatError(explain(wrong, found=found, do="a template that is right in the model's chat_template.jinja"))


_PIPE_BYTES = 32_000
"""What a pipe holds everywhere before it has to be read from."""

_ENDED = 0, ""
"""In place of an answer: the process has ended."""


@dataclasses.dataclass(eq=False)
class Group:
    """Texts that are under way."""

    renderer: "_Renderer"
    num_texts: int
    num_bytes: int
    answers: list[tuple[int, str]] | None = None


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
        self._under_way: deque[Group] = deque()
        self._lock = threading.RLock()
        atexit.register(self.close)

    def begin(self, template: bytes, requests: Sequence[bytes]) -> Group:
        """Ask for texts; where the pipe has no room, what was asked for before is read first."""
        with self._whole():
            parts = [struct.pack(">Q", len(requests))]
            for request in requests:
                is_known = template == self._template
                parts += [struct.pack(">QQ", _renderer.SAME if is_known else len(template), len(request))]
                parts += [request] if is_known else [template, request]
                self._template = template
            group = Group(self, len(requests), sum(map(len, parts)))
            if group.num_bytes + sum(other.num_bytes for other in self._under_way) > _PIPE_BYTES:
                self.settle()
            self._under_way.append(group)
            assert self._process.stdin is not None, "it was made with a pipe"
            with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended: there will be no answer
                self._process.stdin.write(b"".join(parts))
                self._process.stdin.flush()
        return group

    def end(self, group: Group) -> list[tuple[int, str]]:
        """The answers of a group, when they and those before them have been read."""
        with self._whole():
            while group.answers is None and self._under_way:
                first = self._under_way.popleft()
                first.answers = self._read(first.num_texts)
        return group.answers or [_ENDED] * group.num_texts

    def settle(self) -> None:
        """Read all that is under way."""
        if self._under_way:
            self.end(self._under_way[-1])

    def _read(self, num_texts: int) -> list[tuple[int, str]]:
        assert self._process.stdout is not None, "it was made with a pipe"
        answers: list[tuple[int, str]] = []
        while len(answers) < num_texts:
            head = self._process.stdout.read(9)
            if len(head) < 9:
                self.close()
                return answers + [_ENDED] * (num_texts - len(answers))
            letter, length = struct.unpack(">BQ", head)
            answers.append((letter, self._process.stdout.read(length).decode("utf-8", "surrogatepass")))
        return answers

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What is done to the pipes is done whole, by one thread at a time."""
        with self._lock:
            try:
                yield
            except BaseException:  # Ctrl-C, say: the answer to this would be taken for the next one's
                self.close()
                raise

    def close(self) -> None:
        """End the process; the next text gets another one, and what is under way none."""
        self._under_way.clear()
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
