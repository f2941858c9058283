"""See in Chromium, as wide as a phone and as a desk, that the pages of the built site are whole.

python scripts/look_site.py site            after scripts/docs has built it
python scripts/look_site.py site FOLDER     and write pictures of each page there: narrow and wide, light and dark

Whole means: nothing reaches over the edge of the screen, but what scrolls by itself; every picture loads; every link leads
somewhere; every heading has an anchor, and no two things have one; nothing is asked of another host; the browser has nothing
to say.
"""

import functools
import http.server
import itertools
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

WIDTHS = (390, 1280)
"""A phone and a desk."""

HEIGHT = 900
TALLEST = 15_000
"""A page that is taller is not shown whole in a picture."""

PATIENCE = 120_000
"""Milliseconds that a busy machine may take for a page."""

SEEN = """() => {
  const wide = document.documentElement.clientWidth, all = (what) => [...document.querySelectorAll(what)];
  const flows = (one) => getComputedStyle(one).overflowX;
  const scrolls = (one) => one && (["auto", "scroll"].includes(flows(one)) || scrolls(one.parentElement));
  const named = (one) => `${one.tagName.toLowerCase()} ${one.textContent.trim().slice(0, 40)}`;
  const boxes = all(".md-content *").map((one) => [one, one.getBoundingClientRect()]).filter(([, box]) => box.width > 1);
  return {
    "is wider than the screen": document.documentElement.scrollWidth > wide ? ["the page"] : [],
    "reaches over the edge": boxes.filter(([one, box]) => box.right > wide + 1 && !scrolls(one.parentElement))
      .map(([one]) => named(one)),
    "is cut": boxes.filter(([one]) => ["hidden", "clip"].includes(flows(one)) && one.scrollWidth > one.clientWidth + 1)
      .map(([one]) => named(one)),
    "is no picture": [...document.images].filter((one) => !one.complete || !one.naturalWidth).map((one) => one.src),
    "has no anchor": all(".md-content :is(h1, h2, h3, h4, h5)").filter((one) => !one.id).map(named),
    ids: all("[id], a[name]").map((one) => one.id || one.name),
    links: all("a[href]").map((one) => one.href),
  };
}"""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The address of a server of these files, on this machine alone."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def installed() -> str | None:
    """The Chromium of this machine."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pages(site: Path) -> list[str]:
    """The addresses of the site's pages, as links have them."""
    paths = [path.parent.relative_to(site).as_posix() for path in site.rglob("index.html")]
    return sorted("" if path == "." else path for path in paths)


@contextmanager
def opened(site: Path, chromium: str) -> Iterator[tuple[str, Any]]:
    """The address of the site, and a browser."""
    from playwright.sync_api import sync_playwright

    with served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield address, browser
        browser.close()


def faults(site: Path, chromium: str) -> list[str]:
    """What is not whole, a line each."""
    found: list[str] = []
    seen: dict[str, dict[str, list[str]]] = {}
    with opened(site, chromium) as (address, browser):
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        said: list[str] = []
        page.on("console", lambda line: said.append(line.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not _is_near(request.url, address) else None)
        for path in pages(site):
            for width in WIDTHS:  # loaded anew for each: what slides in or out when a window grows is wide for a moment
                page.set_viewport_size({"width": width, "height": HEIGHT})
                page.goto(_url(address, path))
                seen[path] = page.evaluate(SEEN)
                parts = {what: seen[path][what] for what in seen[path] if " " in what}
                found += [f"{path} at {width}: {what}: {one}" for what, each in parts.items() for one in each[:5]]
            found += [f"{path}: {line}" for line in said]
            said.clear()
    return found + [f"{path}: {line}" for path in seen for line in _lost(path, seen, site, address)]


def _url(address: str, path: str) -> str:
    return f"{address}{path}/" if path else address


def _is_near(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def _lost(path: str, seen: dict[str, dict[str, list[str]]], site: Path, address: str) -> Iterator[str]:
    """The links of a page that lead nowhere, and its anchors that are there twice."""
    for link in sorted({*seen[path]["links"]}):
        target, anchor = urldefrag(link.partition("?")[0] if "?q=" in link else link)
        if target.startswith(address):
            name = target.removeprefix(address).rstrip("/")
            if name not in seen and not (site / name).is_file():
                yield f"a link leads nowhere: {name}"
            elif anchor and name in seen and anchor not in seen[name]["ids"] and not anchor.startswith("__"):
                yield f"a link has an anchor that is not there: {name}#{anchor}"
    yield from (f"an anchor is there twice: {name}" for name, count in Counter(seen[path]["ids"]).items() if count > 1)


def pictures(site: Path, chromium: str, folder: Path) -> None:
    """Write a picture of each page, at each width, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    with opened(site, chromium) as (address, browser):
        for width, scheme in itertools.product(WIDTHS, ("light", "dark")):
            context = browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
            page = context.new_page()
            page.set_default_timeout(PATIENCE)
            for path in pages(site):
                page.goto(_url(address, path))
                is_short = page.evaluate("document.documentElement.scrollHeight") < TALLEST
                name = path.replace("/", "-") or "index"
                page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=is_short)
            context.close()


if __name__ == "__main__":
    found = installed()
    if found is None:
        sys.exit("error: chromium is not installed")
    if len(sys.argv) > 2:
        pictures(Path(sys.argv[1]), found, Path(sys.argv[2]))
    if problems := faults(Path(sys.argv[1]), found):
        sys.exit("error: pages are not whole\n  " + "\n  ".join(problems))
