"""Make one adapter of several: sums, averages, subtraction."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch

from inlay import formats, screen
from inlay.base.load import load
from inlay.cli.inspect import modules
from inlay.combine import pictures, sources, ways
from inlay.combine.checks import Named
from inlay.combine.combine import Combined, combine
from inlay.combine.intruders import Shrinking, Weight
from inlay.errors import CompatibilityError, ConfigError, explain, few
from inlay.io import output
from inlay.options.flags import Plots
from inlay.options.types import Mark, one_of
from inlay.runs.recording import note
from inlay.screen import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Makes(Plots):
    """What the commands have in common that make an adapter of something else."""

    output: Path
    """The directory for the adapter; it must not exist."""

    def told(self, found: Combined, about: str, intruders: Mapping[str, int] = {}) -> int:
        """Say what was made and what it kept, and draw it: the exit status."""
        note(adapter={"path": str(self.output)}, scores=found.as_json())
        say("adapter", f"lora {found.file.method.describe()}{about}")
        say("kept", found.describe() + (", before shrinking" if intruders else ""))
        say("wrote", f"{self.output}/")
        self.draw(lambda: pictures.made(found, intruders))
        if self.json:
            screen.emit({"output": str(self.output), **found.as_json()})
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Combine(Makes):
    """A weighted sum, the best of a lower rank, less of an adapter, its opposite. No model is needed; the result is a LoRA."""

    adapters: Annotated[
        tuple[str, ...],
        Mark(is_positional=True, metavar="ADAPTER ..."),
    ]
    """Adapter directories, name@version in the store, or names on the hub; of one, its multiple, or itself at a lower rank."""

    how: Annotated[str, one_of(ways.WAYS)] = "cat"
    """cat: the weighted sum, exact, with the sum of the ranks. svd: the best of rank --r. ties: the mean of what they agree
    on. dare: the sum of entries drawn at random. linear: the sum of the factors. slerp: between two, on the great circle."""

    weights: Annotated[str | None, Mark(metavar="NUMBERS")] = None
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

    shrink_intruders: Annotated[float | None, Mark(metavar="FACTOR")] = None
    """How large the result's intruder dimensions become, from 0 to below 1 times what they are: directions among the first 10
    of a changed weight that are like none of the base's, where what was forgotten is found. With --model."""

    model: str | None = None
    """The base, for --shrink-intruders alone."""

    def run(self) -> int:
        """Read them, combine them, write the result, say what it kept."""
        self.check_plot()
        way = ways.find(self.how, {key: getattr(self, key) for key in ("r", "density", "drop", "space", "seed")})
        files = sources.opened(self.adapters)
        weights = sources.weights(self.weights, list(files))
        shrinking = self._shrinking(files)
        with output.new_directory(self.output) as partial:
            with screen.bar("combining") as update:
                found = combine(files, weights, way, update, shrinking)
            found.file.record["combined"] |= {"shrink_intruders": self.shrink_intruders} if shrinking else {}
            formats.write(partial, found.file)
        say("combined", " + ".join(f"{weight:g} × {name}" for name, weight in weights.items()) + f" by {self.how}")
        if shrinking:
            counts = shrinking.found.values()
            among = f"{sum(counts):,} intruder dimensions, in {sum(map(bool, counts)):,} of {len(counts):,} modules"
            say("shrunk", f"{among}: {shrinking.scale:g} of what they were")
        return self.told(found, f" on {modules(found.modules)}", shrinking.found if shrinking else {})

    def _shrinking(self, files: Named) -> Shrinking | None:
        if (self.shrink_intruders is None) != (self.model is None):
            wrong = "intruder dimensions are those that the base does not have: it takes both"
            found = "--model" if self.shrink_intruders is None else "--shrink-intruders"
            raise ConfigError(explain(wrong, found=f"{found} alone", do="--shrink-intruders 0.5 --model MODEL"))
        if self.shrink_intruders is None or self.model is None:
            return None
        if several := {name: file.parameters for name, file in files.items() if file.parameters}:
            wrong, do = "intruder dimensions are looked for in linear layers alone", "leave --shrink-intruders out"
            found = few([f"{name}: {', '.join(parameters)}" for name, parameters in several.items()])
            raise CompatibilityError(explain(wrong, found=found, do=do))
        return Shrinking(weights_of(self.model, dict(zip(files, self.adapters, strict=True))), self.shrink_intruders)


def weights_of(model: str, adapters: Mapping[str, str]) -> Weight:
    """What the base that these adapters are of has for weights; by name, where each lies.

    **Raises:**

    - `CompatibilityError`: one is of another base.
    """
    base = load(model, dtype="float32")
    for name, source in adapters.items():
        base.attach(source, name)  # which refuses what is of another base
    return lambda path: base.maps[path].weight(torch.float32)


Command = Combine
