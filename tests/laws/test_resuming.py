"""The state of a run is the whole of it: copied between two steps and put into a run prepared anew, it gives the same bytes.

Copied means through files: safetensors, and JSON. The run that takes it has had its own tensors spoiled, so that nothing comes
back by being drawn anew. Beside it every part of the state is left out once, which has to show.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load, save

import inlay
from inlay.core import float32
from inlay.errors import CompatibilityError, FormatError
from inlay.training import job as jobs
from inlay.training import loop
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Settings
from inlay.training.state import MIN_ROWS_TO_CHOOSE, NOT_KEPT
from tests.support import bases, tasks

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, AT = 9, (1, 4, 7)
"""Steps of a run, more than two passes over its rows; and after how many of them it is copied: two before an evaluation, one
after."""

SETTINGS = dict(max_steps=STEPS, batch_size=6, learning_rate=2e-2, eval_every=3)
LORA = inlay.Lora(r=3, lora_alpha=5)
ADALORA = inlay.Adalora(init_r=4, target_r=2, lora_alpha=5, lora_dropout=0.2, tinit=1, tfinal=3)

CASES = {
    "lora": (LORA, {}),
    "lora-dropout-of-parts": (inlay.Lora(r=3, lora_alpha=5, lora_dropout=0.3), {"micro_batch_tokens": 60}),
    "lora-two-rates": (inlay.Lora(r=3, lora_alpha=5, loraplus_lr_ratio=4.0), {"weight_decay": 0.1}),
    "lora-frozen-factors": (inlay.Lora(r=3, lora_alpha=5, freeze_a=True, bias="all"), {}),
    "lora-tokens": (inlay.Lora(r=3, lora_alpha=5, trainable_token_indices=(30, 20)), {}),
    "pissa": (inlay.Lora(r=3, lora_alpha=5, initializer="pissa"), {}),
    "eva": (inlay.Lora(r=3, lora_alpha=5, initializer="eva"), {}),
    "dora-dropout": (inlay.Dora(r=3, lora_alpha=5, lora_dropout=0.2), {}),
    "adalora": (ADALORA, {}),
    "vera": (inlay.Vera(r=5), {}),
    "ia3": (inlay.Ia3(), {}),
    "bottleneck": (inlay.Bottleneck(bottleneck_size=3), {}),
    "prefix": (inlay.Prefix(num_virtual_tokens=3), {}),
    "p_tuning": (inlay.PTuning(num_virtual_tokens=3, encoder_hidden_size=7), {}),
    "full": (inlay.Full(), {}),
}


EVERY = ("lora-dropout-of-parts", "adalora")
"""The cases that are copied at several steps; the others at one."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("resuming")
    bases.directory(made / "base")
    tasks.directory(made / "bert", "bert")
    return made


@pytest.fixture(scope="module")
def base(place):
    return inlay.load(place / "base", dtype="float32")


def prepared(base, tmp_path, method, from_adapter=None, made=bases.rows, **settings):
    """A run over some rows, with enough others held out for the best adapter to be chosen."""
    rows, held_out = made(24), made(24 + MIN_ROWS_TO_CHOOSE)[24:]
    settings = Settings(**{**SETTINGS, **settings})
    how = dict(output=tmp_path / "new", eval_data=held_out, from_adapter=from_adapter, settings=settings)
    return jobs.prepare(base, rows, RunSpec(method=method, **how))


def finished(job, listener=lambda progress: None):
    """What a run comes to: the bytes of what it made, and its curves."""
    progress = loop.run(job.base, job.state, job.rows.train.examples, job.evaluated, listener=listener)
    tensors = {
        f"{path}/{name}": tensor.detach().contiguous()
        for path, params in job.base.detach("new").params.items()
        for name, tensor in params.items()
    }
    curves = (progress.step, progress.losses, progress.eval_losses, progress.num_tokens, progress.num_supervised)
    return save(tensors), curves, progress.best_step, min(progress.step_seconds, progress.eval_seconds) >= LONG


LONG = 1e6
"""Seconds, more than a test takes: those that were spent before a copy count after it."""


def written(state):
    """A state as files hold it."""
    values = state.values()
    spent = {key: values["progress"][key] + LONG for key in ("step_seconds", "eval_seconds")}
    tensors = {name: tensor.contiguous() for name, tensor in state.tensors().items()}
    return save(tensors), json.dumps({**values, "progress": values["progress"] | spent})


def undisturbed(job):
    """What a run comes to, and copies of its state on the way."""
    copies = {}

    def listen(progress):
        if not progress.doing and progress.step in (0, *AT):
            copies[progress.step] = written(job.state)

    return finished(job, listen)[:-1], copies


def spoiled(job):
    """A run whose own tensors are no use."""
    with torch.no_grad():
        for name, tensor in job.state.tensors().items():
            if name != "random":
                tensor.add_(1)
    torch.manual_seed(7)
    return job


def put(job, copy, without=None):
    """A copy put into a run, but for a part of it, which stays as it is in that run."""
    tensors, values = load(copy[0]), json.loads(copy[1])
    own_tensors, own_values = job.state.tensors(), job.state.values()
    if without in values:
        assert job.state.restore_(tensors, {**values, without: own_values[without]}) == []
    elif without is not None and "." in without:
        part, key = without.split(".")
        assert job.state.restore_(tensors, {**values, part: {**values[part], key: own_values[part][key]}}) == []
    else:
        kept = {key: t for key, t in tensors.items() if key.split("/")[0] != without}
        own = {key: t.clone() for key, t in own_tensors.items() if key.split("/")[0] == without}
        assert job.state.restore_({**kept, **own}, values) == []
    return job


ALIKE = ("pissa", "ia3", "bottleneck", "p_tuning")
"""Cases whose state has the parts of another case's: slow."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in ALIKE else []) for n in CASES])
def test_a_copied_state_gives_the_same_bytes(base, tmp_path, name):
    method, settings = CASES[name]
    wanted, copies = undisturbed(prepared(base, tmp_path, method, **settings))
    assert sorted(copies) == [0, *AT]
    for step in (0, *AT) if name in EVERY else AT[1:2]:
        copy = copies[step]
        assert finished(put(spoiled(prepared(base, tmp_path, method, **settings)), copy)) == (*wanted, True)


def test_the_state_of_a_classifier_is_whole(place, tmp_path):
    task = "sequence-classification"
    base = inlay.load(place / "bert", task=task, labels=("no", "yes"), dtype="float32")

    def job():
        method = inlay.Lora(r=3, lora_alpha=5, lora_dropout=0.1)
        return prepared(base, tmp_path, method, made=lambda number: tasks.rows(task, number))

    wanted, copies = undisturbed(job())
    assert finished(put(spoiled(job()), copies[4])) == (*wanted, True)


def test_the_state_of_a_run_that_goes_on_from_an_adapter_is_whole(base, tmp_path):
    inlay.train(base, bases.rows(24), method=LORA, output=tmp_path / "first", max_steps=3, progress=False)
    base.detach("first")

    def job():
        return prepared(base, tmp_path, None, from_adapter=tmp_path / "first")

    wanted, copies = undisturbed(job())
    for copy in copies.values():
        assert finished(put(spoiled(job()), copy)) == (*wanted, True)


PARTS = ["adapter", "best", "optimizer", "method", "random"]
DERIVED = ("num_steps", "num_evaluations")
"""What every run of the plan has."""


@pytest.fixture
def falling(monkeypatch):
    """The lowest held-out loss is that of the first evaluation."""
    losses = {0: 5.0, 3: 1.0, 6: 3.0, 9: 2.0}
    standing = {}
    whole = loop._Run.__init__

    def began(self, base, state, *given, **how):
        standing["state"] = state
        whole(self, base, state, *given, **how)

    def evaluate(base, rows, *given, **how):
        return losses[0 if rows is None else standing["state"].progress.step]

    monkeypatch.setattr(loop._Run, "__init__", began)
    monkeypatch.setattr(loop, "evaluate", evaluate)


def progress_fields(job):
    return [f"progress.{key}" for key in vars(job.state.progress) if key not in (*NOT_KEPT, *DERIVED)]


def test_nothing_can_be_left_out(base, tmp_path, falling):
    wanted, copies = undisturbed(prepared(base, tmp_path, ADALORA))
    assert wanted[2] == 3  # the best is found before the copy
    assert {name.split("/")[0] for name in load(copies[4][0])} == {*PARTS}
    parts = [*PARTS, "best.loss", "best.step", *progress_fields(prepared(base, tmp_path, ADALORA))]
    seen = {}
    for part in [None, *parts]:
        try:
            seen[part] = finished(put(spoiled(prepared(base, tmp_path, ADALORA)), copies[4], without=part))
        except Exception as error:
            seen[part] = error
    assert seen.pop(None) == (*wanted, True)
    assert [part for part, found in seen.items() if found == (*wanted, True)] == []


def test_shared_tensors_can_not_be_left_out(base, tmp_path):
    method = inlay.Vera(r=5)
    wanted, copies = undisturbed(prepared(base, tmp_path, method))
    left_out = finished(put(spoiled(prepared(base, tmp_path, method)), copies[4], without="shared"))
    assert left_out[1] != wanted[1]


def test_a_state_of_another_run_is_refused(base, tmp_path):
    copy = written(prepared(base, tmp_path, LORA).state)
    for other in (
        prepared(base, tmp_path, LORA, seed=1),
        prepared(base, tmp_path, LORA, max_steps=8),
        prepared(base, tmp_path, inlay.Lora(r=3, lora_alpha=7)),
        prepared(base, tmp_path, LORA, made=lambda number: bases.rows(number, seed=1)),
    ):
        with pytest.raises(CompatibilityError, match="the run to go on from is another one"):
            put(other, copy)


def test_a_state_without_a_tensor_is_refused(base, tmp_path):
    job = prepared(base, tmp_path, LORA)
    tensors, values = job.state.tensors(), job.state.values()
    name = next(iter(tensors))
    for changed in ({name: tensors[name][:-1]}, {}):
        with pytest.raises(FormatError, match="lacks tensors") as caught:
            job.state.restore_({key: t for key, t in tensors.items() if key != name} | changed, values)
        assert caught.value.found == (name,)


def test_other_threads_and_versions_are_said(base, tmp_path):
    job = prepared(base, tmp_path, LORA)
    values = {**job.state.values(), "threads": 3, "versions": {**job.state.versions, "torch": "1.0"}}
    assert job.state.restore_(job.state.tensors(), values) == [
        f"torch: 1.0 before, {torch.__version__} now",
        "threads: 3 before, 1 now",
    ]
    assert math.isinf(job.state.best.loss)


@pytest.mark.parametrize("before", [float32.BLAS, float32.ONEDNN])
def test_a_run_goes_on_with_the_library_of_its_products(base, tmp_path, before):
    job = prepared(base, tmp_path, LORA)
    other = float32.ONEDNN if before == float32.BLAS else float32.BLAS
    with float32.only(before):
        values = job.state.values()
    with float32.only(other):
        assert job.state.restore_(job.state.tensors(), values) == []
        assert float32.chosen() == before
    with float32.only(other):  # another processor is another matter
        assert job.state.restore_(job.state.tensors(), {**values, "processor": "an abacus"}) == [
            f"processor: an abacus before, {values['processor']} now",
            f"float32 products: {before} before, {other} now",
        ]
        assert float32.chosen() == other
    with float32.only(float32.ONEDNN):  # a state of a version that had one library
        old = {key: value for key, value in values.items() if key not in ("processor", "float32 products")}
        assert job.state.restore_(job.state.tensors(), old) == []
        assert float32.chosen() == float32.BLAS


@pytest.mark.parametrize(
    "method",
    [LORA, inlay.Prefix(num_virtual_tokens=3), inlay.Lora(r=3, initializer="eva")],
    ids=["lora", "prefix", "eva"],
)
def test_a_run_that_is_prepared_and_dropped_leaves_the_base_as_it_was(base, tmp_path, method):
    def stand():
        modules = {path: id(module) for path, module in base.model.named_modules()}
        tensors = {name: (t.data_ptr(), t.requires_grad) for name, t in base.model.named_parameters()}
        return modules, tensors, list(base.adapters.values()), base.active, vars(base.model).get("forward")

    base.attach(inlay.Lora(r=2), "mine")
    before = stand()
    prepared(base, tmp_path, method)
    assert stand() == before
    base.detach("mine")
    before = stand()
    prepared(base, tmp_path, method)
    assert stand() == before
