"""Help as text, for a terminal of any width, from what is known of a command: nothing is imported that computes."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from inlay.options import usage as usages
from inlay.options.flag import Described, Flag

WIDEST, NAMES_WIDTH = 100, 25
"""No line is longer than this, or than the terminal; what is said of a flag begins in this column."""

FEW_FLAGS = 14
"""A command with no more than these shows them in one group."""

COMMON = (
    "output", "prompt", "adapter", "adapters", "task", "method", "methods", "r", "lora_alpha", "lora_dropout", "target_modules",
    "num_virtual_tokens", "epochs", "max_steps", "batch_size", "learning_rate", "max_length", "eval_data", "scores", "quantize",
    "device", "memory", "time", "host", "port", "api_keys", "system", "max_new_tokens", "temperature", "show_tokens", "resume",
    "config",
)  # fmt: skip
"""What most people need of a command with many flags, or of a method, in the order of the help; what has to be given is common
too."""

MORE = (
    ("inlay demo", "begin here: offline, in less than a minute"),
    ("inlay help COMMAND", "what a command takes, with examples"),
    ("inlay completion", "let bash or zsh complete what is typed"),
    ("inlay version", "the version"),
)
"""What else can be typed."""

EXAMPLES = Path(__file__).with_name("examples.txt")
"""Two examples for each command: its name in a line of its own, and under it, indented, what is typed, and behind # why."""


def text(command: str, described: Described, method: tuple[str, Described] | None = None) -> str:
    """The help of a command, or of one of its verbs, such as `store add`.

    - `method`: the name of the method whose flags it has too, and what is known of that.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    called = textwrap.wrap(
        f"usage: {usage(command, described)}", width, subsequent_indent=" " * 7, break_on_hyphens=False
    )
    parts = ["\n".join(called), *_paragraphs(described.about, width)]
    if described.verbs:
        lines = _columns(((f"inlay {command} {verb}", own.about) for verb, own in described.verbs), width)
        parts += ["\n".join(lines), f"inlay help {command} VERB, or inlay {command} VERB --help, says what each takes."]
    for title, flags in () if described.verbs else groups(described, method):
        parts.append("\n".join([title, *_columns(((name(own), said(own)) for own in flags), width)]))
    if shown := examples(command):
        parts.append("\n".join(["examples", *(line for example in shown for line in _example(*example, width))]))
    return "\n\n".join(parts)


def overview(commands: Mapping[str, Sequence[tuple[str, str]]]) -> str:
    """What there is: the commands, each with a line, under titles."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    parts = ["Inlay fine-tunes, merges and swaps LoRA adapters on the machine you have.", "usage: inlay COMMAND ..."]
    for title, rows in commands.items():
        parts.append("\n".join([title, *_columns(rows, width, 13)]))
    parts.append("\n".join(_columns(MORE, width, NAMES_WIDTH)))
    return "\n\n".join(parts)


def usage(command: str, described: Described) -> str:
    """A command with what has to be given."""
    if described.verbs:
        return f"inlay {command} {'[VERB]' if described.verb else 'VERB'} ..."
    parts = [own.metavar if own.is_required else f"[{own.metavar}]" for own in described.flags if own.is_positional]
    needed = [own for own in described.flags if own.is_required and not own.is_positional]
    parts += [f"{own.typed} {own.metavar}" for own in needed]
    return " ".join(["inlay", command, *parts, "[flags]"])


def examples(command: str) -> list[tuple[str, str]]:
    """What may be typed, and why, where that is not plain."""
    lines = EXAMPLES.read_text("utf-8").splitlines()
    if command not in lines:
        return []
    left = lines[lines.index(command) + 1 :]
    number = next((i for i, line in enumerate(left) if not line.startswith(" ")), len(left))
    parts = [line.partition("  #") for line in left[:number]]
    return [(typed.strip(), why.strip()) for typed, _, why in parts]


def _example(typed: str, why: str, width: int) -> Iterator[str]:
    yield f"  {typed}"
    if why:
        yield from textwrap.wrap(why, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def groups(described: Described, method: tuple[str, Described] | None) -> Iterator[tuple[str, Sequence[Flag]]]:
    """The flags of a command under titles, each in the order of the help: what has to be given comes first."""
    arguments = [own for own in described.flags if own.is_positional]
    flags = sorted((own for own in described.flags if not own.is_positional), key=_order)
    if arguments:
        yield "arguments", arguments
    if len(flags) <= FEW_FLAGS and method is None:
        yield "flags", flags
        return
    yield "common flags", [own for own in flags if _is_common(own)]
    if method is not None:
        called, known = method
        yield f"flags of the method {called}: {known.about}", sorted(known.flags, key=_order)
    yield "advanced flags", [own for own in flags if not _is_common(own)]


def _is_common(own: Flag) -> bool:
    return own.is_required or own.name in COMMON


def _order(own: Flag) -> tuple[bool, int]:
    """What has to be given, then what is common in its order, then the rest, then what every command has."""
    place = COMMON.index(own.name) if own.name in COMMON else len(COMMON)
    return not own.is_required, place + (own.name in usages.EVERYWHERE)


def name(own: Flag) -> str:
    """What is typed for a flag, and what stands behind it."""
    short = f"{own.short}, " if own.short else ""
    return f"{short}{own.typed} {'' if own.is_positional else own.takes(usages.brought(own.plugins))}".rstrip()


def said(own: Flag) -> str:
    """What help says of a flag."""
    notes = [f"default: {own.default}"] if own.default else []
    notes += ["required"] if own.is_required and not own.is_positional else []
    notes += ["may be given several times"] if own.repeats and "several times" not in own.help else []
    return own.help + (f" [{'; '.join(notes)}]" if notes else "")


def _columns(rows: Iterable[tuple[str, str]], width: int, column: int = NAMES_WIDTH) -> Iterator[str]:
    """Names, and beside each what is said of it."""
    for called, words in rows:
        names = _wrapped(f"  {called}", width, 6)
        lines = textwrap.wrap(words, max(width - column, 20), break_on_hyphens=False)
        if len(names) == 1 and len(names[0]) < column - 1:
            names = [f"{names[0]:<{column}}{''.join(lines[:1])}".rstrip()]
            del lines[:1]
        yield from names
        yield from (" " * column + line for line in lines)


def _wrapped(line: str, width: int, indent: int) -> list[str]:
    """A name with its choices, broken behind commas where it is too long."""
    if len(line) <= width:
        return [line]
    broken = textwrap.wrap(line.replace(",", ", "), width, subsequent_indent=" " * indent, break_on_hyphens=False)
    return [part.replace(", ", ",") for part in broken]


def _paragraphs(about: str, width: int) -> Iterator[str]:
    for paragraph in about.split("\n\n"):
        yield textwrap.fill(" ".join(paragraph.split()), width, break_on_hyphens=False)
