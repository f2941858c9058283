"""The configuration of a base as `transformers` reads it, without what a file must not decide.

A config.json may name the attention that its author used: one that this machine does not have (flash attention), or code of the
hub that would be fetched and run. Which attention computes is a matter of the machine, so that it is chosen anew here.
"""

from pathlib import Path
from typing import Any


def read(directory: Path) -> Any:
    """The configuration in `directory`, an object of `transformers`; whatever its classes raise on strange values."""
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    config._attn_implementation = None  # the setters go through the parts of composed models too
    config._experts_implementation = None
    return config
