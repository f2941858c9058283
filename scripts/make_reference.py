"""Write the reference pages from the code: the public names, one page per module that users meet, the help of every command.

python scripts/make_reference.py            writes docs/reference/, which is not committed
"""

import importlib
import io
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import griffe

import inlay
from inlay import cli, initializers, methods, quant

SOURCE = Path(__file__).parent.parent / "src"
OUTPUT = SOURCE.parent / "docs" / "reference"
PAGES = {
    "modules": [
        "inlay.base.base",
        "inlay.base.load",
        "inlay.tasks",
        "inlay.base.attach",
        "inlay.model.adapter_set",
        "inlay.export.merge",
        "inlay.base.quantize",
        "inlay.export.requantize",
        "inlay.training.job",
        "inlay.training.settings",
    ],
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


def main() -> None:
    """Write every page anew."""
    missing = undocumented()
    if missing:
        sys.exit(f"error: public names of inlay without a docstring: {', '.join(missing)}")
    OUTPUT.mkdir(exist_ok=True)
    for page, modules in pages().items():
        body = "\n\n".join(f"::: {module}" for module in modules)
        (OUTPUT / f"{page}.md").write_text(f"# {page.replace('-', ' ').capitalize()}\n\n{body}\n", "utf-8")
    (OUTPUT / "python.md").write_text(python(), "utf-8")
    (OUTPUT / "commands.md").write_text("# Commands\n\n" + "\n".join(map(command, cli.commands())), "utf-8")


def pages() -> dict[str, list[str]]:
    """page -> the modules that it documents, but for those of the package's own names and of the commands."""
    return {
        **PAGES,
        **{f"method-{name}": [cls.__module__] for name, cls in methods.TABLE.known()},
        "initializers": [cls.__module__ for _, cls in initializers.TABLE.known()],
        **{f"scheme-{name}": [type(scheme).__module__] for name, scheme in quant.TABLE.known()},
    }


def undocumented() -> list[str]:
    """The public names that the reference would show without a word: mkdocstrings leaves them out in silence."""
    package = griffe.load("inlay", search_paths=[SOURCE])
    return [name for name in inlay.__all__ if not package[name].has_docstring]


def python() -> str:
    """The names of the package itself, each under the name that users write."""
    parts = ["# Python", "::: inlay\n    options:\n      members: false\n      show_root_heading: false"]
    names = sorted(inlay.__all__, key=lambda name: name.strip("_").lower())
    parts += [f"::: inlay.{name}\n    options:\n      inherited_members: true" for name in names]
    return "\n\n".join(parts) + "\n"


def command(name: str) -> str:
    """The help of one command as a section, and of each of its verbs."""
    text = io.StringIO()
    for verb in ([], *([verb] for verb in getattr(importlib.import_module(f"inlay.cli.{name}"), "VERBS", ()))):
        with redirect_stdout(text), redirect_stderr(text), suppress(SystemExit):
            cli.run(name, [*verb, "--help"])
    return f"## inlay {name}\n\n```\n{text.getvalue().rstrip()}\n```\n"


if __name__ == "__main__":
    main()
