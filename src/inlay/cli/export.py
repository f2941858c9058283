"""Write an adapter in the form of another library."""

import dataclasses
from pathlib import Path
from typing import Annotated

from inlay import formats, screen
from inlay.base import meta_model
from inlay.formats.contract import ModelFacts
from inlay.gguf.opening import open_outline
from inlay.io import output
from inlay.layout.fitting import layers
from inlay.layout.layout import Layout
from inlay.options.flags import AdapterDirectory, Common, Model
from inlay.options.types import one_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Common):
    """The base's configuration is enough; Inlay reads what it writes."""

    model: Model
    """The base: a directory, or a name on the hub."""

    adapter: AdapterDirectory
    """The adapter: a directory, name@version in the store, or a name on the hub."""

    output: Path
    """The directory for the adapter; it must not exist."""

    format: Annotated[str, one_of(formats.written())]
    """In whose form: adapterhub is that of AdapterHub's `adapters`, peft that of PEFT and the rest."""

    def run(self) -> int:
        """Read it, put it on the base's layers, write it."""
        file, base = formats.read(self.adapter), open_outline(self.model)
        model = meta_model.meta(base, meta_model.own_class(base))
        model_type, class_name = base.config.get("model_type"), type(model).__name__
        facts = ModelFacts(base.reference, file.model.task_type, model_type, class_name, layers(Layout(model)))
        file = formats.placed(file, facts)
        file = dataclasses.replace(file, model=facts, name=self.output.resolve().name)
        with output.new_directory(self.output) as partial:
            formats.write(partial, file, self.format)
        screen.say("wrote", f"{self.output}/  in the form of {self.format}")
        if self.json:
            screen.emit({"output": str(self.output), "format": self.format})
        return 0


Command = Export
