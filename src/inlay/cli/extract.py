"""Make an adapter of a fine-tuned checkpoint and its base: what was learned, apart from the model."""

import dataclasses
from typing import Annotated

import tyro

from inlay import formats, screen
from inlay.base import meta_model
from inlay.base.load import load
from inlay.cli.combine import Makes
from inlay.combine.contract import check_rank
from inlay.combine.extract import extract
from inlay.gguf.opening import open_base
from inlay.io import output
from inlay.options.flags import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract(Makes):
    """The best factors of rank --r for each weight that differs; norms, biases and the like are kept whole."""

    model: Model
    """The base: a directory, or a name on the hub."""

    tuned: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TUNED")]
    """What was made of it: a checkpoint with the same tensors."""

    r: int = 32
    """Rank of the result."""

    def run(self) -> int:
        """Read both tensor by tensor, write the adapter, say what is not in it."""
        check_rank(self.r)
        base, tuned = load(self.model), open_base(self.tuned)
        known, prefix, names = base.checkpoint.tensors, base.model.base_model_prefix, dict[str, list[tuple[str, str]]]()
        for path, module in base.layout.modules.items():
            for key, _ in module.named_parameters(recurse=False):
                if name := meta_model.checkpoint_path(f"{path}.{key}", prefix, known):
                    names.setdefault(name, [(path, key)])
        for path, others in base.layout.tied.items():  # all hold the one tensor, but for those with one of their own
            own = {place: meta_model.checkpoint_path(f"{place}.weight", prefix, known) for place in (path, *others)}
            names[next(filter(None, own.values()))] += [(place, "weight") for place, name in own.items() if not name]
        with output.new_directory(self.output) as partial, screen.bar("extracting") as update:
            found = extract(base.checkpoint, tuned, names, base.adapters.facts, self.r, update)
            found.file.record.update(base.about_base)
            formats.write(partial, found.file)
        whole = len(found.file.params.keys() - found.modules.keys())
        return self.told(found, f" on {len(found.modules)} layers, {whole} modules whole")


Command = Extract
