"""Draw the picture of the page at `/` in docs/guides/serve.md: python scripts/make_page_picture.py DEMO [FOLDER]

DEMO is what `inlay demo --output DEMO` left. The answers are those of its two adapters and of the base; Chromium
has to be installed. With FOLDER, pictures of a dark screen, of a phone and of the dialogs are written there too.
"""

import shutil
import sys
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from inlay.base.load import load
from inlay.cli.demo import BASE
from inlay.http.server import Setup, server, serving

PICTURE = Path(__file__).parents[1] / "docs" / "guides" / "serve-page.png"
PROMPT = "name: Nora | colour: golden | thing: keys | count: five"
SCREEN = {"width": 1200, "height": 560}
PHONE = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2, "has_touch": True}


def main(demo: Path, folder: Path | None) -> None:
    """Serve the demo's adapters, ask them, and take the pictures."""
    with serving(load(BASE), Setup(adapters={"tell": demo / "tell", "ask": demo / "ask"})) as service:
        running = server(service, "127.0.0.1", 0)
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            running.listening.wait()
            with sync_playwright() as playwright:
                path = shutil.which("chromium") or shutil.which("google-chrome")
                browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
                address = f"http://127.0.0.1:{running.port}/"
                asked(browser.new_page(viewport=SCREEN), address).screenshot(path=PICTURE)
                if folder is not None:
                    more(browser, address, folder)
        finally:
            running.stop()
            thread.join()


def asked(page: Any, address: str) -> Any:
    """A page on which a prompt was answered by all, with the pointer on a token."""
    page.goto(address)
    page.wait_for_selector("#model-list input", state="attached")
    page.fill("#message", PROMPT)
    page.click("#send")
    page.wait_for_selector("#status:has-text('3 done')")
    page.locator(".token:not(.level0)").first.hover()
    return page


def more(browser: Any, address: str, folder: Path) -> None:
    """The pictures that are only looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, how in (("dark", {"viewport": SCREEN, "color_scheme": "dark"}), ("phone", PHONE)):
        page = browser.new_context(**how).new_page()
        page.goto(address)
        page.screenshot(path=folder / f"{name}-first.png")
        asked(page, address).screenshot(path=folder / f"{name}.png")
        page.mouse.move(0, 0)
        for dialog in ("history", "help"):
            page.click(f"#open-{dialog}")
            page.screenshot(path=folder / f"{name}-{dialog}.png")
            page.keyboard.press("Escape")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
