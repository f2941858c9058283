"""The command line: one file per command, imported only when it is asked for.

A command is a file of this folder with a dataclass `Command`: its fields are the arguments, the docstring under each is the
help, and `run` returns the exit status. The first line of the file is its line in `inlay --help`, which needs nothing but
the standard library.
"""

import atexit
import contextlib
import importlib
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

GROUPS = {
    "begin": ("demo", "data", "plan"),
    "train and measure": ("train", "compare", "eval"),
    "use": ("predict", "generate", "chat", "serve"),
    "make another": ("merge", "quantize", "combine", "convert", "extract"),
    "look": ("inspect", "diff", "verify", "runs"),
    "keep and share": ("store", "export", "sign", "push", "pull"),
}
"""The commands in the order of the help: that of an adapter's life. A command that is not here comes last."""


RECORDED = ("train", "compare", "eval", "merge", "combine", "convert", "extract", "quantize")
"""The commands whose runs are recorded, once they have found what they work on; `inlay runs` lists them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for an error, 2 for usage, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if len(arguments) > 1 and arguments[0] == "help":
            return main([*arguments[1:], "--help"])
        print(_help())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        from inlay import __version__

        print(f"inlay {__version__}")
        return 0
    if arguments[0] == "completion":
        return _completion(arguments[1:])
    if arguments[0] not in commands():
        return _unknown(arguments[0])
    _let_threads_sleep()
    os.environ.setdefault(*LOADING)
    return _guarded(arguments[0], arguments[1:])


def commands() -> list[str]:
    """The commands that exist: the files of this folder."""
    return [name for names in _groups().values() for name in names]


def _groups() -> dict[str, list[str]]:
    """The commands that exist, under the titles of the help."""
    names = {path.stem for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("_")}
    known = {name for group in GROUPS.values() for name in group}
    found = {title: [name for name in group if name in names] for title, group in GROUPS.items()}
    return found | ({"more": more} if (more := sorted(names - known)) else {})


def _guarded(command: str, arguments: list[str]) -> int:
    """Run a command, and turn what it raises into a message and a status."""
    from inlay.errors import CapacityError, InlayError, UsageError, within_memory

    debug = "--debug" in arguments
    try:
        with within_memory():
            return _run(command, arguments)
    except InlayError as error:
        if debug:
            raise
        _print(f"error: {error}")
        if isinstance(error, CapacityError):  # what libraries do at the end fails too, with a traceback
            atexit.register(setattr, sys, "unraisablehook", lambda _: None)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        if debug:
            raise
        with answered_by(signal.SIGINT, signal.SIG_IGN):  # pressed once more
            _print("interrupted; nothing was left half-written")
        return 130
    except BrokenPipeError:  # whoever read our output has stopped, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BaseException as error:  # a panic of a library in Rust is no Exception
        if debug or isinstance(error, (SystemExit, GeneratorExit)):
            raise
        _print(f"error: {told(error)}")
        return 1


def _run(command: str, arguments: list[str]) -> int:
    """Read the arguments of a command, and only then import what does as they ask."""
    parse = importlib.import_module("inlay.options.parse")
    # some libraries swallow a KeyboardInterrupt while they are imported
    with answered_by(signal.SIGINT, signal.SIG_DFL):
        asked = parse.ask(command, _described(command), arguments)
        if asked is None:
            return 0
        module, screen = (importlib.import_module(name) for name in (f"{__name__}.{command}", "inlay.screen"))
    end = _interrupter()
    with answered_by(signal.SIGTERM, end), answered_by(_HANGUP, end), _short_warnings(), screen.printable_output():
        return _recorded(command, arguments, parse.made(_class(module, asked), asked).run)


def read(command: str, arguments: Sequence[str]) -> Any:
    """A command as the arguments ask for it, before it runs.

    **Raises:**

    - `UsageError`: they are not as the command takes them.
    """
    from inlay.options import parse

    asked = parse.ask(command, _described(command), arguments)
    module = importlib.import_module(f"{__name__}.{command}")
    return asked and parse.made(_class(module, asked), asked)


def _described(command: str) -> Any:
    """What is known of a command: by the file of this version, or else by its own code."""
    from inlay.options import flag

    if (found := flag.stored("commands", command)) is not None:
        return found
    from inlay.options import describe

    return describe.command(importlib.import_module(f"{__name__}.{command}"))


def _class(module: Any, asked: Any) -> Any:
    """The class of what a command is asked for."""
    if asked.verb:
        return module.VERBS[asked.verb]
    return module.command(asked.values) if hasattr(module, "command") else module.Command


def _recorded(command: str, arguments: Sequence[str], run: Callable[[], int]) -> int:
    """Run a command, and keep a record of what came of it where that is one whose runs are recorded."""
    if command not in RECORDED:
        return run()
    from inlay.runs import record, recording

    with recording.recording(command, arguments) as under_way:
        status = run()
        if under_way.outcome == record.RUNNING:
            under_way.outcome = {0: record.DONE, 130: record.STOPPED}.get(status, record.FAILED)
    return status


def told(error: BaseException) -> str:
    """An error in words. One that nobody foresaw is of a library that fails on what it was given, or a fault of ours."""
    from inlay.errors import InlayError, explain

    if isinstance(error, InlayError):
        return str(error)
    if isinstance(error, OSError):
        return explain("the system refused a file", found=str(error))
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    places = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    libraries = [path.parts[path.parts.index("site-packages") + 1] for path in places if "site-packages" in path.parts]
    libraries = [name for name in libraries if name != "jaxtyping"]  # it wraps our own functions in the tests
    reason += f", in {'/'.join(places[-1].parts[-3:])}" if places else ""
    if "transformers" in libraries:
        wrong = "this model's own code, in transformers, failed"
        return explain(wrong, found=reason, do="--debug shows where; another base, or other rows")
    if libraries:
        wrong = f"the library {Path(libraries[-1]).stem} failed on what it was given"
        return explain(wrong, found=reason, do="--debug shows where")
    return explain("Inlay failed: this is a fault of its own", found=reason, do="--debug shows where; please report it")


_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""What a process hears when its terminal is closed; some systems have none."""

_GRACE_SECONDS = 2.0
"""A system that ends a process may ask in several ways at once: what comes so soon after the first is the same request."""


WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
"""How threads wait for each other beside other programs: asleep. By default they spin, and where another program wants a core
they keep it from the thread that all wait for: a step took up to 16 times as long. On a quiet machine sleeping costs 6 to 22 %
of a step (benchmarks/busy.py), so that threads spin there."""

WAITING_OF_THE_USER = (*WAITING, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""The variables by which it can be said otherwise; whatever one of them says stays."""

LOADING = ("HF_DEACTIVATE_ASYNC_LOAD", "1")
"""Weights are loaded without threads: mapped, they are not read, and where memory is short Python waits for ever for a thread
that could not begin."""

BUSY_LOAD = 0.5
"""The load of the last minute from which on others are taken to compute: half a core."""

_LOAD = Path("/proc/loadavg")


def _let_threads_sleep() -> None:
    """Set how threads wait, before torch loads the library that reads it."""
    if "torch" not in sys.modules and not any(name in os.environ for name in WAITING_OF_THE_USER) and _others_compute():
        os.environ.update(WAITING)


def _others_compute() -> bool:
    """Other programs have computed in the last minute and, where the system tells, do so now."""
    try:
        if os.getloadavg()[0] < BUSY_LOAD:
            return False
    except (AttributeError, OSError):  # a system that has no load
        return False
    try:
        running = int(_LOAD.read_text(encoding="ascii").split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return True
    return running > 1  # more than this process: the minute's load was not a command before this one


def _interrupter() -> Callable[[int, object], None]:
    """What makes a request to end as good as Ctrl-C: it is answered in the same places."""
    requests: list[float] = []

    def interrupt(number: int, frame: object) -> None:
        requests.append(time.monotonic())
        if len(requests) == 1 or requests[-1] - requests[-2] >= _GRACE_SECONDS:
            raise KeyboardInterrupt

    return interrupt


@contextlib.contextmanager
def answered_by(number: signal.Signals | None, handler: Any) -> Iterator[None]:
    """Within the block a signal is answered by `handler`, unless the process was told to ignore it, as `nohup` does."""
    is_main = threading.current_thread() is threading.main_thread()
    if number is None or not is_main or signal.getsignal(number) in (signal.SIG_IGN, None):
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _print(text: str) -> None:
    """A line on stderr, where somebody still reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)


def _help() -> str:
    from inlay.options import help

    return help.overview({title: [(name, _summary(name)) for name in names] for title, names in _groups().items()})


def _completion(arguments: Sequence[str]) -> int:
    """Print what a shell completes command lines with; or, where no shell that is known is named, how it is asked for."""
    from inlay.options import completion

    made = completion.script(arguments[0], commands()) if len(arguments) == 1 else None
    asks_help = arguments[:1] in (["-h"], ["--help"])
    print(made or completion.ABOUT, file=None if made or asks_help else sys.stderr)
    return 0 if made or asks_help else 2


def _summary(command: str) -> str:
    """The first line of a command's file, read without importing it."""
    with (Path(__file__).parent / f"{command}.py").open(encoding="utf-8") as file:
        return file.readline().strip().strip('"').rstrip(".")


@contextlib.contextmanager
def _short_warnings() -> Iterator[None]:
    """Within the block a warning is a line like any other, without the place in our code that it comes from."""
    from inlay.errors import printable

    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *args, **kwargs: f"{'note':<9} {printable(str(message))}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _unknown(name: str) -> int:
    from inlay.errors import nearest

    near = nearest(name, commands())
    print(f"error: there is no command {name!r}\n  hint:  inlay {near or '--help'}", file=sys.stderr)
    return 2
