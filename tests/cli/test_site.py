"""The site: blocks of code are named for what they are, the search says when it does not find, README's
figures were measured."""

import json
import re
import shutil
from pathlib import Path

import material
import pytest

from tests.support.scripts import script

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("block", "language"),
    [("$ inlay runs\nnone\n", "console"), ("inlay runs\n", "bash"), ("Nora has keys.\n", "text"), ("", "text")],
)
def test_a_block_is_named_for_what_it_is(block, language):
    named = script("site_hooks").named
    assert named(f"a\n\n```\n{block}```\n\nb\n") == f"a\n\n```{language}\n{block}```\n\nb\n"
    assert named(f"```json\n{block}```\n") == f"```json\n{block}```\n"


def test_blocks_after_one_with_a_language_are_named_too():
    text = "```json\n{}\n```\n\nso:\n\n```\n$ inlay runs\n```\n"
    assert script("site_hooks").named(text) == text.replace("```\n$", "```console\n$")


def test_short_words_of_code_do_not_break_and_long_ones_do_where_a_reader_would():
    readable = script("site_hooks").readable
    assert readable("<p><code>--max-length 9</code></p>") == (
        '<p><code><span class="whole">--max-length</span> <span class="whole">9</span></code></p>'
    )
    assert readable("<code>PromptEncoderConfig</code>") == "<code>Prompt<wbr>Encoder<wbr>Config</code>"
    bar = '<code><span class="whole">a</span> <span class="whole">|</span></code>'
    assert readable(r"<td><code>a \|</code></td>") == f"<td>{bar}</td>"
    for block in ("<pre><span></span><code>inlay\n</code></pre>", '<code><span class="k">x</span></code>'):
        assert readable(block) == block
    assert readable(f"<td>{'a word ' * 5}</td><td>yes</td>").count('<td class="long">') == 1


def test_pages_of_how_it_is_made_count_less_than_guides():
    boost = script("site_hooks").boost
    assert boost("decisions/0001-io-below-model.md") < boost("reference/contract.md") < boost("reference/python.md")
    assert boost("reference/python.md") < boost("guides/chat.md") == boost("troubleshooting.md")


@pytest.mark.parametrize(
    ("given", "text"),
    [("Settings.epochs", "1.0"), ("Settings.train_on", "'completions'"), ("lambda x: None", "..."), ("3", "3")],
)
def test_the_reference_shows_what_a_default_is(given, text):
    assert script("site_defaults").shown(given) == text


def test_every_page_of_the_reference_says_what_it_is_for():
    reference = script("make_reference")
    kinds = {page if page in reference.INTROS else page.partition("-")[0] for page in reference.pages()}
    assert kinds == set(reference.INTROS)


@pytest.fixture
def site(tmp_path):
    """A site of four pages, with the search of the theme."""
    workers = Path("assets") / "javascripts" / "workers"
    (tmp_path / workers).parent.mkdir(parents=True)
    shutil.copytree(Path(material.__file__).parent / "templates" / workers, tmp_path / workers)
    titles = {"a/": "Install", "b/": "Install more", "c/": "Installing", "d/": "Gardens"}
    docs = [{"location": page, "title": title, "text": f"of {title}"} for page, title in titles.items()]
    docs[-1]["text"] = "install"
    index = {"config": {"lang": ["en"], "separator": "[\\s\\-]+", "pipeline": ["stopWordFilter"]}, "docs": docs}
    shutil.copy(ROOT / "docs" / "assets" / "search.js", tmp_path / "assets")
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search_index.json").write_text(json.dumps(index), "utf-8")
    return tmp_path


def test_a_search_that_does_not_find_is_said(site):
    missed = script("search_site").missed
    assert missed(site, {"install": "a/", "gardens": "d/"}) == []
    (problem,) = missed(site, {"gardens": "d/", "install": "d/"})
    assert problem.startswith("install: d/ is not among [")


def test_words_that_say_nothing_are_not_asked_for(site):
    """The theme's search takes `in` for the beginning of `install`."""
    asked = script("search_site").asked
    assert asked(site, ["gardens", "in gardens", "What is in my gardens?"]) == [["d/"]] * 3
    assert asked(site, ["gardens ins"]) != [["d/"]]
    assert "a/" in asked(site, ["in"])[0], "words are left where there is no other"


def unmeasured(readme, benchmarks):
    """(command, figure) of the rows of README's tables that name a benchmark, where what is said of that has no such figure."""
    about = dict.fromkeys(re.findall(r"`python -m (benchmarks\.\w+)`", readme))
    parts = re.split(r"^## ", benchmarks, flags=re.MULTILINE)
    for command in about:
        about[command] = "".join(part for part in parts if re.search(rf"\b{re.escape(command)}\b", part))
    rows = re.findall(r"^\| (.*) \| `python -m (benchmarks\.\w+)` \|$", readme, re.MULTILINE)
    return [
        (command, figure)
        for said, command in rows
        for figure in re.findall(r"\d+\.\d+", said)
        if not re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d]|\.\d)", about[command])
    ]


def test_every_figure_of_the_readme_was_measured():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(re.findall(r"`python -m benchmarks\.", readme)) >= 5
    assert unmeasured(readme, (ROOT / "BENCHMARKS.md").read_text("utf-8")) == []


def test_a_figure_that_nobody_measured_is_found():
    readme = "| 1.8 times, in 0.4 of it | `python -m benchmarks.step` |\n| 9.5 | `python -m benchmarks.large` |\n"
    measured = (
        "## A\n\n`python -m benchmarks.step 1b`: 1.81, 0.4 and 9.5\n\n## B\n\n`python -m benchmarks.large`: 9.5\n"
    )
    assert unmeasured(readme, measured) == [("benchmarks.step", "1.8")]
