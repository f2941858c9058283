"""Write the reference pages from the code: one per module that users meet, and the help of every command.

python scripts/make_reference.py            writes docs/reference/, which is not committed
"""

import importlib
import io
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

from inlay import cli, methods

OUTPUT = Path(__file__).parent.parent / "docs" / "reference"
PAGES = {
    "python": [
        "inlay.model.base",
        "inlay.model.attach",
        "inlay.model.merge",
        "inlay.training.job",
        "inlay.training.settings",
    ],
    "contract": ["inlay.methods._contract"],
    "errors": ["inlay.errors"],
    "exchange-format": ["inlay.io.peft", "inlay.io.fingerprint"],
    "routed": ["inlay.core.routed"],
}


def main() -> None:
    """Write every page anew."""
    OUTPUT.mkdir(exist_ok=True)
    pages = PAGES | {f"method-{name}": [f"inlay.methods.{name}"] for name in methods.names()}
    for page, modules in pages.items():
        body = "\n\n".join(f"::: {module}" for module in modules)
        (OUTPUT / f"{page}.md").write_text(f"# {page.replace('-', ' ').capitalize()}\n\n{body}\n", "utf-8")
    (OUTPUT / "commands.md").write_text("# Commands\n\n" + "\n".join(map(command, cli.commands())), "utf-8")


def command(name: str) -> str:
    """The help of one command as a section."""
    text = io.StringIO()
    with redirect_stdout(text), redirect_stderr(text), suppress(SystemExit):
        importlib.import_module("inlay.cli._command").run(name, ["--help"])
    return f"## inlay {name}\n\n```\n{text.getvalue().rstrip()}\n```\n"


if __name__ == "__main__":
    main()
