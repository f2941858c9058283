"""Servers on this machine's loopback, over small bases, with adapters whose answers betray them."""

import contextlib
import threading

import inlay
from inlay.base.load import load
from inlay.http.server import Setup, server, serving
from tests.support import bases, models

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}: {{ m.content }};{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
)
"""A chat template that the small tokenizer has characters for."""

NAMES = ("red", "green", "blue")


def made(place, names=NAMES, template=TEMPLATE):
    """(the directory of a small base, a folder of adapters on it, each of which answers otherwise)."""
    directory = bases.directory(place / "tiny", template=template)
    base = load(directory, dtype="float32")
    for seed, name in enumerate(names):
        save(base, place / "adapters" / name, seed)
    return directory, place / "adapters"


def save(base, path, seed, r=2):
    """An adapter of random numbers on disk."""
    models.randomize(base.create(inlay.Lora(r=r, lora_alpha=4), path.name, seed=seed), seed=seed)
    path.mkdir(parents=True, exist_ok=True)
    base.save(path.name, path, {})
    base.detach(path.name)
    return path


@contextlib.contextmanager
def running(base, setup=None, **how):
    """(a service, its address) for as long as the block."""
    with serving(base, setup or Setup()) as service:
        made = server(service, "127.0.0.1", 0, drain_seconds=how.pop("drain_seconds", 2), **how)
        thread = threading.Thread(target=made.run)
        thread.start()
        try:
            assert made.listening.wait(20), "it listens"
            yield service, f"http://127.0.0.1:{made.port}"
        finally:
            made.stop()
            thread.join()


def alone(base, directory, prompt, **settings):
    """What a base answers under an adapter without a server: the text of a greedy answer."""
    name = None if directory is None else base.attach(directory, f"alone {directory.name}").name
    try:
        return base.generate([prompt], name, **settings)[0]
    finally:
        if name is not None:
            base.detach(name)
