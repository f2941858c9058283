"""Tokenizers that explode: thirty steps of a downloaded tokenizer that each double a text make a gigabyte of one letter.

Each step of the normaliser, of the pre-tokenizer and of the decoder is known with the most that it makes of a character; the
product over a part is its growth, which no honest one has beyond a few.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from inlay.errors import FormatError, explain

PARTS = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
"""The parts of a tokenizer that are looked at."""

MAX_GROWTH = 256
"""As many characters may one become."""

MAX_SPECIAL = 1000
"""As many special tokens may be put around a row."""


def check(tokenizer: Any, where: str) -> None:
    """Refuse a tokenizer whose steps make more of a text than anyone means.

    **Raises:**

    - `FormatError`: it names the part, and the file `where`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = {name: getattr(backend, name, None) for name in PARTS}
    said = {name: json.loads(part.__getstate__()) for name, part in parts.items() if part is not None}
    for name, part in said.items():
        growth = math.prod(map(_growth, _steps(part)))
        pieces = [len(step.get(form) or ()) for step in _steps(part) for form in ("single", "pair")]
        if growth > MAX_GROWTH or sum(pieces) > MAX_SPECIAL:
            one, around = f"{growth:.3g} characters for one", f"{sum(pieces):,} tokens around a row"
            found = one if growth > MAX_GROWTH else around
            wrong = f"the {name} of this tokenizer makes a text many times as long"
            raise FormatError(explain(wrong, found=f"{where}: {found}", do="fetch it again, or another base"))


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a part, those of sequences one by one."""
    stack = [part]
    while stack:
        step = stack.pop()
        if isinstance(step, list):
            stack += step
        elif isinstance(step, dict):
            yield step
            stack += [step[key] for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in step]


def _growth(step: dict[str, Any]) -> float:
    """The most characters that a step makes of one."""
    kind = step.get("type")
    if kind == "Replace":
        pattern = step.get("pattern") or {}
        length = len(pattern.get("String") or "")  # an expression may match nothing, between characters
        made = len(step.get("content") or "")
        return max(1.0, made / length) if length else made + 1.0
    return {"ByteLevel": 2.0, "Precompiled": 4.0}.get(str(kind), 1.0)
