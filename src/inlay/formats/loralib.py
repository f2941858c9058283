"""What the library of LoRA's authors saves, `lora_state_dict`: tensors alone, from which no adapter can be made.

    model.layers.0.q_proj.lora_A    (r, in)
    model.layers.0.q_proj.lora_B    (out, r)

Neither lora_alpha nor what its `MergedLinear` put together is in such a file, so that it is named and refused.
"""

from collections.abc import Iterable
from pathlib import Path

from inlay.errors import FormatError, explain
from inlay.io import safetensors

ENDS = (".lora_A", ".lora_B")
"""What its names end with; those of PEFT go on with .weight."""

HINT = (
    "name them base_model.model.MODULE.lora_A.weight in adapter_model.safetensors, and write adapter_config.json "
    "with peft_type LORA, r, lora_alpha and target_modules"
)

MAX_BYTES = 64_000_000
"""As much of a pickle is searched for its names, unread: they stand at its beginning."""


def is_named_so(names: Iterable[str]) -> bool:
    """Some tensors are called as loralib calls them."""
    return any(name.endswith(ENDS) for name in names)


def no_adapter(directory: Path, config: str) -> FormatError:
    """The error for a directory without the configuration of an adapter: its tensors are named where they are loralib's."""
    found = next((file for file in sorted(directory.glob("*")) if _is_file_of(file)), None)
    if found is not None:
        return FormatError(
            explain(
                "these are tensors of loralib, and nothing says what lora_alpha and modules they belong to",
                found=f"{found}, and no {config}",
                do=HINT,
            )
        )
    return FormatError(
        explain(
            f"this directory is not an adapter: it has no {config}",
            found=str(directory),
            do="an adapter directory is what `inlay train` or peft's save_pretrained wrote",
        )
    )


def _is_file_of(file: Path) -> bool:
    if not file.is_file():
        return False
    if file.suffix == ".safetensors":
        return is_named_so(safetensors.read_header(file).tensors)
    if file.suffix not in (".pt", ".bin", ".pth", ".ckpt"):
        return False
    with file.open("rb") as opened:
        return b".lora_A" in opened.read(MAX_BYTES)  # never unpickled
