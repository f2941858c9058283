"""A request that asks for answers: from its body to the response, whole or in parts."""

import contextlib
import hashlib
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Protocol, runtime_checkable

from fastapi import Request
from fastapi.responses import Response

from inlay.errors import InlayError
from inlay.http.bodies import Drawn
from inlay.http.faults import body_of, reply, status_of
from inlay.http.metrics import NO_ADAPTER
from inlay.http.service import Service
from inlay.http.streams import Stream, unless_gone
from inlay.serve.answers import Answer, Group, Piece
from inlay.serve.slots import Version

NOBODY = 499
"""The status that is noted where the client has gone."""


@runtime_checkable  # the tests check it where they check shapes
class Form(Protocol):
    """How one interface writes answers: `first`, `part` and `last` are choices of a stream, None where nothing is shown;
    `whole` is that of a response which comes whole."""

    kind: str
    chunk_kind: str
    prefix: str
    """What a response and a part of one are called, and the beginning of their number."""
    num_prompt: int
    """Tokens of all prompts."""

    def first(self, number: int, answer: Answer) -> dict[str, Any] | None: ...

    def part(self, number: int, piece: Piece) -> dict[str, Any] | None: ...

    def last(self, number: int, answer: Answer) -> dict[str, Any]: ...

    def whole(self, number: int, answer: Answer) -> dict[str, Any]: ...


Begin = Callable[[Version | None], Awaitable[tuple[Group, Form]]]
"""What asks for answers under an adapter."""


async def answered(service: Service, request: Request, body: Drawn, begin: Begin) -> Response:
    """The response to a request: answers under the adapter that it names."""
    async with contextlib.AsyncExitStack() as held:
        shares = service.shares(body.model, body.adapters, request.state.caller)
        version = await held.enter_async_context(service.taken(shares))
        group, form = await begin(version)
        held.callback(group.close)
        exchange = _Exchange(service, body, version, form, request, group)
        held.callback(exchange.note)
        if body.stream:
            return Stream(exchange.events(), held.pop_all(), exchange.headers())
        if not await unless_gone(request.receive, group.whole()):
            return Response(status_code=NOBODY)
        await service.apart(service.base.check_unchanged)
        choices = [form.whole(number, answer) for number, answer in enumerate(group.answers)]
        return reply(exchange.object(form.kind, choices) | {"usage": exchange.usage()}, headers=exchange.headers())


class _Exchange:
    """A request, its answers, and what is said of both."""

    def __init__(
        self, service: Service, body: Drawn, version: Version | None, form: Form, request: Request, group: Group
    ):
        self._service, self._body, self._version, self._form = service, body, version, form
        self._request, self._group = request, group
        self._id, self._created = f"{form.prefix}-{uuid.uuid4().hex}", int(time.time())

    def headers(self) -> dict[str, str]:
        """What the answer is of, as headers."""
        return {f"inlay-{name.replace('_', '-')}": digest or "none" for name, digest in self._digests.items()}

    @property
    def _digests(self) -> dict[str, str | None]:
        return self._service.digests(self._version)

    def object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Choices with what stands before them."""
        system = hashlib.sha256(repr(self._digests).encode()).hexdigest()[:24]
        about = {"id": self._id, "object": kind, "created": self._created, "model": self._body.model}
        return {**about, "system_fingerprint": system, "choices": choices}

    def usage(self) -> dict[str, Any]:
        """How many tokens there were so far, and of what."""
        prompt, said = self._form.num_prompt, sum(answer.num_tokens for answer in self._group.answers)
        counts = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
        return {**counts, **self._digests}

    def note(self) -> None:
        """Count it, once it is over."""
        usage, metrics = self.usage(), self._service.metrics
        name = self._version.name if self._version is not None else NO_ADAPTER
        metrics.prompt_tokens.labels(name).inc(usage["prompt_tokens"])
        metrics.answer_tokens.labels(name).inc(usage["completion_tokens"])
        for answer in self._group.answers:
            if answer.first_seconds is not None:
                metrics.first_token.observe(answer.first_seconds)
        self._request.state.facts.update(usage, adapter=name)

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """The objects of a stream."""
        options = self._body.stream_options
        has_usage = bool(options and options.include_usage)
        more = {"usage": None} if has_usage else {}
        try:
            async with contextlib.aclosing(self._choices()) as choices:
                async for choice in choices:
                    yield self.object(self._form.chunk_kind, [choice]) | more
            await self._service.apart(self._service.base.check_unchanged)
        except InlayError as error:
            self._request.state.facts["error"] = error.wrong
            yield body_of(status_of(error), str(error))
            return
        except Exception:  # the gate notes what it was
            yield body_of(500, "the server failed on this request")
            raise
        if has_usage:
            yield self.object(self._form.chunk_kind, []) | {"usage": self.usage()}

    async def _choices(self) -> AsyncGenerator[dict[str, Any], None]:
        opened: set[int] = set()
        async with contextlib.aclosing(self._group.pieces()) as pieces:
            async for number, piece in pieces:
                answer = self._group.answers[number]
                if number not in opened:
                    opened.add(number)
                    if (choice := self._form.first(number, answer)) is not None:
                        yield choice
                if (choice := self._form.part(number, piece)) is not None:
                    yield choice
                if piece.is_last:
                    yield self._form.last(number, answer)
