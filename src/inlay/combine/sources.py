"""Adapters as they are named on a command line: where they lie, what each is called, and what it counts."""

from collections.abc import Sequence
from pathlib import Path

from inlay import formats
from inlay.errors import ConfigError, explain
from inlay.fields import shown
from inlay.formats.contract import AdapterFile
from inlay.names import in_utf8


def opened(sources: Sequence[str]) -> dict[str, AdapterFile]:
    """The adapters in these directories, or of these names on the hub, each by the last part of where it lies: a file that is
    shared has no path of anybody's machine. A second one of a name has its number behind it.

    **Raises:**

    - `ConfigError`: none is named.
    - `UnknownNameError`, `FormatError`, `CompatibilityError`: as `inlay.formats.read` does.
    """
    if not sources:
        raise ConfigError(explain("no adapter is named", do="inlay combine ADAPTER ADAPTER --output DIR"))
    files: dict[str, AdapterFile] = {}
    for number, source in enumerate(sources, 1):
        name = in_utf8(Path(source).resolve().name)
        files[f"{name} ({number})" if name in files else name] = formats.read(source)
    return files


def weights(text: str | None, names: Sequence[str]) -> dict[str, float]:
    """'1,0.5' as what each adapter counts, in their order; 1 each where nothing is given.

    **Raises:**

    - `ConfigError`: it is no list of numbers, or of another length.
    """
    given = ["1"] * len(names) if text is None else text.split(",")
    try:
        numbers = [float(part) for part in given]
    except ValueError:
        found = f"--weights {shown(text)}"
        raise ConfigError(explain("these weights are no numbers", found=found, do="--weights 1,0.5")) from None
    if len(numbers) != len(names):
        found, do = f"{len(numbers)} for {len(names)}", f"--weights {','.join(['1'] * len(names))}"
        raise ConfigError(explain("each adapter needs one weight", found=found, do=do))
    return dict(zip(names, numbers, strict=True))
