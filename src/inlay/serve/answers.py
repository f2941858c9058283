"""Answers as text while they are made: what their tokens say, what ends them, how likely they were."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from inlay.errors import FormatError, explain
from inlay.generation.sequence import Logprob, Request
from inlay.serve.grammar import Guide
from inlay.serve.words import Detokenizer, Stops
from inlay.serve.worker import Ticket, Worker


class TokenSaid(NamedTuple):
    """A token of an answer, and where its text begins in that of the answer."""

    logprob: Logprob
    start: int


class Piece(NamedTuple):
    """What is new of an answer."""

    text: str
    said: list[TokenSaid]
    """The tokens of that text, where it was asked how likely they are."""
    is_last: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """How the tokens of an answer become its text."""

    stops: tuple[str, ...] = ()
    """Texts that end it."""
    ends: tuple[int, ...] = ()
    """Tokens that end it, which are no part of its text."""
    keeps_tokens: bool = True
    """False: it was asked for its prompt alone, and is empty."""


class Answer:
    """One answer under way.

    **Attributes:**

    - `text`: what was said so far; `said`: the tokens of that.
    - `num_tokens`: how many were drawn.
    - `reason`: why it is over, as OpenAI calls it: stop or length; None while it is not.
    - `prompt_logprobs`: how likely the prompt's tokens were, where that was asked.
    """

    def __init__(self, worker: Worker, request: Request, tokenizer: Any, way: Way):
        self.request, self._worker, self._way = request, worker, way
        self.text, self.said = "", list[TokenSaid]()
        self.num_tokens, self.reason = 0, None if way.keeps_tokens else "length"
        self.prompt_logprobs: tuple[Logprob, ...] = ()
        self.first_seconds: float | None = None
        """How long it took to the first token."""
        self._begun = time.monotonic()
        self._words, self._stops = Detokenizer(tokenizer), Stops(way.stops)
        self._length = 0  # of all text, also of what is held back
        self._held: list[TokenSaid] = []
        self._ticket: Ticket = worker.submit(request)

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._worker.close(self._ticket)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """What is new, as it comes; the last may be empty.

        **Raises:**

        - `InlayError`: what keeps it from being made.
        """
        is_over = False
        try:
            while not is_over:
                news = await self._ticket.next()
                if self.first_seconds is None:
                    self.first_seconds = time.monotonic() - self._begun
                    self.prompt_logprobs = news.prompt_logprobs
                if news.ending in ("error", "aborted"):
                    raise self._failed()
                is_over = news.ending is not None
                if not self._way.keeps_tokens:
                    yield Piece("", [], is_last=is_over)
                    continue
                assert news.token is not None, "an answer that goes on has a token"
                piece = self._heard(news.token, news.logprob, is_over)
                is_over = is_over or self.reason is not None
                if is_over:
                    self.reason = self.reason or str(news.ending)
                if piece.text or piece.said or is_over:
                    yield piece._replace(is_last=is_over)
        finally:
            self.close()

    def _heard(self, token: int, logprob: Logprob | None, is_last: bool) -> Piece:
        """What a token adds."""
        self.num_tokens += 1
        new = ""
        if token not in self._way.ends:
            if logprob is not None:
                self._held.append(TokenSaid(logprob, self._length))
            new = self._words.add(token)
        if is_last:
            new += self._words.end()
        self._length += len(new)
        shown = self._stops.add(new)
        if self._stops.found is not None:
            self.reason = "stop"
        elif is_last:
            shown += self._stops.end()
        self.text += shown
        is_whole = is_last and self._stops.found is None
        said = [one for one in self._held if is_whole or one.start < len(self.text)]
        self._held = self._held[len(said) :]
        self.said += said
        return Piece(shown, said)

    def _failed(self) -> FormatError:
        guide = self.request.constraint
        if isinstance(guide, Guide) and guide.problem:
            wrong, found = "this answer could not be held to its form", guide.problem
        elif guide is not None:
            wrong, found = "this answer could not be held to its form", "no token of this vocabulary goes on with it"
        else:
            wrong, found = "this model's output is not a number, so that it has no answer", "NaN among the logits"
        return FormatError(explain(wrong, found=found))


class Group:
    """The answers to one request."""

    def __init__(self, answers: Sequence[Answer]):
        self.answers = list(answers)

    def close(self) -> None:
        """Nobody waits for them any more."""
        for answer in self.answers:
            answer.close()

    async def whole(self) -> list[Answer]:
        """All of them, once they are over."""
        async for _ in self.pieces():
            pass
        return self.answers

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """(the number of an answer, what is new of it), as they come."""
        arrived: asyncio.Queue[tuple[int, Piece | BaseException | None]] = asyncio.Queue()

        async def follow(number: int, answer: Answer) -> None:
            try:
                async for piece in answer.pieces():
                    arrived.put_nowait((number, piece))
                arrived.put_nowait((number, None))
            except Exception as error:
                arrived.put_nowait((number, error))

        tasks = [asyncio.create_task(follow(*each)) for each in enumerate(self.answers)]
        try:
            left = len(tasks)
            while left:
                number, piece = await arrived.get()
                if isinstance(piece, Exception):
                    raise piece
                left -= piece is None
                if isinstance(piece, Piece):
                    yield number, piece
        finally:
            for task in tasks:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*tasks, return_exceptions=True)
            self.close()
