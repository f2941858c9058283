"""Several threads use one base at the same time, each with its own adapters and its own random numbers."""

import sys
import threading

import pytest
import torch

import inlay
from inlay.base.load import load
from tests.support import bases, models

METHODS = {
    "low": inlay.Lora(r=3, lora_alpha=40),
    "other": inlay.Lora(r=2, lora_alpha=60),
    "norms": inlay.LnTuning(),
    "prompt": inlay.Prompt(num_virtual_tokens=3),
    "prefix": inlay.Prefix(num_virtual_tokens=4),
}
ROUNDS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    made = load(bases.directory(tmp_path_factory.mktemp("base"), "llama"), dtype="float32")
    for seed, (name, method) in enumerate(METHODS.items()):
        models.randomize(made.attach(method, name), seed=seed)
    made.active = None
    return made


def _at_once(works):
    """Run all of these at the same time, again and again; what each of them gave."""
    found, switching = {name: [] for name in works}, sys.getswitchinterval()
    start = threading.Barrier(len(works))

    def repeat(name, work):
        start.wait()
        found[name] += [work() for _ in range(ROUNDS)]

    threads = [threading.Thread(target=repeat, args=item) for item in works.items()]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switching)
    return found


def test_each_thread_gets_the_logits_of_its_own_adapters(base):
    ids = models.tokens(2, 7)
    rows = {name: name for name in METHODS} | {"plain": None, "mixed": ["low", "other"], "half": [None, "norms"]}
    expected = {name: base.logits(ids, row) for name, row in rows.items()}
    found = _at_once({name: lambda row=row: base.logits(ids, row) for name, row in rows.items()})
    for name, logits in found.items():
        assert len(logits) == ROUNDS
        assert all(torch.equal(each, expected[name]) for each in logits), name
    assert base.active is None


def test_each_thread_draws_its_own_answers(base):
    def answered(adapter, seed):
        drawn = base.generate(["some words"], adapter, max_new_tokens=5, temperature=1.5, top_k=20, seed=seed, raw=True)
        return drawn[0]

    asked = {(name, seed): (name, seed) for name in ("low", "prefix", None) for seed in (1, 2)}
    expected = {key: answered(*key) for key in asked}
    assert len(set(expected.values())) > 3
    state = torch.get_rng_state()
    found = _at_once({key: lambda key=key: answered(*key) for key in asked})
    assert {key: set(answers) for key, answers in found.items()} == {key: {text} for key, text in expected.items()}
    assert torch.equal(torch.get_rng_state(), state)


def test_what_one_thread_uses_is_not_active_in_another(base):
    seen, inside, done = [], threading.Event(), threading.Event()

    def other():
        inside.wait()
        seen.append(base.active)
        with base.using("other"):
            seen.append(base.active)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with base.using("low"):
        inside.set()
        done.wait()
        assert base.active == "low"
    thread.join()
    assert seen == [None, "other"]


def test_an_adapter_that_is_detached_within_a_block_is_not_active_after_it(base):
    gone = models.randomize(base.attach(inlay.Lora(r=2), "gone"), seed=9)
    ids = models.tokens(1, 4)
    with base.using(None):
        base.detach("gone")
    assert base.active is None
    plain = base.logits(ids, None)
    with torch.no_grad():
        assert torch.equal(base.model(input_ids=ids).logits, plain)
    base.put(gone)
    assert not torch.equal(base.logits(ids, "gone"), plain)
    base.detach("gone")


def test_each_thread_drops_out_by_its_own_generator(base):
    adapter = models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=40, lora_dropout=0.4), "dropping"), seed=11)
    adapter.train_()
    base.active = None
    ids = models.tokens(2, 7)

    def logits(seed):
        with base.using("dropping", generator=torch.Generator().manual_seed(seed)):
            return base.model(input_ids=ids).logits.detach()

    expected = {seed: logits(seed) for seed in range(3)}
    assert not torch.equal(expected[0], expected[1])
    state = torch.get_rng_state()
    found = _at_once({seed: lambda seed=seed: logits(seed) for seed in expected})
    assert all(torch.equal(each, expected[seed]) for seed, many in found.items() for each in many)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    with base.using("dropping"):
        assert torch.equal(base.model(input_ids=ids).logits, expected[2])  # as torch's own dropout draws
    base.detach("dropping")
