"""Write an adapter for vLLM, llama.cpp, Ollama, MLX and others."""

import dataclasses
from pathlib import Path
from typing import Annotated

from inlay import formats, screen
from inlay.base import meta_model, origin
from inlay.base.load import read_tokenizer
from inlay.engines import LANGUAGE_MODEL, OLLAMA
from inlay.errors import CompatibilityError, explain, few
from inlay.export import engines, ollama
from inlay.formats import gguf
from inlay.formats.contract import AdapterFile, ModelFacts
from inlay.gguf.opening import open_outline
from inlay.io import output
from inlay.io.checkpoint import Checkpoint
from inlay.layout.fitting import layers
from inlay.layout.layout import Layout
from inlay.options.flags import AdapterDirectory, Common, Model
from inlay.options.types import one_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export(Common):
    """The base's configuration is enough. What the engine can't do is refused; Inlay reads what is written."""

    model: Model
    """The base model: a folder, a GGUF file, or a name on the Hugging Face hub."""

    adapter: AdapterDirectory
    """The adapter: a directory, name@version in the store, or a name on the hub."""

    output: Path
    """The directory for the adapter; it must not exist."""

    engine: Annotated[str, one_of(engines.names(), name="for", plugins=formats.TABLE.group)]
    """Who reads it: an engine, or the name of a format."""

    def run(self) -> int:
        """Read it, put it on the base's layers, write it."""
        base = open_outline(self.model)
        file = dataclasses.replace(placed(self.adapter, base), name=self.output.resolve().name)
        if origin.began_with_residual(file.record):
            says = "it began with what its base lost as it was quantised: beside the plain weights it is wrong"
            screen.say("note", says)
        with output.new_directory(self.output) as partial:
            written = engines.write(partial, file, self.engine)
            if self.engine == OLLAMA:
                text = ollama.modelfile(base, read_tokenizer(base), gguf.NAME)
                (partial / ollama.MODELFILE).write_text(text, "utf-8")
        changed = "" if written is file else f", a plain LoRA {written.method.describe()}"
        screen.say("wrote", f"{self.output}/  for {self.engine}{changed}")
        if self.json:
            screen.emit({"output": str(self.output), "for": self.engine})
        return 0


def placed(adapter: str, base: Checkpoint) -> AdapterFile:
    """An adapter on the layers of a base of which the configuration is at hand.

    **Raises:**

    - `CompatibilityError`: it has tensors for layers that the base does not have, or has in other shapes.
    """
    file, model = formats.read(adapter), meta_model.meta(base, meta_model.own_class(base))
    layout, model_type = Layout(model), base.config.get("model_type")
    facts = ModelFacts(
        base.reference, file.model.task_type, model_type, type(model).__name__, layers(layout), base.config
    )
    file = formats.placed(file, facts)
    problems = layout.problems(file.method, file.params)
    if problems and file.model.task_type in (None, LANGUAGE_MODEL):  # the head of another task is not the base's
        do = "the base it was trained on: inlay inspect names it"
        raise CompatibilityError(explain(f"this adapter does not fit {base.name}", found=few(problems), do=do))
    return dataclasses.replace(file, model=facts)


Command = Export
