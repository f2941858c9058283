"""Make one adapter of several: sums, the best of a rank, and less of an adapter or its opposite."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from inlay import formats, screen
from inlay.cli.inspect import modules
from inlay.combine import sources, ways
from inlay.combine.combine import Combined, combine
from inlay.io import output
from inlay.options.flags import Common
from inlay.options.types import one_of
from inlay.screen import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Makes(Common):
    """What the commands have in common that make an adapter of something else."""

    output: Path
    """The directory for the adapter; it must not exist."""

    def told(self, found: Combined, about: str) -> int:
        """Say what was made and what it kept: the exit status."""
        say("adapter", f"lora {found.file.method.describe()}{about}")
        say("kept", found.describe())
        say("wrote", f"{self.output}/")
        if self.json:
            screen.emit({"output": str(self.output), **found.as_json()})
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combine(Makes):
    """No model is needed. The result is a plain LoRA."""

    adapters: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="ADAPTER ...", help_behavior_hint="(at least one)"),
    ]
    """Adapter directories, name@version in the store, or names on the hub; of one, its multiple, or itself at a lower rank."""

    how: Annotated[str, one_of(ways.WAYS)] = "cat"
    """cat: the weighted sum, exact, with the sum of the ranks. svd: the best of rank --r. ties: the mean of what they agree
    on. dare: the sum of entries drawn at random. linear: the sum of the factors. slerp: between two, on the great circle."""

    weights: Annotated[str | None, tyro.conf.arg(metavar="NUMBERS")] = None
    """What each adapter counts, with commas between; 1 each unless given. One below 0 takes its change away: --weights=-1."""

    r: int | None = None
    """Rank of the result, where --how has one to choose; without it, the largest of those that are combined."""

    density: float | None = None
    """Of ties: the part of each change's entries that is kept, the largest; 0.5 unless given."""

    drop: float | None = None
    """Of dare: the part of each change's entries that is dropped; 0.5 unless given."""

    space: Annotated[str | None, one_of(("core", "full"))] = None
    """Of ties and dare: whose entries, those of the small core that the changes share or of the layers' weights; the core
    unless given."""

    seed: int | None = None
    """Of what dare draws; 0 unless given."""

    def run(self) -> int:
        """Read them, combine them, write the result, say what it kept."""
        way = ways.find(self.how, {key: getattr(self, key) for key in ("r", "density", "drop", "space", "seed")})
        files = sources.opened(self.adapters)
        weights = sources.weights(self.weights, list(files))
        with output.new_directory(self.output) as partial:
            with screen.bar("combining") as update:
                found = combine(files, weights, way, update)
            formats.write(partial, found.file)
        say("combined", " + ".join(f"{weight:g} × {name}" for name, weight in weights.items()) + f" by {self.how}")
        return self.told(found, f" on {modules(found.modules)}")


Command = Combine
