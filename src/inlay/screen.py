"""What the screen says: labelled lines and progress on stderr, data on stdout.

Every event has a line, which stays. A bar shows where the work stands: in a terminal under the lines, in a notebook above them.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from inlay.errors import printable

_LABEL_WIDTH = 10

Doing = Callable[[str, int, int | None], None]
"""Hears what is being done, how much of it is done, and of how much in all, where that is known."""

NOTEBOOK_SECONDS = 0.2
"""From one picture of a bar in a notebook to the next, at least: each is a message to the browser."""

_live: list[Progress] = []
"""The progress display that is on the screen: there is one at a time."""


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
    sys.stdout = before and _Printable(before)  # there is none where it was closed, as by `>&-`
    try:
        yield
    finally:
        sys.stdout = before


def console() -> Console:
    """The terminal on stderr, without invention: no wrapping of what is not a terminal, no guessed colours in text."""
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def say(label: str, text: str) -> None:
    """One labelled line, above the bar where one is shown; further lines are indented under the first.

    Work goes on where nobody can read it any more: the terminal is closed, the pipe is broken, the disk of the log is full.
    """
    first, *rest = printable(text).split("\n")
    out = _live[0].console if _live else console()
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed: a ValueError; None, as in `2>&-`: the last
        out.print(f"{label:<{_LABEL_WIDTH - 1}} {first}".rstrip())
        for line in rest:
            out.print(" " * _LABEL_WIDTH + line if line else "")


def fact(label: str, text: str) -> None:
    """One line on stdout, labelled unless the label is empty; a newline out of a file begins no other."""
    print((f"{label:<{_LABEL_WIDTH}}" if label else "") + printable(text, in_one_line=True))


def has_colours() -> bool:
    """Stdout is a terminal that shows colours, and nobody asked for none (`NO_COLOR`)."""
    out = _coloured()
    return out.is_terminal and out.color_system is not None and not out.no_color


def styled(pieces: Iterable[tuple[str, str]]) -> None:
    """One line on stdout of (text, colours as rich names them)."""
    line = Text("")
    for text, style in pieces:
        line.append(printable(text, in_one_line=True), style)
    with contextlib.suppress(AttributeError):  # stdout was closed
        _coloured().print(line)


def _coloured() -> Console:
    """The terminal on stdout, past what takes control characters out: colours are such."""
    file = sys.stdout._stream if isinstance(sys.stdout, _Printable) else sys.stdout
    return Console(file=file, highlight=False, soft_wrap=True, markup=False)


def emit(values: dict[str, Any]) -> None:
    """One JSON object on stdout, escaped where the encoding of stdout lacks a character."""
    text = json.dumps(values, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(values)
    print(text, flush=True)


@contextlib.contextmanager
def bar(
    label: str,
    unit: Callable[[float], str] = lambda value: f"{value:,.0f}",
    *,
    timed: bool = True,
    shown: bool = True,
) -> Iterator[Callable[..., None]]:
    """A progress bar, in a terminal or a notebook; call what it gives with (done, total, text) as the work goes on,
    and `now` where that has to be seen at once. Within another one, a line under it. It goes at the end of the block.

    **Arguments:**

    - `unit`: how to write an amount of work.
    - `timed`: show how long it will take, by the rate so far.
    - `shown`: False for none.
    """
    out = console()
    if not (shown and (_live or (is_terminal() and out.is_terminal))):
        with _under_cell(label, unit, shown and is_notebook()) as update:
            yield update
        return
    with _progress(out) as progress:
        description = f"{label:<{_LABEL_WIDTH - 1}}"
        task = progress.add_task(description, total=None, text="", unit=unit, timed=timed)

        def update(done: float, total: float | None, text: str = "", now: bool = False) -> None:
            with contextlib.suppress(OSError, ValueError):
                progress.update(task, completed=done, total=total, text=printable(text), refresh=now)

        try:
            yield update
        finally:
            progress.remove_task(task)


def doing(update: Callable[..., None]) -> Doing:
    """What moves a bar, by what `bar` gave, and names beside it what is being done."""
    return lambda what, done, total: update(done, total, what)


def unheard(what: str, done: int, total: int | None) -> None:
    """A `Doing` where nobody listens."""


@contextlib.contextmanager
def _under_cell(label: str, unit: Callable[[float], str], shown: bool) -> Iterator[Callable[..., None]]:
    """The bar of a cell: one output, which each picture replaces. It takes IPython alone, which every notebook has, where
    rich's bars take `ipywidgets`. Where it is not shown, nobody hears."""
    if not shown:
        yield lambda done, total, text="", now=False: None
        return
    from IPython.display import display  # type: ignore[reportMissingImports]  # there is one where a notebook runs

    output = display({"text/html": "", "text/plain": ""}, raw=True, display_id=True)
    last = 0.0

    def update(done: float, total: float | None, text: str = "", now: bool = False) -> None:
        nonlocal last
        if now or time.monotonic() - last >= NOTEBOOK_SECONDS:
            last = time.monotonic()
            amount = "" if total is None else f"{unit(done)}/{unit(total)}"
            said = printable("  ".join(part for part in (label, amount, text) if part), in_one_line=True)
            filled = "" if total is None else f' max="{total:g}" value="{done:g}"'
            picture = f'<progress{filled} style="width: 16rem"></progress> <code>{escape(said)}</code>'
            output.update({"text/html": picture, "text/plain": said}, raw=True)

    try:
        yield update
    finally:
        output.update({"text/html": "", "text/plain": ""}, raw=True)


@contextlib.contextmanager
def _progress(out: Console) -> Iterator[Progress]:
    """The bars that are shown: those that are there already, or new ones for as long as the block."""
    if _live:
        yield _live[0]
        return
    text = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
    progress = Progress(text[0], BarColumn(), _Amount(), text[1], _Remaining(), console=out, transient=True)
    _live.append(progress)
    try:
        with contextlib.suppress(OSError, ValueError):
            progress.start()
        yield progress
    finally:
        _live.remove(progress)
        with contextlib.suppress(OSError, ValueError):  # the terminal is closed
            progress.stop()


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        return Text("" if task.total is None else f"{unit(task.completed)}/{unit(task.total)}")


class _Remaining(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields["timed"] and task.total is not None else Text("")


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
    with contextlib.suppress(ValueError, AttributeError):  # closed, or None
        return sys.stderr.isatty()
    return False


def is_watched() -> bool:
    """Somebody watches stderr, in a terminal or a notebook."""
    return is_terminal() or is_notebook()


def is_notebook() -> bool:
    """This is the process of a notebook, whose outputs a browser or an editor shows."""
    shell = sys.modules.get("IPython") if "ipykernel" in sys.modules else None  # which other packages import too
    return shell is not None and shell.get_ipython() is not None
