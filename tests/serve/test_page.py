"""The page at `/`, as files: what is sent with them, and what may not stand in them. What they do is in test_browser.py."""

import re

import httpx
import pytest

from inlay.http import page

FILES = {name: content.decode("utf-8") for name, content in page.files().items()}
MOST_LINES = 300
MARKUP = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\b|new Function|setAttribute\('(?:style|on)"
"""What makes markup or a script of a text."""


@pytest.fixture(scope="module")
def get(served):
    with httpx.Client(base_url=served.address) as client:
        yield client.get


@pytest.mark.parametrize("path", ["/", *(f"/static/{name}" for name in FILES)])
def test_every_file_is_sent_under_the_policy(get, path):
    response = get(path)
    name = path.removeprefix("/static/") if path != "/" else "index.html"
    assert (response.status_code, response.text) == (200, FILES[name])
    kind = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[name.split(".")[1]]
    assert response.headers["content-type"].split(";")[0] == kind
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    rules = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    none = {"default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types"}
    own = {"script-src", "style-src", "connect-src", "img-src"}
    assert rules == dict.fromkeys(none, "'none'") | dict.fromkeys(own, "'self'") | {
        "require-trusted-types-for": "'script'"
    }


def test_a_browser_asks_each_time_and_is_sent_what_is_new_alone(get):
    first = get("/static/page.js")
    assert first.headers["cache-control"] == "no-cache"
    for known in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = get("/static/page.js", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert get("/static/page.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert get("/static/page.css").headers["etag"] != first.headers["etag"]


@pytest.mark.parametrize("name", ["nothing.js", "__init__.py", "..%2fpaths.py", "%2e%2e/__init__.py", ""])
def test_no_other_file_is_sent(get, name):
    response = get(f"/static/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["message"]


def test_the_files_ask_for_nothing_from_elsewhere_and_hold_no_script_in_markup():
    for name, text in FILES.items():
        addresses = re.findall(
            r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", re.sub(r"^\s*//.*|\s// .*", "", text, flags=re.M)
        )
        assert [address for address in addresses if address != "http://www.w3.org/2000/svg"] == [], name
        assert not re.search(MARKUP, text), name
        assert not re.search(r"@import|\burl\(|@font-face", text), name
    markup = FILES["index.html"]
    assert not re.search(r"\s(?:style|on\w+)\s*=|javascript:|<style|<script(?![^>]*\ssrc=\"static/)", markup)
    for path in re.findall(r"(?:src|href)=\"([^\"#]+)\"", markup):
        assert path.removeprefix("static/") in FILES
    modules = {path for text in FILES.values() for path in re.findall(r"from '\./([\w.]+)'", text)}
    assert modules | {"page.js"} == {name for name in FILES if name.endswith(".js")}


def test_a_planted_script_is_found():
    assert re.search(MARKUP, "box.innerHTML = text")
    assert re.search(MARKUP, "box.setAttribute('onclick', text)")


def test_files_stay_small():
    assert {name: count for name, text in FILES.items() if (count := text.count("\n")) > MOST_LINES} == {}


def test_every_field_and_button_has_a_name_for_those_who_do_not_see_it():
    markup = FILES["index.html"]
    for tag, attributes in re.findall(r"<(input|textarea)\b([^>]*)>", markup):
        identifier = re.search(r'\bid="([^"]+)"', attributes)
        has_label = "aria-label" in attributes or (identifier and f'for="{identifier[1]}"' in markup)
        assert has_label or re.search(rf"<label>[^<]*<{tag}\b{re.escape(attributes)}>", markup), attributes
    for text in re.findall(r"<button[^>]*>(.*?)</button>", markup):
        assert text


def _palettes():
    css = FILES["page.css"]
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    return [dict(re.findall(r"--([\w-]+): #(\w{6});", text)) for text in (light, dark)]


def _luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """As WCAG 2.2 defines it: 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_texts_stand_out_in_both_palettes():
    assert round(contrast("000000", "ffffff"), 6) == 21
    assert round(contrast("777777", "ffffff"), 2) == 4.48
    for palette in _palettes():
        texts = [(text, ground) for text in ("text", "muted", "fault", "accent") for ground in ("ground", "panel")]
        texts += [("text", ground) for ground in ("level1", "level2", "level3", "level4", "differs")]
        texts += [("on-accent", "accent")]
        edges = [(edge, ground) for edge in ("edge", "accent") for ground in ("ground", "panel")]
        for pairs, least in ((texts, 4.5), (edges, 3.0)):
            found = {pair: contrast(palette[pair[0]], palette[pair[1]]) for pair in pairs}
            assert {pair: value for pair, value in found.items() if value < least} == {}
    assert _palettes()[0].keys() == _palettes()[1].keys()
