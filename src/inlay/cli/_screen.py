"""What the screen says: labelled lines and progress on stderr, data on stdout.

In a terminal a bar shows where the work stands; elsewhere a plain line per event does.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from inlay.errors import printable

_LABEL_WIDTH = 10


class _Printable:
    """A stream of text that controls no terminal, whoever writes to it; see `inlay.errors.printable`."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def printable_output() -> Iterator[None]:
    """Within the block stdout has no control characters but tabs and newlines: models and downloaded names write there.

    Not stderr, where progress bars move the cursor: `say` and `inlay.errors.explain` see to what is written there.
    """
    before: Any = sys.stdout
    sys.stdout = _Printable(before)
    try:
        yield
    finally:
        sys.stdout = before


def console() -> Console:
    """The terminal on stderr, without invention: no wrapping of what is not a terminal, no guessed colours in text."""
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def say(label: str, text: str) -> None:
    """One labelled line; further lines are indented under the first."""
    first, *rest = printable(text).split("\n")
    console().print(f"{label:<{_LABEL_WIDTH - 1}} {first}".rstrip())
    for line in rest:
        console().print(" " * _LABEL_WIDTH + line if line else "")


def fact(label: str, text: str) -> None:
    """One line on stdout, labelled unless the label is empty; a newline out of a file begins no other."""
    print((f"{label:<{_LABEL_WIDTH}}" if label else "") + printable(text, in_one_line=True))


def emit(values: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(values, ensure_ascii=False), flush=True)


@contextlib.contextmanager
def bar(label: str, unit: Callable[[float], str] = lambda value: f"{value:,.0f}") -> Iterator[Callable[..., None]]:
    """A progress bar; call what it gives with (done, total, text) as the work goes on.

    **Arguments:**

    - `unit`: how to write an amount of work.
    """
    if not console().is_terminal:
        yield lambda done, total, text="": None
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        _Amount(unit),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(f"{label:<{_LABEL_WIDTH - 1}}", total=None, text="")
        yield lambda done, total, text="": progress.update(task, completed=done, total=total, text=printable(text))


class _Amount(ProgressColumn):
    def __init__(self, unit: Callable[[float], str]):
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{self._unit(task.completed)}/{self._unit(task.total or 0)}")


def size(num_bytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def count(number: float) -> str:
    """A count for people: 402, 4,812, 402k, 1.31M."""
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1000:.0f}k" if number < 1e6 else f"{number / 1e6:.3g}M"


def is_terminal() -> bool:
    """Somebody watches stderr."""
    return sys.stderr.isatty()
