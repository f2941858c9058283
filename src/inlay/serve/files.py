"""The files of an adapter: whether they are as they were, and the digest by which it is known.

    sha256sum adapter_config.json adapter_model.safetensors inlay.json | sha256sum

prints the digest of an adapter that has these files.
"""

import hashlib
from pathlib import Path
from typing import Any

from inlay import formats
from inlay.errors import UnknownNameError, explain
from inlay.hub.files import files_like
from inlay.io import records
from inlay.io.checkpoint import identity

CARD = "README.md"
"""The file that says nothing to a program."""

_CHUNK_BYTES = 1 << 20

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


def digest_of(directory: Path, files: Files) -> str:
    """The digest of an adapter, in hexadecimal."""
    total = hashlib.sha256()
    for name in files:
        digest = hashlib.sha256()
        with (directory / name).open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        total.update(f"{digest.hexdigest()}  {name}\n".encode())
    return total.hexdigest()
