"""Write an adapter of another method as a plain LoRA."""

import dataclasses
from pathlib import Path

import torch

from inlay import formats, screen
from inlay.base.load import load
from inlay.cli.combine import Makes
from inlay.combine.contract import check_rank
from inlay.combine.convert import convert
from inlay.formats.contract import AdapterFile
from inlay.io import output
from inlay.options.flags import AdapterDirectory, Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert(Makes):
    """The method is any that changes linear layers, and what the form of LoRA costs is said. The base is needed: what DoRA, OFT
    or (IA)^3 do to a layer depends on its weight."""

    model: Model
    """The base model: a folder, a GGUF file, or a name on the Hugging Face hub."""

    adapter: AdapterDirectory
    """The adapter: a directory, name@version in the store, or a name on the hub."""

    r: int | None = None
    """Rank of the result; without it, that of a change which is a product of factors, and 16 for another one."""

    def run(self) -> int:
        """Read it, convert it, write it, say how far it is from what it was."""
        check_rank(self.r)
        self.check_plot()
        base = load(self.model, dtype="float32")
        adapter = base.read(self.adapter, Path(self.adapter).resolve().name)
        params = {path: dict(tensors) for path, tensors in adapter.params.items()}
        several = tuple(path for path in params if path in base.maps and base.maps[path].count is not None)
        file = AdapterFile(method=adapter.method, params=params, model=base.adapters.facts, parameters=several)
        file = dataclasses.replace(file, shared=adapter.shared, record=adapter.record)
        maps = {path: linear.one for path, linear in base.maps.items()}
        with torch.no_grad(), output.new_directory(self.output) as partial, screen.bar("converting") as update:
            found = convert(adapter.name, file, maps, self.r, update)
            formats.write(partial, found.file)
        return self.told(found, f", {found.file.record['combined']['how']}")


Command = Convert
