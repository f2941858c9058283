"""The documentation: every page stands in the navigation, the picture is of the imports as they are, versions agree."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def script(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    return committed | written | {"reference/models.md", "reference/interop.md"}


def test_every_page_stands_in_the_navigation_once():
    assert not_listed((ROOT / "mkdocs.yml").read_text("utf-8"), pages()) == (set(), set(), set())


def test_a_page_that_is_forgotten_gone_or_listed_twice_is_found():
    text = "nav:\n  - A: a.md\n  - More:\n      - B: b.md\n      - Again: a.md\n"
    assert not_listed(text, ["a.md", "c.md"]) == ({"c.md"}, {"b.md"}, {"a.md"})


def test_the_picture_is_of_the_imports_as_they_are():
    drawn = script("make_architecture")
    assert drawn.PICTURE.read_text("utf-8") == drawn.picture(), "python scripts/make_architecture.py draws it anew"


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
