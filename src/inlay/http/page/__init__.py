"""The page at `/`: a playground for browsers, made of the files beside this one.

They are sent as they stand, without a build step, and ask for nothing from elsewhere: the policy below lets a browser run the
scripts of this server alone, none that stands in a text, and lets no script make markup of a text.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

from inlay.http.faults import fault

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",  # a browser asks each time whether its copy is still the one
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_FOLDER = Path(__file__).parent


def files() -> dict[str, bytes]:
    """What the page is made of, by name."""
    return {path.name: path.read_bytes() for path in sorted(_FOLDER.iterdir()) if path.suffix in TYPES}


def add(app: FastAPI) -> None:
    """Let an application answer `/` with the page, and the paths below `/static/` with its files."""
    held = files()

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return _file(held, "index.html", request)

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        return _file(held, name, request)


def _file(held: Mapping[str, bytes], name: str, request: Request) -> Response:
    """A file, or that a browser's copy is still the one."""
    if name not in held:
        return fault(404, "there is no such file", found=f"/static/{name[:100]}")
    tag = f'"{hashlib.sha256(held[name]).hexdigest()[:32]}"'
    headers = {**HEADERS, "etag": tag}
    known = (text.strip().removeprefix("W/") for text in request.headers.get("if-none-match", "").split(","))
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(held[name], headers={**headers, "content-type": TYPES[Path(name).suffix]})
