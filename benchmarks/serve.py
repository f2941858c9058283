"""What a server does with many clients and adapters: python -m benchmarks.serve [PART [SHAPE]]

PART is one of these, or all of them where nothing is said; SHAPE is 135m, in bfloat16, over HTTP on this machine.

    clients   8 clients, each with an adapter of its own (r = 16, all linear maps): requests a second, beside peft that switches
    many      1 to 1,000 adapters (r = 4, q and v), drawn by a power law, in a budget of a tenth of them: tokens a second
    loading   an adapter is loaded while 4 answers stream: how long that takes, and how long any of them waits for a token
    shared    8 requests with 1,500 tokens in front that are the same, and with such that are not
    cycles    an adapter is loaded, asked and unloaded, again and again: memory and descriptors
"""

import asyncio
import contextlib
import gc
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import peft
import psutil
import torch
from transformers import AutoModelForCausalLM

import inlay
from benchmarks import shapes
from inlay.http.server import Setup, server, serving
from inlay.process import settled
from inlay.serve.slots import Limits

PROMPT, NEW, CLIENTS = 16, 32, 8
NUM_REQUESTS = 64
SHARED = 1500
CYCLES, ASKED = 10_000, 5


def main(part: str = "all", shape: str = "135m") -> None:
    """Print the figures of a part."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        shapes.directory(shape, folder / "base", torch.bfloat16)
        base = inlay.load(folder / "base", dtype="bfloat16")
        for name in PARTS if part == "all" else (part,):
            PARTS[name](base, folder)


@contextlib.contextmanager
def running(base: Any, directory: Path, budget: int = 2_000_000_000) -> Iterator[tuple[Any, str]]:
    """(a service with the adapters in a folder, its address)."""
    setup = Setup(directories=(directory,), limits=Limits(budget_bytes=budget))
    with serving(base, setup) as service, settled():
        made = server(service, "127.0.0.1", 0)
        thread = threading.Thread(target=made.run)
        thread.start()
        made.listening.wait()
        try:
            yield service, f"http://127.0.0.1:{made.port}"
        finally:
            made.stop()
            thread.join()


def adapters(base: Any, directory: Path, count: int, method: Any) -> list[str]:
    """The names of so many adapters in a folder: the same random numbers, since speed does not depend on them."""
    directory.mkdir()
    for tensor in base.attach(method, "made").tensors():
        tensor.normal_(std=0.01)
    (directory / "a0").mkdir()
    base.save("made", directory / "a0", {})
    base.detach("made")
    for number in range(1, count):
        shutil.copytree(directory / "a0", directory / f"a{number}", copy_function=os.link)
    return [f"a{number}" for number in range(count)]


def body(model: str, tokens: list[int], new: int = NEW, **more: Any) -> dict[str, Any]:
    """A request for exactly so many tokens."""
    return {"model": model, "prompt": tokens, "max_tokens": new, "temperature": 0, "ignore_eos": True, **more}


def drawn(rng: random.Random, count: int = PROMPT) -> list[int]:
    """A prompt."""
    return [rng.randrange(3, 400) for _ in range(count)]


def asked(address: str, bodies: list[dict[str, Any]], clients: int = CLIENTS) -> float:
    """How many seconds some clients take for these requests, each the next as soon as it has an answer."""

    async def all_of_them() -> float:
        left = iter(bodies)
        async with httpx.AsyncClient(base_url=address, timeout=600) as client:

            async def one() -> None:
                for each in left:
                    response = await client.post("/v1/completions", json=each)
                    assert response.status_code == 200, response.text

            start = time.perf_counter()
            await asyncio.gather(*(one() for _ in range(clients)))
            return time.perf_counter() - start

    return asyncio.run(all_of_them())


def clients(base: Any, folder: Path) -> None:
    """8 clients, 8 adapters."""
    names, rng = adapters(base, folder / "eight", CLIENTS, inlay.Lora(r=16)), random.Random(0)
    rows = [(name, drawn(rng)) for name in names * 2]
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16).eval()
    config = peft.LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    switched = peft.get_peft_model(theirs, config, adapter_name=names[0])
    for name in names[1:]:
        switched.add_adapter(name, config)

    def switching() -> float:
        start = time.perf_counter()
        for name, row in rows:
            switched.set_adapter(name)
            ids = torch.tensor([row])
            more: Any = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
            with torch.no_grad():
                switched.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
        return time.perf_counter() - start

    with running(base, folder / "eight") as (_, address):
        ours, others = [], []
        for _ in range(3):
            ours.append(asked(address, [body(name, row) for name, row in rows]))
            others.append(switching())
    one, other = len(rows) / statistics.median(ours[1:]), len(rows) / statistics.median(others[1:])
    print(f"clients   {one:.2f} requests a second, peft that switches {other:.2f}: {one / other:.2f} x", flush=True)


def many(base: Any, folder: Path) -> None:
    """Adapters drawn by a power law."""
    method, rng = inlay.Lora(r=4, target_modules="q_proj,v_proj"), random.Random(0)
    names = adapters(base, folder / "many", 1000, method)
    size = (folder / "many" / "a0" / "adapter_model.safetensors").stat().st_size
    with running(base, folder / "many", budget=100 * size) as (service, address):
        asked(address, [body(names[0], drawn(rng)) for _ in range(CLIENTS)])
        rates: dict[int, list[float]] = {}
        for count in (1, 10, 100, 1000) * 3:
            weights = [1 / rank for rank in range(1, count + 1)]
            bodies = [body(name, drawn(rng)) for name in rng.choices(names[:count], weights, k=NUM_REQUESTS)]
            rates.setdefault(count, []).append(NUM_REQUESTS * NEW / asked(address, bodies))
        loaded = len(service.slots.loaded())
        within = f"{service.slots.num_bytes / 1e6:.0f} MB of {100 * size / 1e6:.0f}"
    first = statistics.median(rates[1])
    for count, found in rates.items():
        rate = statistics.median(found)
        print(f"many      {count:5,} adapters: {rate:.0f} tokens a second, {rate / first:.2f} of one", flush=True)
    print(f"many      {loaded} loaded in the end, {within}", flush=True)


def loading(base: Any, folder: Path) -> None:
    """Loads while others stream."""
    names, rng = adapters(base, folder / "loading", 2, inlay.Lora(r=16)), random.Random(0)
    loads, waits = list[tuple[float, float]](), list[tuple[float, float]]()  # when they begin and end
    said = {str(base.tokenizer("a")["input_ids"][-1]): 100}  # a token that has a text, and so a part of the stream

    async def streaming(client: httpx.AsyncClient) -> None:
        last = None
        async with client.stream(
            "POST", "/v1/completions", json=body(names[0], drawn(rng), 300, stream=True, logit_bias=said)
        ) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    waits.extend([] if last is None else [(last, now)])
                    last = now

    async def both(address: str) -> None:
        async with httpx.AsyncClient(base_url=address, timeout=600) as client:
            tasks = [asyncio.create_task(streaming(client)) for _ in range(4)]
            await asyncio.sleep(3)
            for _ in range(10):
                start = time.perf_counter()
                about = {"lora_name": "new", "lora_path": str(folder / "loading" / "a1"), "load_inplace": True}
                response = await client.post("/v1/load_lora_adapter", json=about)
                assert response.status_code == 200, response.text
                loads.append((start, time.perf_counter()))
                await asyncio.sleep(0.2)
            await asyncio.gather(*tasks)

    with running(base, folder / "loading") as (_, address):
        asked(address, [body(names[0], drawn(rng))])
        asyncio.run(both(address))
    took = sorted(stop - start for start, stop in loads)
    print(f"loading   {milliseconds(took)} for a load", flush=True)
    beside = {wait for wait in waits for load in loads if wait[0] < load[1] and load[0] < wait[1]}
    alone = [wait for wait in waits if wait not in beside and wait[0] > loads[0][0]]
    for name, some in (("beside a load", beside), ("else", alone)):
        print(f"loading   {milliseconds(stop - start for start, stop in some)} from token to token, {name}", flush=True)


def milliseconds(seconds: Iterable[float]) -> str:
    """The median, and from which to which."""
    every = sorted(1e3 * each for each in seconds)
    return f"{statistics.median(every):.0f} ms ({every[0]:.0f} to {every[-1]:.0f})"


def shared(base: Any, folder: Path) -> None:
    """A long beginning that is shared, or not."""
    rng = random.Random(0)
    (folder / "none").mkdir()
    taken: dict[str, list[float]] = {"shared": [], "not shared": []}
    with running(base, folder / "none") as (service, address):
        asked(address, [body(service.name, drawn(rng))])
        for _ in range(3):
            front = drawn(rng, SHARED)
            for way, found in taken.items():
                bodies = [
                    body(service.name, (front if way == "shared" else drawn(rng, SHARED)) + drawn(rng), 1)
                    for _ in range(CLIENTS)
                ]
                found.append(asked(address, bodies))
    one, other = (statistics.median(found) for found in taken.values())
    print(f"shared    {one:.2f} s, {other:.2f} s where they are not the same: {other / one:.2f} x", flush=True)


def cycles(base: Any, folder: Path) -> None:
    """Loads, some questions and unloads."""
    names, rng = adapters(base, folder / "cycles", 2, inlay.Lora(r=4, target_modules="q_proj,v_proj")), random.Random(0)
    process, seen = psutil.Process(), list[tuple[int, int]]()
    count = int(os.environ.get("INLAY_CYCLES", CYCLES))
    with running(base, folder / "cycles") as (_, address), httpx.Client(base_url=address, timeout=60) as client:
        for number in range(count):
            about = {"lora_name": "new", "lora_path": str(folder / "cycles" / names[number % 2])}
            assert client.post("/v1/load_lora_adapter", json=about).status_code == 200
            for _ in range(ASKED):
                assert client.post("/v1/completions", json=body("new", drawn(rng), 1)).status_code == 200
            assert client.post("/v1/unload_lora_adapter", json={"lora_name": "new"}).status_code == 200
            if number + 1 in (count // 10, count):
                gc.collect()
                seen.append((process.memory_info().rss, process.num_fds()))
    (before, few), (after, now) = seen
    grown = f"{before / 1e6:.1f} MB after a tenth, {after / 1e6:.1f} in the end: {100 * (after / before - 1):+.2f} %"
    print(f"cycles    {count:,}, {count * ASKED:,} requests: {grown}; descriptors {few}, {now}", flush=True)


PARTS = {"clients": clients, "many": many, "loading": loading, "shared": shared, "cycles": cycles}
"""By name."""


if __name__ == "__main__":
    main(*sys.argv[1:])
