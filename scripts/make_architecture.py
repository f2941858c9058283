"""Draw the rooms of the package and which imports which, from the imports themselves: docs/architecture.svg.

python scripts/make_architecture.py            writes the picture, which is committed

A room stands above all that it imports, as low as it can. An arrow that other arrows say already, room by room, is not drawn:
where cli imports base and base imports core, none leads from cli to core. `errors`, which nearly every room imports, is left
out.
"""

import ast
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "inlay"
PICTURE = SOURCE.parents[1] / "docs" / "architecture.svg"

WIDTH, MARGIN, BOX, ROW, TALL = 920, 12, 100, 78, 34
"""Of the picture, its edge, a room, from one row of rooms to the next, and of a room again, in pixels."""


def imports(source: Path = SOURCE) -> dict[str, set[str]]:
    """room -> the rooms that it imports; a file beside the rooms is one, but for the package's own two."""
    found: dict[str, set[str]] = {}
    for path in sorted(source.rglob("*.py")):
        room = path.relative_to(source).with_suffix("").parts[0]
        if room in ("__init__", "__main__"):
            continue
        used = found.setdefault(room, set())
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            used |= {name.split(".")[1] for name in names if name.startswith("inlay.")}
    rooms = found.keys()
    return {room: {name for name in used & rooms if name != room} for room, used in found.items()}


def heights(graph: dict[str, set[str]]) -> dict[str, int]:
    """room -> 0 where it imports none, else one more than the highest that it imports."""
    known: dict[str, int] = {}

    def height(room: str) -> int:
        if room not in known:
            known[room] = max((height(other) + 1 for other in graph[room]), default=0)
        return known[room]

    for room in graph:
        height(room)
    return known


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The imports that no way over a third room says."""

    def below(room: str) -> set[str]:
        return graph[room].union(*(below(other) for other in graph[room]))

    return {
        room: {name for name in used if not any(name in below(other) for other in used)} for room, used in graph.items()
    }


def places(graph: dict[str, set[str]]) -> dict[str, tuple[float, float]]:
    """room -> the middle of its box: rooms of one height in a row, each near the middle of those that it has arrows to."""
    height = heights(graph)
    found: dict[str, tuple[float, float]] = {}
    for level in range(max(height.values()) + 1):
        row = [room for room in sorted(graph) if height[room] == level]
        wished = {room: _middle([found[other][0] for other in graph[room]]) for room in row}
        row.sort(key=lambda room: wished[room])
        gap = max(BOX + MARGIN, min(2 * BOX, (WIDTH - 2 * MARGIN) / len(row)))
        centre = _middle(list(wished.values())) if len(row) < 3 else WIDTH / 2
        for i, room in enumerate(row):
            x = centre + (i - (len(row) - 1) / 2) * gap
            found[room] = x, MARGIN + TALL / 2 + (max(height.values()) - level) * ROW
    return found


def _middle(values: list[float]) -> float:
    return sum(values) / len(values) if values else WIDTH / 2


def picture(source: Path = SOURCE) -> str:
    """The SVG."""
    arrows = reduced(imports(source))
    arrows = {room: used - {"errors"} for room, used in arrows.items() if room != "errors"}  # every room raises them
    place = places(arrows)
    bottom = max(y for _, y in place.values()) + TALL / 2 + MARGIN
    left = min(x for x, _ in place.values()) - BOX / 2 - MARGIN
    wide = max(x for x, _ in place.values()) + 1.2 * BOX - left  # a curve bends as far as this
    seen = f"{left:.0f} 0 {wide:.0f} {bottom:.0f}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{seen}" font-family="sans-serif" font-size="17">',
        "<title>The rooms of Inlay, and which imports which</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#607d8b"/></marker></defs>',
        f'<rect x="{left:.0f}" width="{wide:.0f}" height="{bottom:.0f}" fill="white"/>',
    ]
    for room, used in sorted(arrows.items()):
        for other in sorted(used):
            (x, y), (to_x, to_y) = place[room], place[other]
            top, end, bend = y + TALL / 2, to_y - TALL / 2, (to_y - y) / 3
            is_behind = abs(x - to_x) < BOX and to_y - y > 2 * ROW  # other rooms would hide a straight one
            near, far = (max(x, to_x) + 1.2 * BOX,) * 2 if is_behind else (x, to_x)
            curve = f"M{x:.0f} {top:.0f} C{near:.0f} {top + bend:.0f} {far:.0f} {end - bend:.0f} {to_x:.0f} {end:.0f}"
            parts.append(f'<path d="{curve}" fill="none" stroke="#607d8b" stroke-width="1.4" marker-end="url(#tip)"/>')
    for room, (x, y) in sorted(place.items()):
        box = f'x="{x - BOX / 2:.0f}" y="{y - TALL / 2:.0f}" width="{BOX}" height="{TALL}" rx="5"'
        parts.append(f'<rect {box} fill="#e8eaf6" stroke="#3f51b5"/>')
        parts.append(f'<text x="{x:.0f}" y="{y + 5:.0f}" text-anchor="middle">{room}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), "utf-8")
