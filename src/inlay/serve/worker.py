"""The one thread that steps the engine: requests go in from any thread, and what is new comes out in the event loop.

    loop      submit -->  inbox  --> thread:  add, abort, between;  engine.step()  -->  Ticket (a queue in the loop)

Nothing that a client does holds the thread up: news are put into queues that are as long as answers may be, and files are read
elsewhere. What changes the model, such as attaching an adapter, is done here, between two steps.
"""

import asyncio
import contextlib
import dataclasses
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from inlay.errors import CapacityError, InlayError, explain
from inlay.generation.engine import Engine
from inlay.generation.sequence import Ending, Logprob, Request, Sequence


@dataclasses.dataclass(frozen=True)
class News:
    """What one step brought to an answer."""

    token: int | None
    """None where the answer ended without another."""
    logprob: Logprob | None
    ending: Ending | None
    prompt_logprobs: tuple[Logprob, ...] = ()
    """Those of the prompt, with the first token."""


class Ticket:
    """An answer under way, for the event loop that asked for it: `await ticket.next()` until there is an `ending`."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop):
        self.request, self.loop = request, loop
        self.sequence: Sequence | None = None
        """Set and looked at by the worker's thread alone."""
        self.is_over = False
        self._news: asyncio.Queue[News | InlayError] = asyncio.Queue()

    async def next(self) -> News:
        """What the next step brings.

        **Raises:**

        - `InlayError`: what keeps the request from being answered.
        """
        found = await self._news.get()
        if isinstance(found, InlayError):
            raise found
        return found

    def put(self, news: News | InlayError) -> None:
        """Hear of it; called in the event loop."""
        self._news.put_nowait(news)


class Worker:
    """A thread and the engine that it steps.

    **Arguments:**

    - `engine`: what answers; None where a base answers no prompts, and `between` alone is asked for.
    """

    def __init__(self, engine: Engine | None):
        self.engine = engine
        self.num_open = 0
        """How many tickets there are that are not over; of the event loop."""
        self.num_steps = self.num_errors = 0
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._under_way: dict[Sequence, Ticket] = {}
        self._is_stopped = False
        self._thread = threading.Thread(target=self._run, name="inlay-engine", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Its thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End after the step under way; answers that are not whole end with an error."""
        self._inbox.put(None)
        self._thread.join()

    def submit(self, request: Request) -> Ticket:
        """Ask the engine; called in the event loop that hears the answer. `close` the ticket afterwards."""
        ticket = Ticket(request, asyncio.get_running_loop())
        self.num_open += 1
        self._inbox.put(lambda: self._add(ticket))
        return ticket

    def close(self, ticket: Ticket) -> None:
        """Nobody waits for this answer any more: end it where it is not over."""
        if not ticket.is_over:
            ticket.is_over = True
            self.num_open -= 1
            self._inbox.put(lambda: self._abort(ticket))

    def between(self, function: Callable[[], Any]) -> Future[Any]:
        """Run `function` in the worker's thread, between two steps: what it will return, or raise."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except BaseException as error:
                done.set_exception(error)

        self._inbox.put(run)
        return done

    def _run(self) -> None:
        while not self._is_stopped:
            self._take(wait=not self._under_way)
            if self._under_way and self.engine is not None:
                self._step(self.engine)
        self._fail(list(self._under_way), _failed(None))

    def _take(self, wait: bool) -> None:
        """Do what was asked for since the last step; wait for that where there is nothing to step."""
        with contextlib.suppress(queue.Empty):
            while True:
                order = self._inbox.get(block=wait)
                wait = False
                if order is None:
                    self._is_stopped = True
                    return
                order()

    def _step(self, engine: Engine) -> None:
        self.num_steps += 1
        try:
            grown = engine.step()
        except Exception as error:  # whatever it is, it ends those that were in the step, and no more
            self.num_errors += 1
            self._fail([one for one in engine.scheduler.running if one in self._under_way], _failed(error))
            return
        told = [(self._under_way[one], _news(one)) for one in grown if one in self._under_way]
        for one in grown:
            if one.ending:
                self._under_way.pop(one, None)
        self._tell(told)

    def _add(self, ticket: Ticket) -> None:
        if ticket.is_over:
            return
        assert self.engine is not None, "no base that answers no prompts is asked"
        try:
            ticket.sequence = self.engine.add(ticket.request)
            self._under_way[ticket.sequence] = ticket
        except InlayError as error:
            self._tell([(ticket, error)])
        except Exception as error:
            self._tell([(ticket, _failed(error))])

    def _abort(self, ticket: Ticket) -> None:
        if ticket.sequence is not None and self._under_way.pop(ticket.sequence, None) is not None:
            assert self.engine is not None, "it has a sequence"
            self.engine.abort(ticket.sequence)

    def _fail(self, sequences: list[Sequence], error: InlayError) -> None:
        told: list[tuple[Ticket, News | InlayError]] = []
        for one in sequences:
            ticket = self._under_way.pop(one)
            if self.engine is not None:
                self.engine.abort(one)
            told.append((ticket, error))
        self._tell(told)

    def _tell(self, told: list[tuple[Ticket, Any]]) -> None:
        """Bring news into the loops of those who wait for them."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Any]]] = {}
        for ticket, news in told:
            loops.setdefault(ticket.loop, []).append((ticket, news))
        for loop, some in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_deliver, some)


def _failed(error: Exception | None) -> CapacityError:
    """Why answers are not made, that nobody foresaw; None: the server ends."""
    reason = "the server ended" if error is None else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return CapacityError(explain("this answer could not be made", found=reason, do="ask again"))


def _deliver(told: list[tuple[Ticket, Any]]) -> None:
    for ticket, news in told:
        ticket.put(news)


def _news(sequence: Sequence) -> News:
    """What a step brought to a sequence that has grown, or ended."""
    has_grown = sequence.ending in (None, "stop", "length")
    first = has_grown and len(sequence.answer) == 1
    asked = sequence.request.num_logprobs is not None
    return News(
        token=sequence.tokens[-1] if has_grown else None,
        logprob=sequence.logprobs[-1] if has_grown and asked else None,
        ending=sequence.ending,
        prompt_logprobs=tuple(sequence.prompt_logprobs) if first else (),
    )
