"""What the library of LoRA's authors saves, `lora_state_dict`: tensors alone, from which no adapter can be made.

    model.layers.0.q_proj.lora_A    (r, in)
    model.layers.0.q_proj.lora_B    (out, r)

Neither lora_alpha nor what its `MergedLinear` put together is in such a file, so that it is named and refused.
"""

from pathlib import Path

from inlay.errors import FormatError, explain
from inlay.formats.contract import AdapterFile, Format, ModelFacts
from inlay.io import safetensors

ENDS = (".lora_A", ".lora_B")
"""What its names end with; those of PEFT go on with .weight."""

MAX_BYTES = 64_000_000
"""As much of a pickle is searched for its names, unread: they stand at its beginning."""


class Loralib(Format):
    """The files of loralib, beside which there is no configuration."""

    files, tensors = (), ""

    def detect(self, directory: Path) -> bool:
        return not (directory / "adapter_config.json").exists() and _file(directory) is not None

    def read(self, directory: Path, *, outline: bool) -> AdapterFile:
        raise FormatError(
            explain(
                "these are tensors of loralib, and nothing says what lora_alpha and modules they belong to",
                found=f"{_file(directory)}, and no adapter_config.json",
                do="name them base_model.model.MODULE.lora_A.weight in adapter_model.safetensors, and write "
                "adapter_config.json with peft_type LORA, r, lora_alpha and target_modules",
            )
        )

    def placed(self, file: AdapterFile, model: ModelFacts) -> AdapterFile:
        return file

    def problems(self, file: AdapterFile) -> list[str]:
        return ["it has no place for lora_alpha and the names of the modules"]

    def write(self, directory: Path, file: AdapterFile) -> None:
        """Never called: no adapter is without problems."""

    def readers(self, directory: Path) -> dict[str, list[str]]:
        return {}


def _file(directory: Path) -> Path | None:
    """The first file of these tensors."""
    return next((file for file in sorted(directory.glob("*")) if _has_its_names(file)), None)


def _has_its_names(file: Path) -> bool:
    if not file.is_file():
        return False
    if file.suffix == ".safetensors":
        return any(name.endswith(ENDS) for name in safetensors.read_header(file).tensors)
    if file.suffix not in (".pt", ".bin", ".pth", ".ckpt"):
        return False
    with file.open("rb") as opened:
        return b".lora_A" in opened.read(MAX_BYTES)  # never unpickled
