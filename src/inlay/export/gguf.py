"""Base and adapter as one GGUF file, by way of the merged checkpoint, which is compared with base and adapter as always."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from inlay import extras
from inlay.base.base import Base
from inlay.export.agreement import SAMPLE, Comparison
from inlay.export.merge import merge
from inlay.formats.peft import CARD
from inlay.gguf import writing
from inlay.io import output as output_directory
from inlay.io import records
from inlay.io.checkpoint import open_checkpoint

NAME = "model.gguf"
"""The file in the directory that is written."""


def merge_gguf(
    base: Base,
    adapter: str,
    output: str | Path,
    kind: str,
    *,
    texts: Sequence[str] = SAMPLE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Write `NAME` into a new directory, with the record of what was merged.

    The merged checkpoint lies in it meanwhile, so that it needs room for both.

    **Arguments:**

    - `kind`: what matrices are written in, one of `inlay.gguf.writing.KINDS`.

    **Raises:**

    - `OutputError`: the directory exists, or the disk is full; nothing is left half-written.
    - `CompatibilityError`: as `inlay.export.merge.merge`; or such a file can't say what the model does.
    """
    extras.need("gguf", "a GGUF file")
    writing.described(base.checkpoint)  # refused before anything is computed
    target = output_directory.place(output)
    output_directory.check_free(target)
    with output_directory.new_directory(target) as partial:
        whole = partial / "merged"
        found = merge(base, adapter, whole, texts=texts, progress=progress)
        merged = open_checkpoint(whole)
        writing.write(merged, partial / NAME, kind, writing.described(merged) | {"general.name": target.name})
        for name in (CARD, records.RECORD):
            shutil.move(whole / name, partial / name)
        shutil.rmtree(whole)
    return found
