"""The thread that steps the engine: what comes out, what ends, and what cannot hold it up."""

import asyncio
import threading
import time

import pytest

from inlay.errors import CapacityError, ConfigError
from inlay.generation.engine import Engine
from inlay.generation.sequence import Request
from inlay.serve.worker import Worker
from tests.support import models

NEW = 12


@pytest.fixture(scope="module")
def engine():
    from inlay.model.adapter_set import AdapterSet

    held = AdapterSet(models.model("llama"))
    return Engine(held.module, held.router, cache_tokens=512, max_rows=4)


@pytest.fixture
def worker(engine):
    made = Worker(engine)
    made.start()
    yield made
    made.stop()
    assert engine.blocks.problems([]) == []
    assert (len(engine.scheduler), engine.blocks.num_free) == (0, engine.blocks.count)


def _requests(number, new=NEW, **settings):
    return [Request(tokens=(5 + i, 7, 9), max_new_tokens=new, **settings) for i in range(number)]


async def _all(ticket):
    while True:
        await ticket.next()


async def _tokens(worker, request):
    ticket = worker.submit(request)
    tokens, ending = [], None
    try:
        while ending is None:
            news = await ticket.next()
            tokens.append(news.token)
            ending = news.ending
        return tokens, ending
    finally:
        worker.close(ticket)


def test_answers_are_those_of_the_engine(engine, worker):
    requests = _requests(6)

    async def ask():
        return await asyncio.gather(*(_tokens(worker, request) for request in requests))

    found = asyncio.run(ask())
    alone = [next(engine.run([request])).answer for request in requests]
    assert found == [(answer, "length") for answer in alone]
    assert worker.num_open == 0


def test_what_the_engine_refuses_is_raised_where_it_was_asked(worker):
    with pytest.raises(ConfigError, match="has no room"):
        asyncio.run(_tokens(worker, Request(tokens=(5,), max_new_tokens=10_000)))


def test_an_answer_that_nobody_waits_for_ends(engine, worker):
    async def ask():
        left, kept = _requests(2, new=200)
        ticket = worker.submit(left)
        first = await ticket.next()
        worker.close(ticket)
        worker.close(ticket)  # once more does nothing
        await _tokens(worker, _requests(1)[0])
        worker.between(lambda: None).result()
        return first, worker.num_open, list(engine.scheduler.running), kept

    first, num_open, running, _ = asyncio.run(ask())
    assert (first.ending, num_open, running) == (None, 0, [])


def test_an_answer_that_was_left_before_it_began_never_begins(engine, worker):
    held, go = threading.Event(), threading.Event()
    worker.between(lambda: (held.set(), go.wait(10)))

    async def ask():
        worker.close(worker.submit(_requests(1)[0]))
        go.set()
        before = worker.num_steps
        worker.between(lambda: None).result()
        return worker.num_steps - before

    assert held.wait(10)
    assert asyncio.run(ask()) == 0


def test_a_step_that_fails_ends_its_answers_and_no_others(engine, worker, monkeypatch):
    step, failures = engine.step, [RuntimeError("the disk is on fire")]

    def stepped():
        if len(engine.scheduler.running) == 4 and failures:
            raise failures.pop()
        return step()

    monkeypatch.setattr(engine, "step", stepped)

    async def ask():
        return await asyncio.gather(*(_tokens(worker, r) for r in _requests(6)), return_exceptions=True)

    found = asyncio.run(ask())
    broken = [one for one in found if isinstance(one, CapacityError)]
    assert (len(broken), worker.num_errors) == (4, 1)
    assert all("the disk is on fire" in str(error) for error in broken)
    assert [ending for _, ending in (one for one in found if isinstance(one, tuple))] == ["length"] * 2
    assert asyncio.run(_tokens(worker, _requests(1)[0]))[1] == "length"


def test_a_reader_that_is_slow_holds_nobody_up(worker):
    async def ask():
        slow = worker.submit(_requests(1, new=100)[0])
        await slow.next()
        begun = worker.num_steps
        quick = await _tokens(worker, _requests(2)[1])  # nobody reads the other meanwhile
        steps = worker.num_steps - begun
        rest = [await slow.next() for _ in range(99)]
        worker.close(slow)
        return quick, steps, rest

    quick, steps, rest = asyncio.run(ask())
    assert (quick[1], rest[-1].ending, rest[0].ending) == ("length", "length", None)
    assert steps < 3 * NEW


def test_what_changes_the_model_happens_between_two_steps(engine, worker, monkeypatch):
    step, inside, seen = engine.step, [], []

    def stepped():
        inside.append(True)
        time.sleep(0.002)
        found = step()
        inside.pop()
        return found

    monkeypatch.setattr(engine, "step", stepped)

    async def ask():
        asked = asyncio.ensure_future(_tokens(worker, _requests(1)[0]))
        await asyncio.sleep(0.01)
        for _ in range(5):
            done = worker.between(lambda: seen.append((threading.current_thread().name, list(inside))))
            await asyncio.wrap_future(done)
        return await asked

    asyncio.run(ask())
    assert seen == [("inlay-engine", [])] * 5
    with pytest.raises(ZeroDivisionError):
        worker.between(lambda: 1 / 0).result()


def test_a_server_that_ends_says_so_to_who_waits(engine):
    worker = Worker(engine)
    worker.start()

    async def ask():
        ticket = worker.submit(_requests(1, new=400)[0])
        await ticket.next()
        await asyncio.get_running_loop().run_in_executor(None, worker.stop)
        with pytest.raises(CapacityError, match="could not be made"):
            await _all(ticket)
        worker.close(ticket)

    asyncio.run(ask())
    assert engine.blocks.num_free == engine.blocks.count
