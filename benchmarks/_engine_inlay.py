"""Inlay as `benchmarks.engines` asks it."""

from pathlib import Path

import inlay
from inlay.generation.engine import Engine
from inlay.generation.sequence import Request


class Asked:
    """A base and its adapters in this process; NF4 is what `inlay quantize` wrote."""

    def __init__(self, directory: Path, form: str, adapters: list[Path], num_tokens: int):
        self.mixes = bool(adapters)
        self.base = inlay.load(
            directory.with_name(directory.name + "-nf4") if form == "nf4" else directory, dtype="bfloat16"
        )
        for adapter in adapters:
            self.base.attach(adapter)
        self.base.active = None
        self.engine = Engine(self.base.model, self.base.router, cache_tokens=2 * num_tokens)

    def answers(self, rows: list[list[int]], adapters: list[str | None], new: int) -> list[list[int]]:
        """So many new tokens to each row, each for its adapter, the likeliest ones."""
        asked = [
            self.engine.add(Request(tokens=tuple(row), adapter=name and self.base.adapters[name], max_new_tokens=new))
            for row, name in zip(rows, adapters, strict=True)
        ]
        assert len(list(self.engine.run(()))) == len(asked)
        return [one.answer for one in asked]
