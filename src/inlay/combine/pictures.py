"""What was made, and how two adapters differ, as pictures: a square for each module, layers from left to right.

A row is what modules of one name have in common, such as q_proj; a module outside the layers, such as the head, is in the first
column.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from inlay.combine import core_space
from inlay.combine.checks import change
from inlay.combine.combine import Combined
from inlay.combine.diff import Difference
from inlay.picture import figure

COLUMNS = 2
"""As many panels are beside each other."""

OUTSIDE = -1
"""The layer of a module that is in none."""


class Panel(NamedTuple):
    """One number for each module."""

    title: str
    values: Mapping[str, float]
    """Module path -> the number."""
    lowest: float = 0.0
    highest: float | None = None
    """What the ends of the colours stand for; the largest number unless given."""
    colours: str = "viridis"


def made(found: Combined, intruders: Mapping[str, int]) -> bytes:
    """A PNG of an adapter that was made: how large each change is, and what a rank left out of it, where it left anything.

    `intruders`: module path -> how many intruder dimensions were made smaller, where they were.
    """
    changes = {path: change(found.file, path) for path in found.modules}
    pairs = {path: (each.scaling * each.B.double(), each.A.double()) for path, each in changes.items() if each}
    sizes = {path: core_space.inner(pair, pair) ** 0.5 for path, pair in pairs.items()}
    panels = [Panel("size of the change", sizes)]
    if found.error:
        errors = {path: 100 * module.error for path, module in found.modules.items()}
        panels.append(Panel("left out, % of the size of the change", errors, colours="magma"))
    if intruders:
        panels.append(Panel("intruder dimensions made smaller", intruders, colours="magma"))
    return drawn(panels)


def different(found: Mapping[str, Difference], names: Sequence[str]) -> bytes:
    """A PNG of how two adapters of these names differ."""

    def panel(title: str, what: Callable[[Difference], float], lowest: float, highest: float, colours: str) -> Panel:
        return Panel(title, {path: what(each) for path, each in found.items()}, lowest, highest, colours)

    largest = max(max(each.norms) for each in found.values())
    most = max((max(each.intruders) for each in found.values() if each.intruders), default=0)
    known = all(each.intruders is not None for each in found.values())
    sizes = [
        panel(f"size of the change, {name}", lambda each, i=i: each.norms[i], 0, largest, "viridis")
        for i, name in enumerate(names)
    ]
    counts = [
        panel(f"intruder dimensions, {name}", lambda each, i=i: (each.intruders or (0, 0))[i], 0, max(most, 1), "magma")
        for i, name in enumerate(names)
    ]
    between = [
        panel("cosine between the changes", lambda each: each.cosine, -1, 1, "RdBu"),
        panel("overlap of the outputs", lambda each: each.overlap_out, 0, 1, "viridis"),
        panel("overlap of the inputs", lambda each: each.overlap_in, 0, 1, "viridis"),
    ]
    return drawn([*sizes, *(counts if known else ()), *between])


def drawn(panels: Sequence[Panel]) -> bytes:
    """A PNG of these panels, all of the same modules."""
    paths = list(dict.fromkeys(path for panel in panels for path in panel.values))
    cells = {path: _cell(path) for path in paths}
    kinds = list(dict.fromkeys(kind for kind, _ in cells.values()))
    layers = sorted({layer for _, layer in cells.values()})
    num_rows, num_columns = -(-len(panels) // COLUMNS), min(COLUMNS, len(panels))
    width, height = 2.5 + 0.16 * max(len(layers), 12), 1.2 + 0.24 * len(kinds)
    with figure(num_columns * width, num_rows * height) as (page, png):
        every = page.subplots(num_rows, num_columns, squeeze=False).flatten()
        for axes in every[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(every, panels, strict=False):
            grid = [[float("nan")] * len(layers) for _ in kinds]
            for path, value in panel.values.items():
                kind, layer = cells[path]
                grid[kinds.index(kind)][layers.index(layer)] = value
            highest = max(panel.values.values()) if panel.highest is None else panel.highest
            image = axes.imshow(grid, aspect="auto", cmap=panel.colours, vmin=panel.lowest, vmax=highest or 1)
            page.colorbar(image, ax=axes)
            _label(axes, panel.title, kinds, layers)
    return png.getvalue()


def _label(axes: Any, title: str, kinds: Sequence[str], layers: Sequence[int]) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_yticks(range(len(kinds)), _short(kinds), fontsize="small")
    step = max(1, len(layers) // 12)
    ticks = range(0, len(layers), step)
    axes.set_xticks(ticks, ["none" if layers[i] == OUTSIDE else str(layers[i]) for i in ticks], fontsize="small")
    axes.set_xlabel("layer", fontsize="small")


def _cell(path: str) -> tuple[str, int]:
    """What modules of one name have in common, and the layer that a module is in."""
    parts = path.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return (path, OUTSIDE) if at is None else (".".join([*parts[:at], *parts[at + 1 :]]), int(parts[at]))


def _short(kinds: Iterable[str]) -> list[str]:
    """The last parts of paths, as many as tell each from the others."""
    kinds = list(kinds)
    for count in range(1, max(kind.count(".") for kind in kinds) + 1):
        short = [".".join(kind.split(".")[-count:]) for kind in kinds]
        if len({*short}) == len(kinds):
            return short
    return kinds
