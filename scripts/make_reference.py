"""Write the reference pages from the code: the public names, the settings of each method, the flags of each command.

python scripts/make_reference.py            writes docs/reference/, which is not committed
"""

import dataclasses
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import griffe

import inlay
from inlay import cli, initializers, methods, quant
from inlay.options import flag, help

SOURCE = Path(__file__).parent.parent / "src"
OUTPUT = SOURCE.parent / "docs" / "reference"
PAGES = {
    "modules": ["inlay.tasks", "inlay.base.quantize", "inlay.export.requantize"],
    "contract": [
        "inlay.plugins",
        "inlay.methods.contract",
        "inlay.methods.hooks",
        "inlay.quant.contract",
        "inlay.tasks.contract",
        "inlay.initializers.contract",
        "inlay.formats.contract",
    ],
    "errors": ["inlay.errors"],
    "exchange-format": [
        "inlay.formats",
        "inlay.formats.peft",
        "inlay.formats.adapterhub",
        "inlay.formats.gguf",
        "inlay.formats.loralib",
        "inlay.formats.mlx",
        "inlay.engines",
        "inlay.export.engines",
        "inlay.io.fingerprint",
        "inlay.io.bitsandbytes",
    ],
    "routed": ["inlay.core.routed"],
}
INTROS = {
    "modules": (
        "Modules",
        "Functions below [the public names](python.md): tasks, and how a base is quantised. They may change with any version.",
    ),
    "contract": (
        "Contracts",
        "What a method, a scheme, a task, an initialiser or a format of your own has to have. "
        "[Extend Inlay](../guides/extend.md) has a whole example of each.",
    ),
    "errors": (
        "Errors",
        "What Python code can catch. [Something went wrong](../troubleshooting.md) says what to do about the commonest.",
    ),
    "exchange-format": (
        "Formats of adapters",
        "The modules that read and write the files of adapters. To take an adapter to another program: "
        "[Use it elsewhere](../guides/use-elsewhere.md).",
    ),
    "routed": (
        "Products for rows of several adapters",
        "The function that computes a batch whose rows have different adapters. "
        "[Every row names its adapter](../concepts/rows.md) says what for.",
    ),
    "initializers": (
        "Initializers",
        "Where LoRA's A and B start: `--initializer NAME`. [Which method](../guides/methods.md) says when it pays.",
    ),
    "scheme": (
        "Scheme {name}",
        "A base with smaller weights: `--quantize {name}`, or `inlay quantize --scheme {name}`. "
        "[4-bit base (QLoRA)](../guides/quantize.md) shows how.",
    ),
    "method": (
        "Method {name}",
        "`inlay train MODEL DATA --method {name}`, or `inlay.{cls}` from Python. "
        "[Which method](../guides/methods.md) compares all.",
    ),
}
"""What each page begins with: what it is for, and where to look instead."""


def main() -> None:
    """Write every page anew."""
    missing = undocumented()
    if missing:
        sys.exit(f"error: public names of inlay without a docstring: {', '.join(missing)}")
    OUTPUT.mkdir(exist_ok=True)
    for page, modules in pages().items():
        body = "\n\n".join(f"::: {module}" for module in modules)
        kind, _, name = (page, "", "") if page in INTROS else page.partition("-")
        title, intro = INTROS[kind]
        if kind != "method":
            (OUTPUT / f"{page}.md").write_text(f"# {title}\n\n{intro}\n\n{body}\n".format(name=name), "utf-8")
    package = griffe.load("inlay", search_paths=[SOURCE])
    for name, cls in methods.TABLE.known():
        (OUTPUT / f"method-{name}.md").write_text(method(package, name, cls), "utf-8")
    (OUTPUT / "python.md").write_text(python(), "utf-8")
    (OUTPUT / "commands.md").write_text(commands(), "utf-8")


def pages() -> dict[str, list[str]]:
    """page -> the modules that it documents, but for those of the package's own names and of the commands."""
    return {
        **PAGES,
        **{f"method-{name}": [cls.__module__] for name, cls in methods.TABLE.known()},
        "initializers": [cls.__module__ for _, cls in initializers.TABLE.known()],
        **{f"scheme-{name}": [type(scheme).__module__] for name, scheme in quant.TABLE.known()},
    }


def method(package: Any, name: str, cls: type) -> str:
    """The page of a method: what its file opens with, and every setting that it has, inherited ones too."""
    described = package[cls.__module__.removeprefix("inlay.")][cls.__name__].all_members
    title, intro = (text.format(name=name, cls=cls.__name__) for text in INTROS["method"])
    parts = [f"# {title}", *_row(intro, cls.__module__), "## Settings", "Each is a flag, and a field of the class."]
    flags = {own.name: own for own in flag.stored("methods", name).flags}
    for field in dataclasses.fields(cls):
        said = described[field.name]
        parts += [f"### `{field.name}` {{ #{field.name} }}"]
        parts += [
            f"`{help.name(flags[field.name])}`" if field.name in flags else f"`{said.annotation}`, from Python alone"
        ]
        parts += [f"{said.docstring.value} Default: {_default(field)}."]
    return "\n\n".join(parts) + "\n"


def _row(first: str, module: str) -> tuple[str, str]:
    return first, f"::: {module}\n    options:\n      members: false\n      show_root_heading: false"


def _default(field: Any) -> str:
    """What a setting is where nothing is said."""
    made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return "has to be given" if made is dataclasses.MISSING else f"`{made!r}`" if made not in ((), {}, None) else "none"


def undocumented() -> list[str]:
    """The public names that the reference would show without a word: mkdocstrings leaves them out in silence."""
    package = griffe.load("inlay", search_paths=[SOURCE])
    return [name for name in inlay.__all__ if not package[name].has_docstring]


def python() -> str:
    """The names of the package itself, each under the name that users write; methods and errors have pages of their own."""
    parts = ["# Python", "::: inlay\n    options:\n      members: false\n      show_root_heading: false"]
    own = {cls.__name__: name for name, cls in methods.TABLE.known()}
    names = [name for name in inlay.__all__ if name not in own and not name.endswith("Error")]
    listed = ", ".join(f"[`{cls}`](method-{name}.md)" for cls, name in sorted(own.items()))
    parts.append(f"Methods, each with a page of its settings: {listed}. What is raised: [Errors](errors.md).")
    names.sort(key=lambda name: (name[0].isupper(), name.lower()))  # what one calls first, then what that returns
    parts += [f"::: inlay.{name}\n    options:\n      inherited_members: true" for name in names]
    return "\n\n".join(parts) + "\n"


def commands() -> str:
    """What each command takes, with an anchor for every flag: commands.md#train--output."""
    parts = [
        "# Commands",
        "`inlay help COMMAND` shows the same in a terminal. Each method has [a page](method-lora.md).",
    ]
    for name in cli.commands():
        described = flag.stored("commands", name)
        parts += [f"## inlay {name}", *section(name, described)]
        for verb, own in described.verbs:
            parts += [f"### inlay {name} {verb}", *section(f"{name} {verb}", own)]
    return "\n\n".join(parts) + "\n"


def section(name: str, described: flag.Described) -> list[str]:
    """One command, or one of its verbs."""
    examples = [f"{typed}{why and '   # ' + why}" for typed, why in help.examples(name)]
    parts = [described.about, "\n".join(["```", help.usage(name, described), "", *examples, "```"])]
    for title, own in () if described.verbs else help.groups(described, None):
        parts += [f"**{title.capitalize()}**", flags(name.replace(" ", "-"), own)]
    return parts


def flags(of: str, found: Iterable[flag.Flag]) -> str:
    """A line for each flag."""
    return "\n".join(f'- <a id="{_anchor(of, own)}"></a>`{help.name(own)}` {_escaped(own)}' for own in found)


def _anchor(of: str, own: flag.Flag) -> str:
    return f"{of}-{own.name}" if own.is_positional else of + own.typed


def _escaped(own: flag.Flag) -> str:
    words, _, notes = help.said(own).rpartition(" [") if help.said(own).endswith("]") else (help.said(own), "", "")
    return re.sub(r"([*<>|])", r"\\\1", words) + (f" (`{notes[:-1]}`)" if notes else "")


if __name__ == "__main__":
    main()
