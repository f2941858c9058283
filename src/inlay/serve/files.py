"""The files that an adapter is read from, whose digest it is known by, and whether they are as they were.

    sha256sum adapter_config.json adapter_model.safetensors inlay.json | sha256sum

prints the digest of an adapter that has these files.
"""

from pathlib import Path
from typing import Any

from inlay import formats
from inlay.errors import UnknownNameError, explain
from inlay.hub.files import files_like
from inlay.io import records
from inlay.io.checkpoint import identity

CARD = "README.md"
"""The file that says nothing to a program."""

Files = dict[str, tuple[Any, ...]]
"""The files that an adapter is read from, by name -> what the system says of them; see `inlay.io.checkpoint.identity`."""


def files_of(directory: Path) -> Files:
    """The files that an adapter is read from: those that its format has, but for the card, and its record.

    **Raises:**

    - `UnknownNameError`: they are gone, or can't be looked at.
    """
    if not directory.is_dir():
        raise UnknownNameError(explain("the directory of an adapter is gone", found=str(directory)))
    try:
        form = formats.find(formats.detect(directory))
        found = {file.name for pattern in (*form.files, records.RECORD) for file in files_like(directory, pattern)}
        return {name: identity(directory / name) for name in sorted(found - {CARD})}
    except OSError as error:
        raise UnknownNameError(
            explain("the files of an adapter are gone", found=f"{directory}: {error.strerror}")
        ) from None
