"""The counts of a configuration against what the files hold, before a model of that many layers and that width is made.

`transformers` makes whatever a config.json says: 100 million layers, a table of 10^12 rows, a head for 10^9 labels; gigabytes
are gone before one weight is looked at. But every layer has a tensor of its own, and every matrix of a model is
among its tensors:

    layers <= tensors + 64        size * width <= 4 * numbers in the files + 4 million, for every size

with some room for heads that are added and for numbers that are packed in bytes.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inlay.errors import FormatError, explain, few
from inlay.io.safetensors import TensorEntry

MAX_LAYERS = 2_000
"""No model has more layers, nor parts of another kind that are made one by one."""

MAX_LABELS = 100_000
"""No head tells more classes apart."""

_LAYERS = re.compile(r"(layers?|blocks|stages|depth|depths)$")
_SIZES = re.compile(r"(size|dim|width|rank|kernel|inner|embd|heads?|state|labels|experts|d_\w+)$")
_POSITIONS = re.compile(r"(positions|position_embeddings|n_ctx)$")
_WIDTHS = (
    "embedding_size",
    "word_embed_proj_dim",
    "hidden_size",
    "n_embd",
    "d_model",
    "dim",
    "embed_dim",
    "hidden_dim",
)
_MORE_LAYERS, _MORE_NUMBERS, _MORE_POSITIONS = 64, 2**22, 2**26
_NOT_NEGATIVE = ("vocab_size", "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size")
_LEAST = dict.fromkeys(_NOT_NEGATIVE, 0) | {"max_position_embeddings": 1}


def check(path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorEntry]) -> None:
    """Refuse a configuration, read from `path`, whose counts can't be those of its tensors; without any, those of no model.

    **Raises:**

    - `FormatError`: the message lists all of them.
    """
    numbers = sum(math.prod(entry.shape) for entry in tensors.values())
    problems: list[str] = []
    for level in _levels(config):
        counts = {key: count for key, value in level.items() if (count := _count(value)) is not None}
        counts |= {key: len(level[key]) for key in ("id2label",) if isinstance(level.get(key), Mapping)}
        width = next((counts[key] for key in _WIDTHS if counts.get(key, 0) > 0), 1)
        wrong = {key: _wrong(key, count, width, len(tensors), numbers) for key, count in counts.items()}
        problems += [f"{path}: {key}={counts[key]:,}: {what}" for key, what in wrong.items() if what]
    if problems:
        headline = "this configuration says what its model can't be"
        raise FormatError(explain(headline, found=few(problems), do="fetch it again"))


def _wrong(key: str, count: int, width: int, num_tensors: int, num_numbers: int) -> str:
    """What is wrong with a count, of files that hold so many tensors and numbers, or none; empty where nothing is."""
    if count < (least := _LEAST.get(key, -math.inf)):
        return f"below {least}"
    if _LAYERS.search(key) and num_tensors and count > min(MAX_LAYERS, num_tensors + _MORE_LAYERS):
        return f"the files hold {num_tensors:,} tensors"
    if count > (MAX_LAYERS if _LAYERS.search(key) else _most(key)):
        return "more than any model has"
    is_too_large = num_tensors and (room := _room(key)) and count * width > 4 * num_numbers + room
    return f"the files hold {num_numbers:,} numbers" if is_too_large else ""


def _most(key: str) -> float:
    """The largest count of this name, whatever the files hold."""
    if key in ("id2label", "num_labels"):
        return MAX_LABELS
    return 2**31 if _SIZES.search(key) or _POSITIONS.search(key) else math.inf


def _room(key: str) -> int:
    if _SIZES.search(key) or key == "id2label":
        return _MORE_NUMBERS
    return _MORE_POSITIONS if _POSITIONS.search(key) else 0


def _count(value: Any) -> int | None:
    """A value as a count, where it is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value)


def _levels(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those of its parts."""
    stack = [config]
    while stack:
        level = stack.pop()
        yield level
        stack += [value for value in level.values() if isinstance(value, Mapping)]
