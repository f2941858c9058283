"""Make an adapter of a fine-tuned model and its base."""

import dataclasses
from typing import Annotated

from inlay import formats, screen
from inlay.base.load import load
from inlay.cli.combine import Makes
from inlay.combine.contract import check_rank
from inlay.combine.extract import extract
from inlay.gguf.opening import open_base
from inlay.io import output
from inlay.layout import stored
from inlay.options.flags import Model
from inlay.options.types import Mark


@dataclasses.dataclass(frozen=True, kw_only=True)
class Extract(Makes):
    """The best factors of rank --r for each weight that differs; norms, biases and the like are kept whole."""

    model: Model
    """The base model: a folder, a GGUF file, or a name on the Hugging Face hub."""

    tuned: Annotated[str, Mark(is_positional=True, metavar="TUNED")]
    """What was made of it: a checkpoint with the same tensors."""

    r: int = 32
    """Rank of the result."""

    def run(self) -> int:
        """Read both tensor by tensor, write the adapter, say what is not in it."""
        check_rank(self.r)
        self.check_plot()
        base, tuned = load(self.model), open_base(self.tuned)
        names = stored.holders(base.layout, base.model.base_model_prefix, base.checkpoint.tensors)
        with output.new_directory(self.output) as partial, screen.bar("extracting") as update:
            found = extract(base.checkpoint, tuned, names, base.adapters.facts, self.r, update)
            found.file.record.update(base.about_base)
            formats.write(partial, found.file)
        whole = len(found.file.params.keys() - found.modules.keys())
        return self.told(found, f" on {len(found.modules)} layers, {whole} modules whole")


Command = Extract
