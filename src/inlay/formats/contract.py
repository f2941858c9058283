"""What a format is: the files of an adapter as one value, `AdapterFile`, and back.

    files  -- read -->  AdapterFile  -- placed -->  the same on the layers of a model
    files  <-- write --  AdapterFile

No model is needed to read a file. One that names its tensors by a form of the model, such as its body without a head, is
brought to the layers of a model by `placed`; what a format must know of a model to do that, or to write, is `ModelFacts`.

A format is the one class that a file of this folder defines, and its name is that of the file. It reads strictly: a setting
that would change the meaning, a tensor without a layer or a value that is not finite refuses the file, with everything that
is wrong in one message. `inlay.json` lies beside the files of every format; `inlay.formats` reads and writes it.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from inlay.methods.contract import Method, Params
from inlay.names import Names
from inlay.plugins import Contract


class Layer(NamedTuple):
    """What a module of a model is, or a parameter that holds several maps."""

    kind: str = "other"
    """One of `inlay.methods.contract.KINDS`; other where no method adds anything, as to norms and blocks."""
    sizes: Mapping[str, int] = {}
    """The dimensions of its weight by name, in the order in which the module stores them: out and in, or in and out; at the end
    height and width of a convolution's; in front, under the name of the kind, how many maps a parameter holds."""


def linear_layers(params: Mapping[str, Params]) -> dict[str, Layer]:
    """The linear layers that the factors of LoRAs tell of, by path."""
    return {
        path: Layer("linear", {"out": len(pair["lora_B"]), "in": pair["lora_A"].shape[1]})
        for path, pair in params.items()
    }


class ModelFacts(NamedTuple):
    """What is known of the model that an adapter is of: everything from the model itself, some of it from a file."""

    name: str | None = None
    """A name or a path by which others find it."""
    task_type: str | None = None
    """The kind of task that it is made for, as PEFT calls it."""
    model_type: str | None = None
    """The kind of model, as its configuration calls it."""
    class_name: str = ""
    layers: Mapping[str, Layer] = {}
    """Every module, and every parameter that holds several maps, by path."""
    config: Mapping[str, Any] = {}
    """What its configuration says; empty where nothing is known of it but an adapter's file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """An adapter as a format has it."""

    method: Method
    params: dict[str, Params]
    """Module path -> tensor name -> tensor; '' is the path of the model itself."""
    model: ModelFacts
    shared: Params = dataclasses.field(default_factory=dict)
    """Frozen tensors that all modules share."""
    base_weights: Params = dataclasses.field(default_factory=dict)
    """Weights of the base that the file holds beside the adapter, by module path: PEFT adds those of adapted embeddings."""
    parameters: Names = ()
    """The parameters, of several maps each, that it changes, by name; their tensors are where the file has them."""
    name: str = "default"
    """What the adapter is called, where a format keeps that."""
    record: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The content of `inlay.json`; empty where there is none."""
    form: str = "peft"
    """The name of the format that it was read from."""
    needs_model: bool = False
    """Its tensors have the names, and perhaps the order of rows, of another program, until they are `placed` on a model."""

    @property
    def rank(self) -> int:
        """The largest rank of an update, by its tensors and by its settings; 0 where it has none."""
        ranks = [tensors["lora_A"].shape[0] for tensors in self.params.values() if "lora_A" in tensors]
        return max([*ranks, getattr(self.method, "r", 0) or 0, *getattr(self.method, "rank_pattern", {}).values()])


class Format(Contract, abstract=True):
    """One way of keeping an adapter in a directory."""

    files: ClassVar[tuple[str, ...]]
    """The names of the files that it reads, which are fetched from the hub, or patterns of names, which are not."""
    tensors: ClassVar[str]
    """The file that holds the tensors, or a pattern; empty where no adapter can be written in this format."""

    @abc.abstractmethod
    def detect(self, directory: Path) -> bool:
        """The files of this directory are of this format; they may be broken."""

    @abc.abstractmethod
    def read(self, directory: Path, *, outline: bool) -> AdapterFile:
        """The adapter in a directory that is of this format.

        **Arguments:**

        - `outline`: its tensors have shapes and dtypes alone (on the meta device), and none is read from the disk.

        **Raises:**

        - `FormatError`: it is broken, a pickle, or holds numbers that are not finite.
        - `CompatibilityError`: it uses something that Inlay does not do; every such thing is named.
        """

    @abc.abstractmethod
    def placed(self, file: AdapterFile, model: ModelFacts) -> AdapterFile:
        """An adapter that was read from this format, with its tensors at the paths and in the shapes of a model's layers.

        **Raises:**

        - `CompatibilityError`: the model is of another kind.
        """

    @abc.abstractmethod
    def problems(self, file: AdapterFile) -> Sequence[str]:
        """Why an adapter can't be written in this format, as it would be another one; empty where it can."""

    @abc.abstractmethod
    def write(self, directory: Path, file: AdapterFile) -> None:
        """Write an adapter without `problems` into `directory`, which exists."""

    @abc.abstractmethod
    def readers(self, directory: Path) -> Mapping[str, Sequence[str]]:
        """The programs beside Inlay that know this format -> what keeps each from loading the files of this directory."""
