"""The documentation: every page stands in the navigation, the picture is of the imports as they are, versions agree."""

import re
from pathlib import Path

import pytest
import yaml

from inlay.options import flag
from tests.architecture import test_layers
from tests.support.scripts import script

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def listed(entries):
    """The pages of a navigation."""
    for entry in entries:
        for value in entry.values():
            yield from listed(value) if isinstance(value, list) else [value]


def not_listed(configuration, pages):
    """(Pages that the navigation lacks, those that it has and that are not there, those that stand twice)."""
    found = list(listed(yaml.safe_load(configuration)["nav"]))
    return set(pages) - set(found), set(found) - set(pages), {page for page in found if found.count(page) > 1}


def pages():
    """Those of the repository, and those that scripts/make_reference.py writes."""
    committed = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if "reference" not in path.parts}
    written = {f"reference/{name}.md" for name in [*script("make_reference").pages(), "commands", "python"]}
    return committed | written | {"reference/engines.md", "reference/models.md", "reference/interop.md"}


def test_every_page_stands_in_the_navigation_once():
    assert not_listed((ROOT / "mkdocs.yml").read_text("utf-8"), pages()) == (set(), set(), set())


def test_the_first_page_leads_to_every_guide():
    linked = set(re.findall(r"\]\((guides/[\w-]+\.md)\)", (DOCS / "index.md").read_text("utf-8")))
    assert linked == {str(path.relative_to(DOCS)) for path in (DOCS / "guides").glob("*.md")}


def test_a_page_that_is_forgotten_gone_or_listed_twice_is_found():
    text = "nav:\n  - A: a.md\n  - More:\n      - B: b.md\n      - Again: a.md\n"
    assert not_listed(text, ["a.md", "c.md"]) == ({"c.md"}, {"b.md"}, {"a.md"})


def test_the_picture_is_of_the_imports_as_they_are():
    drawn = script("make_architecture")
    assert drawn.PICTURE.read_text("utf-8") == drawn.picture(), "python scripts/make_architecture.py draws it anew"


def test_every_flag_has_an_anchor_in_the_reference():
    anchors = re.findall(r'<a id="([^"]+)">', script("make_reference").commands())
    wanted = set()
    for name in flag.names("commands"):
        described = flag.stored("commands", name)
        wanted |= {f"{name}{own.typed}" for own in described.flags if not own.is_positional}
        wanted |= {
            f"{name}-{verb}{own.typed}" for verb, each in described.verbs for own in each.flags if not own.is_positional
        }
    assert wanted <= {*anchors}
    assert len(anchors) == len({*anchors})
    assert {"train--output", "store-add--tag"} <= wanted


@pytest.fixture
def house(tmp_path):
    """A package of three rooms: the upper one imports both others, the middle one the lowest."""
    for path, text in {
        "roof/a.py": "import inlay.stairs.b\nfrom inlay.cellar import c",
        "stairs/b.py": "def f():\n    from inlay.cellar.c import x",
        "cellar/c.py": "import json",
        "__init__.py": "from inlay.roof import a",
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_an_arrow_that_others_say_is_left_out(house):
    drawn = script("make_architecture")
    graph = drawn.imports(house)
    assert graph == {"roof": {"stairs", "cellar"}, "stairs": {"cellar"}, "cellar": set()}
    assert drawn.reduced(graph) == {"roof": {"stairs"}, "stairs": {"cellar"}, "cellar": set()}
    assert drawn.heights(graph) == {"roof": 2, "stairs": 1, "cellar": 0}
    before = drawn.picture(house)
    (house / "stairs" / "b.py").write_text("")
    assert drawn.picture(house) != before


def test_each_room_has_its_line_on_the_page():
    page = (DOCS / "architecture.md").read_text("utf-8")
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) == set(script("make_architecture").imports())


def disorder(text, layers):
    """Rooms of the table in CONTRIBUTING.md that are in no layer, layers' rooms that it lacks, and lines that stand too high."""
    lines = [
        line.split("  ")[0].split(" | ") for line in re.search(r"```\n(cli .*?)```", text, re.DOTALL)[1].splitlines()
    ]
    height = {room: len(layers) - i for i, layer in enumerate(layers) for room in layer}
    heights = [{height.get(room) for room in line} for line in lines]
    return {
        "strange": {room for line in lines for room in line} - set(height),
        "missing": set(height) - {room for line in lines for room in line},
        "mixed": [line for line, found in zip(lines, heights, strict=True) if len(found) > 1],
        "falls": [min(found) for found in heights] == sorted((min(found) for found in heights), reverse=True),
    }


def test_contributing_lists_the_layers_as_they_are():
    found = disorder((ROOT / "CONTRIBUTING.md").read_text("utf-8"), test_layers.LAYERS)
    assert found == {"strange": set(), "missing": set(), "mixed": [], "falls": True}


def test_a_layer_that_is_listed_wrongly_is_found():
    text = "```\ncli    x\nlow    x\nhigh | odd   x\n```"
    found = disorder(text.replace("odd", "low2"), [{"cli"}, {"high"}, {"low", "low2"}, {"gone"}])
    assert found == {"strange": set(), "missing": {"gone"}, "mixed": [["high", "low2"]], "falls": True}
    assert not disorder("```\ncli    x\nlow    x\nhigh    x\n```", [{"cli"}, {"high"}, {"low"}])["falls"]


def test_every_module_has_one_page_of_the_reference():
    modules = [module for named in script("make_reference").pages().values() for module in named]
    assert sorted(modules) == sorted(set(modules))


def outside(svg):
    """The boxes of a picture that it does not show whole."""
    left, top, wide, tall = map(int, re.search(r'viewBox="(-?\d+) (-?\d+) (\d+) (\d+)"', svg).groups())
    boxes = re.findall(r'<rect x="(-?\d+)" y="(-?\d+)" width="(\d+)" height="(\d+)" rx', svg)
    return [
        box
        for box in (tuple(map(int, box)) for box in boxes)
        if not (left <= box[0] <= left + wide - box[2] and top <= box[1] <= top + tall - box[3])
    ]


def test_the_picture_shows_every_room_whole():
    svg = script("make_architecture").PICTURE.read_text("utf-8")
    assert svg.count(' rx="') > 30
    assert outside(svg) == []


def test_a_room_that_the_picture_cuts_off_is_found():
    svg = '<svg viewBox="0 0 90 90"><rect x="{}" y="9" width="20" height="9" rx="5"/></svg>'
    assert [len(outside(svg.format(x))) for x in (-1, 0, 70, 71)] == [1, 0, 0, 1]
