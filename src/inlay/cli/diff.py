"""Show how two adapters differ."""

import dataclasses
from typing import Annotated

from inlay import screen
from inlay.cli.combine import weights_of
from inlay.combine import pictures, sources
from inlay.combine.diff import Difference, diff, summed
from inlay.options.flags import Plots
from inlay.options.types import Mark


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diff(Plots):
    """No model is needed; with one, intruder dimensions are counted too."""

    adapters: Annotated[tuple[str, str], Mark(is_positional=True, metavar="ADAPTER ADAPTER")]
    """Two adapters: directories, name@version in the store, or names on the hub."""

    model: str | None = None
    """Their base, to look for intruder dimensions: those of the first 10 singular vectors of each changed weight that are like
    none of the base's own."""

    def run(self) -> int:
        """Print a line for each kind of module."""
        self.check_plot()
        files, weight = sources.opened(self.adapters), None
        if self.model is not None:
            weight = weights_of(self.model, dict(zip(files, self.adapters, strict=True)))
        with screen.bar("comparing") as update:
            found = diff(files, weight, update)
        one, other = files
        screen.fact("", f"{one}, {other}: norms, cosine, overlap of outputs and inputs, effective ranks")
        for name, each in summed(found).items():
            screen.fact(name, told(each))
        self.draw(lambda: pictures.different(found, list(files)))
        if self.json:
            screen.emit({"of": list(files), "modules": {path: each._asdict() for path, each in found.items()}})
        return 0


def told(each: Difference) -> str:
    """What is known of two changes, in one line."""
    new = f" · intruders {each.intruders[0]}, {each.intruders[1]}" if each.intruders else ""
    return (
        f"{each.norms[0]:.3g}, {each.norms[1]:.3g} · {each.cosine:+.3f} · {each.overlap_out:.3f}, {each.overlap_in:.3f} · "
        f"{each.effective_ranks[0]:.1f}, {each.effective_ranks[1]:.1f}{new}"
    )


Command = Diff
