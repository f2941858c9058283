"""The adapters that were loaded while a server ran, in a file, so that one that was killed has them again.

    {"support": {"directory": "adapters/support", "pinned": false}}

Written whole at each change, before the change is answered.
"""

import json
from pathlib import Path
from typing import TypedDict

from inlay import fields
from inlay.errors import FormatError, explain
from inlay.io import json_files, output


class Entry(TypedDict):
    """An adapter that is kept."""

    directory: str
    pinned: bool


class Registry:
    """A file of adapters; without one, nothing is kept.

    **Raises:**

    - `FormatError`: there is a file, and it holds something else.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self.entries: dict[str, Entry] = {}
        if path is not None and path.is_file():
            for name, value in json_files.read_json(path).items():
                if not isinstance(value, dict) or value.keys() != Entry.__annotations__.keys():
                    found = f"{path}: {fields.shown(name)}"
                    raise FormatError(explain("this file is no list of loaded adapters", found=found, do="remove it"))
                self.entries[name] = Entry(directory=str(value["directory"]), pinned=value["pinned"] is True)

    def put(self, name: str, directory: Path, pinned: bool) -> None:
        """Keep an adapter."""
        self.entries[name] = Entry(directory=str(directory), pinned=pinned)
        self._write()

    def remove(self, name: str) -> None:
        """Keep it no more."""
        if self.entries.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        if self._path is not None:
            output.write_file(self._path, f"{json.dumps(self.entries, indent=2)}\n".encode())
