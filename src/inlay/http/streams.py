"""Responses that come in parts, and clients that go before their end."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Any]) -> bool:
    """Do `work`, whose request was read whole, unless the client hangs up; whether it was done."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Stream(Response):
    """Server-sent events: one for each object, `[DONE]` at the end.

    **Arguments:**

    - `events`: the objects.
    - `held`: closed at the end, whatever comes.
    """

    def __init__(
        self,
        events: AsyncGenerator[Mapping[str, Any], None],
        held: contextlib.AsyncExitStack,
        headers: Mapping[str, str],
    ):
        super().__init__(headers={"cache-control": "no-store", **headers}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._events, self._held = events, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held, contextlib.aclosing(self._events):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_gone(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        async for event in self._events:
            text = f"data: {json.dumps(event, allow_nan=False)}\n\n"
            await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
