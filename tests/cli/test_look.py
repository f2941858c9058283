"""The built site in a browser: its pages are whole on a phone and on a desk, and its search box finds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scripts import script

ROOT = Path(__file__).parents[2]


LOOK = script("look_site")
CHROMIUM = LOOK.installed()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

PATIENCE = 120_000
"""Milliseconds that a busy machine may take for a step."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as scripts/docs builds it."""
    built = tmp_path_factory.mktemp("site")
    for command in (["scripts/make_reference.py"], ["-m", "mkdocs", "build", "--strict", "--site-dir", built]):
        subprocess.run([sys.executable, *command], cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    return built


def test_every_page_is_whole(site):
    assert len(LOOK.pages(site)) > 90
    assert LOOK.faults(site, CHROMIUM) == []


@pytest.mark.parametrize(("query", "title"), [("How do I use my CSV?", "CSV"), ("out of memory", "Out of memory")])
def test_the_search_box_finds(site, query, title):
    with LOOK.opened(site, CHROMIUM) as (address, browser):
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.click("[data-md-component=search-query]")
        page.keyboard.type(query)
        first = page.locator(".md-search-result__item").first
        first.wait_for()
        assert title.lower() in first.inner_text().lower()


def test_the_button_copies_what_is_typed(site):
    with LOOK.opened(site, CHROMIUM) as (address, browser):
        page = browser.new_context(permissions=["clipboard-read", "clipboard-write"]).new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{address}guides/store/")
        page.locator(".language-console .md-clipboard, .language-console button").first.click()
        copied = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert copied[0].startswith("inlay store add ")
    assert all(line.startswith("inlay ") for line in copied)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("<h1 id=a>A</h1><p style='width: 2000px'>wide</p>", "reaches over the edge: p wide"),
        (
            "<h1 id=a>A</h1><p style='overflow: hidden; white-space: nowrap; width: 40px'>cut off</p>",
            "is cut: p cut off",
        ),
        ("<h1 id=a>A</h1><img src=gone.png>", "is no picture: "),
        ("<h1>A</h1>", "has no anchor: h1 A"),
        ("<h1 id=a>A</h1><p id=a>b</p>", "an anchor is there twice: a"),
        ("<h1 id=a>A</h1><a href=gone/>b</a>", "a link leads nowhere: gone"),
        ("<h1 id=a>A</h1><a href='#b'>b</a>", "a link has an anchor that is not there: #b"),
        ("<h1 id=a>A</h1><script src='http://127.0.0.1:9/x.js'></script>", ": http://127.0.0.1:9/x.js"),
        ("<h1 id=a>A</h1><script>throw Error('broken')</script>", ": broken"),
    ],
)
def test_a_page_that_is_not_whole_is_said(tmp_path, content, fault):
    page = '<!doctype html><html><link rel=icon href="data:,"><body><div class=md-content>{}</div></body></html>'
    index = tmp_path / "index.html"
    index.write_text(page.format(content), "utf-8")
    found = LOOK.faults(tmp_path, CHROMIUM)
    assert any(fault in line for line in found), found
    index.write_text(page.format("<h1 id=a>A</h1><pre style='overflow: auto'>" + "x" * 999 + "</pre>"), "utf-8")
    assert LOOK.faults(tmp_path, CHROMIUM) == [], "what scrolls by itself is whole"
