"""Many clients at a time: each is answered by its own adapter, whoever comes, goes, hangs up or reads slowly."""

import asyncio
import itertools
import json
import random
import threading
import time

import httpx
import hypothesis
import openai
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from inlay.base.load import load
from inlay.http.server import Setup
from inlay.http.service import Bounds
from inlay.serve.slots import Limits
from tests.support import bases, servers

NAMES = ("red", "green", "blue", "black", "white")
NEW = 8


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """(a base, a folder of adapters, what each of them answers to each prompt)."""
    directory, adapters = servers.made(tmp_path_factory.mktemp("many"), NAMES)
    base = load(directory, dtype="float32")
    prompts = ["hi", "once", "why so?"]
    expected = {}
    for name in [None, *NAMES]:
        for prompt in prompts:
            said = [{"role": "user", "content": prompt}]
            expected[name, prompt] = servers.alone(base, name and adapters / name, said, max_new_tokens=NEW)
    answers = {name: tuple(expected[name, prompt] for prompt in prompts) for name in [None, *NAMES]}
    assert len(set(answers.values())) == len(answers), "an answer betrays its adapter"
    return base, adapters, expected


def _body(name, prompt, **more):
    said = [{"role": "user", "content": prompt}]
    return {"model": name or "tiny", "messages": said, "temperature": 0, "max_tokens": NEW, **more}


async def _streamed(client, body, pause=0.0, most=None):
    """The text of a stream; the client hangs up after `most` parts."""
    text, count = "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += event["choices"][0]["delta"].get("content") or ""
            count += 1
            await asyncio.sleep(pause)
            if count == most:
                return None
    return text


@pytest.mark.parametrize("seed", [0])
def test_each_is_answered_by_its_adapter_whoever_comes_and_goes(many, seed):
    base, adapters, expected = many
    limits = Limits(budget_bytes=3 * _num_bytes(many))
    setup = Setup(directories=(adapters,), limits=limits, cache_tokens=256, max_rows=6, bounds=Bounds(max_open=500))
    rng, wrong, whole = random.Random(seed), [], []

    async def one(client, number):
        name, prompt = rng.choice([None, *NAMES]), rng.choice(["hi", "once", "why so?"])
        way = rng.choice(["whole", "stream", "slow", "gone", "cancelled"])
        if way == "whole":
            response = await client.post("/v1/chat/completions", json=_body(name, prompt))
            said = response.json()["choices"][0]["message"]["content"]
        elif way == "cancelled":
            task = asyncio.ensure_future(client.post("/v1/chat/completions", json=_body(name, prompt)))
            await asyncio.sleep(rng.random() / 20)
            task.cancel()
            said = None
        else:
            pause = 0.02 if way == "slow" else 0.0
            most = rng.randrange(1, 4) if way == "gone" else None
            said = await _streamed(client, _body(name, prompt, stream=True), pause, most)
        if said is not None:
            whole.append(number)
            if said != expected[name, prompt]:
                wrong.append((name, prompt, said, expected[name, prompt]))

    async def loads(client, done):
        """An adapter is replaced again and again meanwhile; each answer is one or the other version's, and whole."""
        seen = set()
        for name in itertools.cycle(["red", "green"]):
            if done.is_set() and len(seen) == 2:
                return seen
            body = {"lora_name": "changing", "lora_path": str(adapters / name), "load_inplace": True}
            response = await client.post("/v1/load_lora_adapter", json=body)
            assert response.status_code == 200, response.text
            response = await client.post("/v1/chat/completions", json=_body("changing", "hi"))
            assert response.json()["choices"][0]["message"]["content"] == expected[name, "hi"]
            seen.add(name)
        return seen

    async def all_of_them(address):
        limits, done = httpx.Limits(max_connections=64), asyncio.Event()
        async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
            changing = asyncio.ensure_future(loads(client, done))
            await asyncio.gather(*(one(client, number) for number in range(64)))
            done.set()
            return await changing

    with servers.running(base, setup) as (service, address):
        assert asyncio.run(all_of_them(address)) == {"red", "green"}
        _settle(service)
        assert service.slots.num_bytes <= limits.budget_bytes
        assert service.worker.num_errors == 0
    assert not wrong
    assert len(whole) > 15
    assert len(base.adapters) <= 4


def _num_bytes(many):
    base, adapters, _ = many
    adapter = base.read(adapters / "red", "size")
    return sum(tensor.nbytes for tensor in adapter.tensors())


def _settle(service):
    """Wait until nothing is under way; everything was given back."""
    engine = service.worker.engine
    deadline = time.monotonic() + 20
    while (len(engine.scheduler) or service.worker.num_open) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (len(engine.scheduler), service.worker.num_open) == (0, 0)
    assert engine.blocks.num_free == engine.blocks.count
    assert all(version.users == 0 for version in service.slots.loaded())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_when_its_client_hangs_up(many, monkeypatch, stream):
    base, adapters, _ = many
    with servers.running(base, Setup(adapters={"red": adapters / "red"})) as (service, address):
        step = service.worker.engine.step
        monkeypatch.setattr(service.worker.engine, "step", lambda: (time.sleep(0.02), step())[1])
        body = _body("red", "hi", stream=stream) | {"max_tokens": 50, "ignore_eos": True}
        if stream:
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.3)
        _settle(service)
        assert service.worker.num_steps < 40


@pytest.mark.parametrize(("drain_seconds", "is_whole"), [(20, True), (1, False)])
def test_a_server_that_is_to_end_answers_what_is_under_way(many, monkeypatch, drain_seconds, is_whole):
    base, adapters, expected = many
    found = []
    with servers.running(base, Setup(adapters={"red": adapters / "red"}), drain_seconds=drain_seconds) as (
        service,
        address,
    ):
        step = service.worker.engine.step
        pause = 0.05 if is_whole else 0.5
        monkeypatch.setattr(service.worker.engine, "step", lambda: (time.sleep(pause), step())[1])

        def ask():
            response = httpx.post(f"{address}/v1/chat/completions", json=_body("red", "hi"), timeout=30)
            found.append(response.status_code)
            found.append(
                response.json()["choices"][0]["message"]["content"] if is_whole else response.json()["error"]["message"]
            )

        thread = threading.Thread(target=ask)
        thread.start()
        while not service.worker.num_steps:
            time.sleep(0.01)
    thread.join()
    assert found == ([200, expected["red", "hi"]] if is_whole else [503, "the server is going down"])


def test_texts_become_vectors_of_their_adapter(tmp_path):
    directory = bases.directory(tmp_path / "embedder")
    base = load(directory, task="embedding", dtype="float32")
    adapter = servers.save(base, tmp_path / "adapters" / "near", 5)
    wanted = {None: base.predict(["ab", "c"])}
    base.attach(adapter, "alone")
    wanted["near"] = base.predict(["ab", "c"], "alone")
    base.detach("alone")
    with servers.running(base, Setup(adapters={"near": adapter})) as (service, address):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
            for name in wanted:
                for encoding in ({}, {"encoding_format": "float"}):  # the client asks for base64 itself
                    said = client.embeddings.create(model=name or "embedder", input=["ab", "c"], **encoding)
                    for one, other in zip(said.data, wanted[name], strict=True):
                        assert one.embedding == pytest.approx(other["vector"], abs=1e-6)
                    assert (said.usage.prompt_tokens, said.usage.adapter_digest) == (
                        3,
                        service.slots.digest(name or ""),
                    )
            with pytest.raises(openai.BadRequestError, match="does not answer chats"):
                client.chat.completions.create(model="near", messages=[{"role": "user", "content": "x"}])
            with pytest.raises(openai.BadRequestError, match="dimensions"):
                client.embeddings.create(model="near", input="x", dimensions=3)
            with pytest.raises(openai.BadRequestError, match="takes 64"):
                client.embeddings.create(model="near", input="x" * 100)


@pytest.fixture(scope="module")
def schema(many):
    base, adapters, _ = many
    with servers.running(base, Setup(adapters={"red": adapters / "red"}, bounds=Bounds(max_new_tokens=8))) as (
        _,
        address,
    ):
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/{model}",
    "/tokenize",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/health",
    "/ready",
    "/metrics",
)


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("path", PATHS)
def test_schemathesis_finds_nothing(schema, path, mode):
    (operation,) = schema[path].values()
    assert {one.ok().path for one in schema.get_all_operations()} == set(PATHS)
    if mode == GenerationMode.NEGATIVE and operation.method == "get":
        return  # nothing is said there that could be wrong

    @hypothesis.settings(
        max_examples=8, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), database=None
    )
    @hypothesis.seed(4)
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        case.call_and_validate(excluded_checks=[positive_data_acceptance])  # a schema can't say which models there are

    ask()
