"""Every exception that Inlay raises on purpose.

    InlayError
    |-- ConfigError(ValueError)          a setting is out of its range, or unknown
    |   `-- UsageError                   a command line that its command does not take
    |-- TargetError(ValueError)          module names that the model does not have
    |-- ShapeError(ValueError)           tensors that do not fit each other
    |-- FormatError(ValueError)          a file is broken, truncated, or not what it says it is
    |-- DataError(ValueError)            rows that cannot be trained on
    |-- CompatibilityError(ValueError)   an adapter and a base, or a file and this version, that do not go together
    |-- TrustError(ValueError)           an adapter that nobody who is trusted has signed
    |-- UnknownNameError(LookupError)    no model, adapter, method or file of that name
    |-- TransferError(OSError)           a registry or a hub that can't be reached, refuses, or breaks off
    |-- OutputError(OSError)             the result cannot be written where it was asked for
    |-- DivergedError(ArithmeticError)   a training whose loss is not finite any more
    |-- CapacityError(RuntimeError)      more memory or disk than there is
    |-- WorkerError(RuntimeError)        a process that was lost, of several that share a run
    `-- MissingExtraError(ImportError)   an optional part that is not installed

Each takes one string, made by `explain`, so that it pickles and prints the same everywhere; `wrong`, `found` and `hint` are its
parts.
"""

import contextlib
import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Sequence

_FOUND, _HINT = "  found: ", "  hint:  "
"""What the lines of a message begin with, but for the first."""


class InlayError(Exception):
    """The root of the family: catch it to catch everything that Inlay raises on purpose."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def wrong(self) -> str:
        """What is wrong, in one line."""
        return str(self).partition("\n")[0]

    @property
    def found(self) -> tuple[str, ...]:
        """The values that are, with where they stand; empty where the message names none."""
        return tuple(line.removeprefix(_FOUND) for line in str(self).splitlines() if line.startswith(_FOUND))

    @property
    def hint(self) -> str:
        """What to type or change; empty where there is nothing to say."""
        return next((line.removeprefix(_HINT) for line in str(self).splitlines() if line.startswith(_HINT)), "")


class ConfigError(InlayError, ValueError):
    """A setting is out of its range, or unknown."""


class UsageError(ConfigError):
    """A command line that its command does not take."""


class TargetError(InlayError, ValueError):
    """Module names that the model does not have."""


class ShapeError(InlayError, ValueError):
    """Tensors that do not fit each other."""


class FormatError(InlayError, ValueError):
    """A file is broken, truncated, or not what it says it is."""


class DataError(InlayError, ValueError):
    """Rows that cannot be trained on."""


class CompatibilityError(InlayError, ValueError):
    """An adapter and a base, or a file and this version, that do not go together."""


class TrustError(InlayError, ValueError):
    """An adapter that nobody who is trusted has signed."""


class UnknownNameError(InlayError, LookupError):
    """No model, adapter, method or file of that name."""


class TransferError(InlayError, OSError):
    """A registry or a hub that can't be reached, refuses, or breaks off."""


class OutputError(InlayError, OSError):
    """The result cannot be written where it was asked for."""


class DivergedError(InlayError, ArithmeticError):
    """A training whose loss is not finite any more."""


class CapacityError(InlayError, RuntimeError):
    """More memory or disk than there is."""


class WorkerError(InlayError, RuntimeError):
    """A process that was lost, of several that share a run."""


class MissingExtraError(InlayError, ImportError):
    """An optional part that is not installed."""


def explain(wrong: str, *, found: str | Iterable[str] = (), do: str = "") -> str:
    """The one shape of a message: what is wrong, what was found, what to type.

    **Arguments:**

    - `wrong`: what is wrong, as the reader met it; no capital, no full stop.
    - `found`: the values that are, with where they stand; several lines where there are several problems.
    - `do`: something that the reader can type or change.
    """
    lines = [wrong]
    lines += [f"{_FOUND}{line}" for line in ([found] if isinstance(found, str) else found)]
    if do:
        lines.append(f"{_HINT}{do}")
    return "\n".join(printable(line, in_one_line=True) for line in lines)


_NO_MEMORY = re.compile(
    r"(?i)out of memory|(can't|can ?not|unable to|failed to) allocate|not enough memory|failed to map segment|"
    r"can't start new thread|bad_alloc"
)
"""What libraries say where memory runs out: torch, the loader of shared libraries, Python's threads, C++."""


def _where_memory_ran_out(error: BaseException | None) -> BaseException | None:
    """The first of the errors behind `error` that says so. The words of those that speak of data, or are ours, mean nothing."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        says_so = not isinstance(error, (InlayError, ValueError, LookupError)) and _NO_MEMORY.search(str(error))
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or says_so:
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """Within the block, or the function that it decorates, memory that runs out is a `CapacityError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, CapacityError) or _where_memory_ran_out(error) is None:
            raise
        raise no_memory(error) from error


def no_memory(error: BaseException) -> CapacityError:
    """The error for memory that ran out."""
    error = _where_memory_ran_out(error) or error
    reason = " ".join(str(error).split())[:200]
    return CapacityError(
        explain(
            "there is not enough memory for this",
            found=f"{type(error).__name__}: {reason}" if reason else type(error).__name__,
            do="a smaller --batch-size or --max-length, --quantize nf4, or a machine with more",
        )
    )


_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROLS = {False: re.compile(f"[{_CONTROL}]"), True: re.compile(rf"[{_CONTROL}\n\u2028\u2029]")}
"""Control characters, marks that turn the direction of writing, halves of characters: all but tab, or tab and newline."""


def printable(text: str, *, in_one_line: bool = False) -> str:
    """`text` without characters that do something to a terminal: each is written as JSON escapes it, such as \\u001b.

    Names out of downloaded files, and what a model says, could clear the screen, set the title or forge lines with them.

    **Arguments:**

    - `in_one_line`: newlines too, where a name must not begin another line.
    """
    return _CONTROLS[in_one_line].sub(lambda found: rf"\u{ord(found[0]):04x}", text)


def few(problems: Sequence[str]) -> list[str]:
    """The first ten, and how many more there are."""
    more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
    return [*problems[:10], *more]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The member of `known` that `name` was most likely meant to be, or None where nothing is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)), None)
