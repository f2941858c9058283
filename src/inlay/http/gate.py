"""What every request goes through: which host it is for, whose it is, how large it is; and one line of log about it."""

import asyncio
import contextlib
import json
import logging
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inlay.http import faults
from inlay.http.access import Access
from inlay.http.metrics import NO_ADAPTER, Metrics

OPEN = ("/", "/health", "/ready")
"""Paths that need no key, and those below `STATIC`."""

STATIC = "/static/"

BODY_SECONDS = 60.0
"""How long a client may take to send a body: one that never ends is not waited for."""

READ_AND_LEFT = 4
"""Of a request that is refused, this many times the largest body is read and thrown away: who still sends when the connection
closes, as a proxy does, never sees the answer."""

_logger = logging.getLogger("inlay.http")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def log(event: str, **facts: Any) -> None:
    """One line of the log: what happened, and what is known of it."""
    _logger.info(event, extra={"facts": {name: value for name, value in facts.items() if value is not None}})


class Lines(logging.Formatter):
    """What is logged, as one JSON object in a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        known = {"time": round(record.created, 3), "event": record.getMessage(), **getattr(record, "facts", {})}
        trace = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return json.dumps(known | trace)


@contextlib.contextmanager
def logged() -> Iterator[None]:
    """Within the block the log of servers, and what uvicorn warns of, is written to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    loggers = {_logger: logging.INFO, logging.getLogger("uvicorn.error"): logging.WARNING}
    for logger, level in loggers.items():
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True


class Gate:
    """An application behind it.

    **Arguments:**

    - `hosts`: the names by which it may be asked; empty: any. Without keys, a page in this machine's browser could ask it by a
      name of its own.
    """

    def __init__(self, app: ASGIApp, access: Access, metrics: Metrics, max_body_bytes: int, hosts: Iterable[str]):
        self._app, self._access, self._metrics = app, access, metrics
        self._most, self._hosts = max_body_bytes, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, number = time.monotonic(), uuid.uuid4().hex[:16]
        facts: dict[str, Any] = {}
        status: list[int] = []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                status.append(message["status"])
                message["headers"] = [*message["headers"], (b"x-request-id", number.encode())]
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        caller = self._access.caller(headers.get("authorization"))
        scope["state"] = {**scope.get("state", {}), "caller": caller, "facts": facts}
        try:
            refused = self._refused(scope["path"], headers, caller is not None)
            taken: Any = None if self._is_huge(headers) else await self._taken(receive, 0 if refused else self._most)
            body = refused or taken
            if isinstance(body, bytes):
                await self._app(scope, _again(body, receive), answer)
            else:
                await body(scope, receive, answer)
        except asyncio.CancelledError:  # the server ends, and has waited for this long enough
            facts["error"] = "the server ended before it was answered"
            if not status:
                await faults.fault(503, "the server is going down")(scope, receive, answer)
        except Exception as error:
            facts["error"] = f"{type(error).__name__}: {error}"
            facts["traceback"] = traceback.format_exc()
            if not status:
                await faults.fault(500, "the server failed on this request", found=f"request {number}")(
                    scope, receive, answer
                )
        finally:
            self._note(scope, number, status[0] if status else 0, time.monotonic() - begun, facts)

    def _refused(self, path: str, headers: dict[str, str], is_known: bool) -> Any:
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        host = headers.get("host", "") if host.endswith((":", "[")) else host
        if self._hosts and host not in self._hosts:
            return faults.fault(403, "this server is asked by another name", found=host[:100], do="--allow-host NAME")
        if not is_known and path not in OPEN and not path.startswith(STATIC):
            return faults.fault(401, "this key is not known", found="Authorization", do="Authorization: Bearer KEY")
        return self._too_large() if self._is_huge(headers) else None

    def _is_huge(self, headers: dict[str, str]) -> bool:
        """A request says itself that its body is so large, and is not read; or it says what is no number."""
        length = headers.get("content-length", "0")
        return not length.isdecimal() or int(length[:20]) > READ_AND_LEFT * self._most

    async def _taken(self, receive: Receive, most: int) -> Any:
        """The body of a request, or the answer to one that is larger than `most` or never came whole."""
        try:
            body = await asyncio.wait_for(_body(receive, most, READ_AND_LEFT * self._most), BODY_SECONDS)
        except asyncio.TimeoutError:
            refused = faults.fault(408, "this request never came whole", found=f"waited for {BODY_SECONDS:g} s")
            refused.headers["connection"] = "close"
            return refused
        return self._too_large() if body is None else body

    def _too_large(self) -> Any:
        response = faults.fault(413, "this request is too large", found=f"at most {self._most:,} bytes are read")
        response.headers["connection"] = "close"  # the rest of it is not waited for
        return response

    def _note(self, scope: Scope, number: str, status: int, seconds: float, facts: dict[str, Any]) -> None:
        route = scope.get("route")
        path = getattr(route, "path", None) or "other"
        caller = scope["state"]["caller"]
        self._metrics.requests.labels(path, str(status), facts.get("adapter", NO_ADAPTER)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        about = {"request": number, "method": scope["method"], "path": scope["path"][:200], "status": status}
        log("request", **about, seconds=round(seconds, 4), caller=caller and caller.name, **facts)


async def _body(receive: Receive, most: int, most_read: int) -> bytes | None:
    """What a client sends, where it is not more than `most`; None where it is, or where the client went before its end."""
    parts, count = list[bytes](), 0
    while True:
        message = await receive()
        part = message.get("body", b"")
        count += len(part)
        if count <= most:
            parts.append(part)
        if message["type"] == "http.disconnect" or count > most_read:
            return None
        if not message.get("more_body"):
            return b"".join(parts) if count <= most else None


def _again(body: bytes, receive: Receive) -> Receive:
    """What brings a body that was read, and then whatever comes after it."""
    left = [body]

    async def bring() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return bring
