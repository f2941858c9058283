"""A line chart as inline SVG, drawn by ourselves: axes that a person would show, and nothing that has to be fetched.

Colours are classes (`page.css`), so that the same picture is right on a dark page and on a light one.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from html import escape

from inlay.screen import count

Pair = tuple[float, float]

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 54, 96, 34, 58
"""Of the picture, and what its axes take on each side."""

MOST_PARTS, NEIGHBOURS = 90, 40
"""A band has at most so many parts, however many steps there are; each looks at a fortieth of them, and at three at least."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line through points, thick, with the value of its last one written beside it."""

    points: Sequence[Pair]
    name: str
    kind: str
    """The class of its colour."""
    value: Callable[[float], str] = "{:.3f}".format


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is drawn; see `drawn`."""

    title: str
    """What the picture says, for those who can't see it."""
    y_name: str
    lines: Sequence[Line] = ()
    band: Sequence[Pair] = ()
    """Points that are drawn as a band from the least to the most of neighbours, with their mean."""
    band_name: str = ""
    mark: Pair | None = None
    """A point that is named: the best step."""
    mark_name: str = ""
    second_y: Callable[[float], str] | None = None
    """What stands on the right beside each tick of the left."""
    second_y_name: str = ""
    second_x: Callable[[float], str] | None = None
    """What stands under each step."""
    second_x_name: str = ""
    dots: Sequence[Pair] = ()
    """Points by themselves, on scales that are the same, and where x and y are."""
    x_name: str = "step"
    height: int = HEIGHT
    from_zero: bool = False


def drawn(chart: Chart) -> str:
    """The chart as an `svg` element; nothing where it has no points."""
    bands = banded(chart.band)
    points = [pair for line in chart.lines for pair in line.points]
    points += [(x, y) for x, low, _, high in bands for y in (low, high)]
    points += [(both, both) for pair in chart.dots for both in pair]
    points = [(x, y) for x, y in points if math.isfinite(y)]
    if not points:
        return ""
    (x_low, x_high), (y_low, y_high) = _span([x for x, _ in points]), _span([y for _, y in points])
    x_ticks, y_ticks = ticks(x_low, x_high, 7), ticks(0.0 if chart.from_zero else y_low, y_high, 5)
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])

    def at_x(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def at_y(y: float) -> float:
        return TOP + (y_high - y) / (y_high - y_low) * (chart.height - TOP - BOTTOM)

    parts = [*_axes(chart, x_ticks, y_ticks, at_x, at_y)]
    if bands:
        upper = [(at_x(x), at_y(high)) for x, _, _, high in bands]
        lower = [(at_x(x), at_y(low)) for x, low, _, _ in reversed(bands)]
        parts.append(f'<polygon class="band" points="{_path([*upper, *lower])}"/>')
        parts.append(f'<polyline class="mean" points="{_path([(at_x(x), at_y(mean)) for x, _, mean, _ in bands])}"/>')
    if chart.mark is not None:
        parts += _mark(chart, at_x(chart.mark[0]), at_y(chart.mark[1]))
    for line in chart.lines:
        parts += _line(line, at_x, at_y)
    if chart.dots:
        (x1, y1), (x2, y2) = ((at_x(both), at_y(both)) for both in (x_low, x_high))
        parts.append(f'<line class="mark" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
        parts += [f'<circle class="dot" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="4"/>' for x, y in chart.dots]
    label, box = escape(chart.title, quote=True), f"0 0 {WIDTH} {chart.height}"
    return f'<svg role="img" aria-label="{label}" viewBox="{box}">{"".join(parts)}</svg>'


def banded(points: Sequence[Pair]) -> list[tuple[float, float, float, float]]:
    """(x, least, mean, most) of the neighbours of at most `MOST_PARTS` points; those that are not finite are left out."""
    known = [(x, y) for x, y in points if math.isfinite(y)]
    apart, reach = max(1, math.ceil(len(known) / MOST_PARTS)), max(1, len(known) // (2 * NEIGHBOURS))
    found = []
    for place in sorted({*range(0, len(known), apart), len(known) - 1}) if known else ():
        ys = [y for _, y in known[max(0, place - reach) : place + reach + 1]]
        found.append((known[place][0], min(ys), sum(ys) / len(ys), max(ys)))
    return found


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from `low` to `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)] or [low, high]


def perplexity(loss: float) -> str:
    """exp(loss), for people."""
    value = math.exp(min(loss, 50))
    return f"{value:.3g}" if value < 1000 else count(value) if value < 1e9 else f"{value:.0e}"


def number(value: float) -> str:
    """A tick in as few digits as it has."""
    return f"{value:,.10f}".rstrip("0").rstrip(".")


def _span(values: Sequence[float]) -> Pair:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _axes(
    chart: Chart,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
) -> list[str]:
    """Lines across, and the numbers on all sides."""
    bottom, parts = chart.height - BOTTOM, []
    for value in y_ticks:
        y = at_y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, number(value), "end"))
        if chart.second_y is not None:
            parts.append(_text(WIDTH - 6, y + 4, chart.second_y(value), "end"))
    for value in x_ticks:
        parts.append(_text(at_x(value), bottom + 18, number(value), "middle"))
        if chart.second_x is not None:
            parts.append(_text(at_x(value), bottom + 34, chart.second_x(value), "middle"))
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_text(WIDTH - 6, bottom + 18, chart.x_name, "end"))
    parts.append(_text(WIDTH - 6, bottom + 34, chart.second_x_name, "end") if chart.second_x else "")
    parts.append(_text(4, 12, chart.y_name, "start"))
    parts.append(_text(WIDTH - 6, 12, chart.second_y_name, "end") if chart.second_y else "")
    x = LEFT + 4.0
    for kind, name in [
        *(("mean", chart.band_name) for _ in chart.band[:1]),
        *((line.kind, line.name) for line in chart.lines),
    ]:
        parts.append(
            f'<line class="{kind}" x1="{x:.0f}" x2="{x + 18:.0f}" y1="{chart.height - 8}" y2="{chart.height - 8}"/>'
        )
        parts.append(_text(x + 24, chart.height - 4, name, "start"))
        x += 46 + 6.6 * len(name)
    return parts


def _line(line: Line, at_x: Callable[[float], float], at_y: Callable[[float], float]) -> list[str]:
    places = [(at_x(x), at_y(y)) for x, y in line.points if math.isfinite(y)]
    if not places:
        return []
    dots = "".join(f'<circle class="{line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places[-60:])
    value = line.value(line.points[-1][1])
    (x, y), start = places[-1], places[0]
    parts = [f'<polyline class="{line.kind}" points="{_path(places)}"/>', dots]
    parts.append(_text(x + 8, y + 4, value, "start", "end"))
    if len(places) > 1:
        parts.append(_text(start[0] + 8, start[1] - 6, line.value(line.points[0][1]), "start", "end"))
    return parts


def _mark(chart: Chart, x: float, y: float) -> list[str]:
    bottom = chart.height - BOTTOM
    side, anchor = (6, "start") if x < WIDTH / 2 else (-6, "end")
    return [
        f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>',
        f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="6"/>',
        _text(x + side, TOP + 12, chart.mark_name, anchor),
    ]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(places: Sequence[Pair]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
