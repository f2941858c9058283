"""What a micro-batch takes, counted without numbers: what the same code takes with them."""

import pytest
import torch

import inlay
from inlay import methods
from inlay.io.checkpoint import open_checkpoint
from inlay.planning import counted
from inlay.planning.outline import outline
from inlay.tasks import _memory
from tests.support import bases
from tests.support import tasks as task_bases

METHODS = ("lora", "dora", "ia3", "vera", "loha", "oft", "bottleneck", "ln_tuning")

PART = 0.03
"""How far both may differ: masks, and the tensors that hold positions."""


def _both(place, rows, method, dtype, task="causal-lm"):
    """(counted of an outline, counted of the base itself)."""
    base = inlay.load(place, task=task, dtype=dtype, labels=("no", "yes") if "class" in task else ())
    examples = _examples(base, rows)
    made = outline(open_checkpoint(place), base.spec, base.labels, base.dtype, base.tokenizer)
    without = counted.counted(counted.stand_in(made, method, None), examples)
    base.create(method, counted.NAME).train_()
    live = counted._Live()
    assert without is not None
    with base.using(counted.NAME), live:
        base.spec.loss_of(base, examples).backward()
    return without.live_bytes, live.most


def _examples(base, rows):
    data = base.spec.read(rows)
    return base.spec.prepare(data.rows, base, 200, "completions", None).examples[:6]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = tmp_path_factory.mktemp("counted")
    bases.directory(made / "base")
    bases.jsonl(made / "rows.jsonl", bases.rows(40))
    return made


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_counted_without_numbers_is_what_is_counted_with_them(place, name, dtype):
    without, with_numbers = _both(place / "base", place / "rows.jsonl", methods.find(name)(), dtype)
    assert without == pytest.approx(with_numbers, rel=PART)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_of_virtual_tokens_the_number_is_known_alone(place, name):
    without, with_numbers = _both(place / "base", place / "rows.jsonl", methods.find(name)(), "float32")
    assert without == pytest.approx(with_numbers, rel=0.2)


def test_recomputed_activations_are_not_counted(place, monkeypatch):
    found = []
    for threshold in (1 << 60, 0):
        monkeypatch.setattr(_memory, "RECOMPUTE_BYTES", threshold)
        monkeypatch.setattr("inlay.core.recompute.MIN_ELEMENTS", 1)
        found.append(_both(place / "base", place / "rows.jsonl", inlay.Lora(r=3), "float32"))
    assert found[1][0] < 0.9 * found[0][0]
    for without, with_numbers in found:
        assert without == pytest.approx(with_numbers, rel=PART)


@pytest.mark.parametrize(
    ("family", "task"),
    [("bert", "sequence-classification"), ("bert", "embedding"), ("t5", "seq2seq")],
)
def test_so_it_is_for_every_task(tmp_path, family, task):
    task_bases.directory(tmp_path / "base", family)
    bases.jsonl(tmp_path / "rows.jsonl", task_bases.rows(task, 40))
    without, with_numbers = _both(tmp_path / "base", tmp_path / "rows.jsonl", inlay.Lora(r=3), "float32", task)
    assert without == pytest.approx(with_numbers, rel=0.15)  # every label counts where none can be looked at


def test_a_quantised_base_takes_no_more_than_rows_of_it(place):
    base = inlay.load(place / "base")
    examples = _examples(base, place / "rows.jsonl")
    made = outline(open_checkpoint(place / "base"), base.spec, (), torch.bfloat16, base.tokenizer)
    plain, packed = (counted.counted(counted.stand_in(made, inlay.Lora(r=3), s), examples) for s in (None, "nf4"))
    assert plain.live_bytes <= packed.live_bytes


def test_code_that_asks_for_numbers_is_not_counted(place):
    base = inlay.load(place / "base")
    examples = _examples(base, place / "rows.jsonl")
    made = outline(open_checkpoint(place / "base"), base.spec, (), torch.float32, base.tokenizer)
    there = counted.stand_in(made, inlay.Lora(r=3), None)
    there.model.base_model.forward = lambda **given: given["input_ids"].numpy()
    assert counted.counted(there, examples) is None


def test_recomputing_is_counted_as_it_is_asked_for(place, monkeypatch):
    monkeypatch.setattr("inlay.core.recompute.MIN_ELEMENTS", 1)
    base = inlay.load(place / "base")
    examples = _examples(base, place / "rows.jsonl")
    made = counted.stand_in(
        outline(open_checkpoint(place / "base"), base.spec, (), torch.float32, base.tokenizer), inlay.Lora(r=3), None
    )
    kept, recomputed = (counted.counted(made, examples, recompute) for recompute in (False, True))
    assert recomputed.live_bytes < 0.9 * kept.live_bytes


def test_products_are_counted_by_their_shapes(place):
    base = inlay.load(place / "base")
    examples = _examples(base, place / "rows.jsonl")
    made = counted.stand_in(
        outline(open_checkpoint(place / "base"), base.spec, (), torch.float32, base.tokenizer), inlay.Lora(r=3), None
    )
    one, same, both = (
        counted.counted(made, rows).num_products for rows in ([examples[0]], [examples[0]], examples[:2])
    )
    linears = {(linear.in_features, linear.out_features) for linear in base.linears.values()}
    assert one == same >= len(linears)
    assert both == one  # as many shapes, of other sizes
