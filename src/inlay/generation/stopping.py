"""Each row of a batch stops at the tokens that its own adapter was taught to end with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from inlay.io.json_files import read_json

SETTINGS = "generation_config.json"


class RowStops:
    """A stopping criterion of `transformers`: row i is done when its last token is one of `stops[i]`."""

    def __init__(self, stops: Sequence[Sequence[int]]):
        self._stops = [torch.tensor(row) for row in stops]
        self.eos_token_id = self._stops[0]
        """Its presence makes `transformers` fill up rows that are done."""

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Bool[Tensor, " rows"]:
        last = input_ids[:, -1].cpu()
        done = [bool((stops == token).any()) for stops, token in zip(self._stops, last, strict=True)]
        return torch.tensor(done, device=input_ids.device)


def stopping(stops: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The arguments of `generate` for rows that end with these tokens."""
    if all(row == stops[0] for row in stops):
        return {"eos_token_id": list(stops[0])}
    shared = [token for token in stops[0] if all(token in row for row in stops)]
    return {"eos_token_id": shared or None, "stopping_criteria": [RowStops(stops)]}


def write_settings(directory: Path, stops: Sequence[int]) -> None:
    """Let a checkpoint's generation settings end answers with these tokens, and those that they have already."""
    path = directory / SETTINGS
    settings = read_json(path) if path.is_file() else {}
    had = settings.get("eos_token_id")
    ids = list(dict.fromkeys([*(had if isinstance(had, list) else [had]), *stops]))
    ids = [token for token in ids if token is not None]
    settings["eos_token_id"] = ids if len(ids) > 1 else ids[0] if ids else None
    path.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
