"""Rows that begin alike, computed once: the loss and the gradients of rows that each go through the model by themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inlay
from inlay.core import attention
from inlay.packing import rows as batch
from inlay.packing import shared
from inlay.planning import foreseen
from inlay.tasks import _packed as loss
from inlay.text.mask import Example
from inlay.training import job as jobs
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Settings
from tests.equations.test_loss import FAMILIES, _base
from tests.equations.test_loss import llama as llama  # in float64
from tests.support import models


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """A few tokens in common are enough."""
    monkeypatch.setattr(shared, "FEWEST", 3)


def _row(ids, first, source="row"):
    """Trained on from token number `first` on, but for every third."""
    return Example(ids, [(i >= first and i % 3 != 1) or i == len(ids) - 1 for i in range(len(ids))], source)


def _drawn(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, models.VOCABULARY, (count,), generator=generator).tolist()


def _rows():
    """Two documents with questions, and rows of their own, mixed up."""
    one, other = _drawn(11, 1), _drawn(7, 2)
    rows = [_row(one + _drawn(n, 10 + n), 13) for n in (4, 9, 5, 4)] + [_row(other + _drawn(n, n), 8) for n in (3, 6)]
    rows += [_row(_drawn(n, 30 + n), 2) for n in (6, 14)]
    return [rows[i] for i in (6, 0, 4, 1, 7, 2, 5, 3)]


def _with_gradients(base, loss_of, rows):
    tensors = base.parameters()
    total = loss_of(base, rows)
    return total.item(), torch.autograd.grad(total, tensors)


def _one_by_one(base, rows):
    return sum(loss.loss_of(base, [row]) for row in rows)


def _assert_the_same(base, rows, rel=1e-5):
    actual, gradients = _with_gradients(base, loss.loss_of, rows)
    expected, others = _with_gradients(base, _one_by_one, rows)
    assert actual == pytest.approx(expected, rel=rel)
    for gradient, other in zip(gradients, others, strict=True):
        assert (gradient - other).norm() <= rel * other.norm() + 1e-12


def _adapted(path, name, method=None):
    family, changes = FAMILIES[name]
    base = _base(path / "base", family, **changes)
    models.randomize(base.attach(method or inlay.Lora(r=3, lora_alpha=5), "it"), seed=4)
    return base


@pytest.fixture
def hidden(monkeypatch):
    """How many tokens go through the model at a time, and how many branches are among them."""
    seen, real = [], loss._hidden

    def watched(base, packed, asked=None):
        seen.append((len(packed.labels), len(packed.parents)))
        return real(base, packed, asked)

    monkeypatch.setattr(loss, "_hidden", watched)
    return seen


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_that_begin_alike_have_the_loss_and_the_gradients_of_each_alone(tmp_path, hidden, name):
    base = _adapted(tmp_path, name)
    rows = _rows()
    loss.loss_of(base, rows[:1])  # what is tried first is tried
    del hidden[:]
    _assert_the_same(base, rows)
    assert loss._can_share[base] == ("sliding" not in name)
    whole, saved = sum(batch.pack([row]).lengths[0] for row in rows), 11 * 3 + 7 * 1
    assert ((whole, 0) if "sliding" in name else (whole - saved, 6)) in hidden


def test_a_window_that_is_shorter_than_a_row_is_met_in_the_middle(tmp_path, hidden):
    """The trial's rows are shorter than the window: the layer itself says that it can't."""
    base = _base(tmp_path / "base", "mistral", sliding_window=12)
    models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "it"), seed=4)
    assert loss.unpacked_because(base) is None
    assert loss._shares(base)
    _assert_the_same(base, _rows())
    assert not loss._can_share[base]


@settings(max_examples=25, deadline=None)
@given(
    begins=st.lists(st.integers(3, 12), min_size=1, max_size=3),
    rest=st.lists(st.tuples(st.integers(0, 2), st.integers(2, 9), st.integers(0, 3)), min_size=2, max_size=7),
    seed=st.integers(0, 99),
    most=st.integers(10, 60),
)
def test_rows_of_any_lengths_do(llama, begins, rest, seed, most):
    rows = []
    for which, length, first in rest:
        begin = _drawn(begins[which % len(begins)], which % len(begins))
        rows.append(_row(begin + _drawn(length, seed + length), max(1, len(begin) + first - 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "FEWEST", 3)
        _assert_the_same(llama, rows, rel=1e-6)
        parts = [*loss.parts(llama, rows, most)]
        assert sorted(map(id, (row for part in parts for row in part))) == sorted(map(id, rows))
        assert all(len(part) == 1 or loss.num_computed(llama, part) <= most for part in parts)
        total = sum(loss.loss_of(llama, part).item() for part in parts)
        assert total == pytest.approx(_one_by_one(llama, rows).item(), rel=1e-6)


def test_a_part_is_counted_as_it_is_computed(llama, monkeypatch):
    """Of rows with the same tokens, of which fewer are trained on in some, others are neighbours in a part than among all."""
    monkeypatch.setattr(shared, "FEWEST", 3)
    begin, end = [37, 24, 44, 53, 42, 66], [93, 51]
    rows = [_row(begin + end, 6), *(_row(begin + end, 5) for _ in range(3)), _row([*begin, 15, 29, 30], 6)]
    parts = [*loss.parts(llama, rows, 20)]
    assert sorted(map(id, (row for part in parts for row in part))) == sorted(map(id, rows))
    assert all(loss.num_computed(llama, part) <= 20 for part in parts)


def test_planted_a_branch_that_does_not_see_its_document_is_refused(tmp_path, monkeypatch):
    """And rows then go through the model whole."""
    real = attention.branch_attention

    def blind(q, k, v, lengths, parents, scaling):
        return real(q, k, v.index_fill(1, torch.arange(lengths[0]), 0), lengths, parents, scaling)

    monkeypatch.setattr(attention, "branch_attention", blind)
    base = _adapted(tmp_path, "llama")
    _assert_the_same(base, _rows())
    assert not loss._can_share[base]


def test_planted_a_label_that_is_lost_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "_free", lambda row: max(0, bytes(row.trained).find(1, 1)))
    base = _adapted(tmp_path, "llama")
    with pytest.raises(AssertionError):
        _assert_the_same(base, [_row(_drawn(9, 1) + _drawn(4, n), 9) for n in (5, 6)])


@pytest.mark.parametrize(
    "method",
    [inlay.Lora(r=3, lora_dropout=0.2), inlay.Prefix(num_virtual_tokens=3), inlay.Prompt(num_virtual_tokens=2)],
)
def test_what_is_drawn_for_each_row_or_stands_before_it_is_not_shared(tmp_path, hidden, method):
    base = _adapted(tmp_path, "llama", method)
    rows = _rows()
    loss.loss_of(base, rows)
    assert {branches for _, branches in hidden[1:]} == {0}


def test_rows_that_share_nothing_are_packed_as_before(llama, hidden):
    rows = [_row(_drawn(n, n), 2) for n in (9, 5, 11)]
    assert shared.families(rows) == [shared.Family([row]) for row in rows]
    loss.loss_of(llama, rows)
    assert hidden[-1] == (len(batch.pack(rows).labels), 0)  # what is in front is the trial of a base, once


def test_families_are_of_those_that_save_the_most():
    begin, more = _drawn(4, 1), _drawn(20, 2)
    for first in (3, 90):  # the row that shares least is before the others, or after them
        rows = [_row(begin + more + _drawn(5, n), 27) for n in (1, 2, 3)] + [_row([*begin, first, *_drawn(21, 9)], 25)]
        found = shared.families(rows)
        assert [(len(family.rows), family.shared) for family in found] == [(1, 0), (3, 24)]
        assert sum(family.num_tokens for family in found) == 24 + 3 * 5 + 26
    many = shared.families([_row(more + _drawn(9, n), 25) for n in range(60)])
    assert [(len(family.rows), family.shared) for family in many] == [(60, 20)]


def test_rows_whose_own_part_is_longer_than_what_they_share_are_whole():
    begin = _drawn(9, 1)
    for rest, expected in ((9, [(2, 9)]), (10, [(1, 0), (1, 0)])):
        rows = [_row(begin + _drawn(rest, n), 12) for n in (1, 2)]
        assert [(len(family.rows), family.shared) for family in shared.families(rows)] == expected


def test_a_family_that_is_not_much_longer_than_its_longest_row_is_whole(llama, monkeypatch):
    monkeypatch.setattr(loss.memory, "micro_batch_tokens", lambda base: 60)
    document = _drawn(50, 1)
    rows = [_row(document + _drawn(10, 10 + n), 52) for n in range(4)]
    counted = lambda bound: [loss.num_computed(llama, part) for part in loss.parts(llama, rows, bound)]  # noqa: E731
    assert counted(None) == [90]  # 1.5 times the 60 of each row
    assert counted(60) == [60] * 4  # a bound that is given is kept
    more = [*rows, _row(document + _drawn(10, 20), 52)]
    assert [loss.num_computed(llama, part) for part in loss.parts(llama, more, None)] == [90, 60]
    assert sum(loss.loss_of(llama, part).item() for part in loss.parts(llama, more, None)) == pytest.approx(
        _one_by_one(llama, more).item()
    )


def test_many_rows_are_looked_at_some_at_a_time():
    rows = [_row([*range(n, n + 9), n], 9) for n in range(3, 3 + 2 * shared.AT_A_TIME)] * 2
    found = shared.families(rows)
    assert sum(len(family.rows) for family in found) == len(rows)
    assert sum(len(family.rows) == 2 for family in found) >= 2 * shared.AT_A_TIME - 2


def test_a_run_says_how_many_tokens_it_computes(tmp_path):
    base = _base(tmp_path / "base", "llama")
    rows = [{"prompt": f"red green blue red green blue say {n}", "completion": f"{n}"} for n in range(6)]
    settings = Settings(max_steps=2, batch_size=3)
    job = jobs.prepare(base, rows, RunSpec(method=inlay.Lora(r=3), output=tmp_path / "new", settings=settings))
    whole, once = foreseen.computed(job)
    assert whole == sum(len(row.input_ids) for row in job.rows.train.examples)
    assert once < whole
    assert base.active is None
    job.state.adapter.method = inlay.Lora(r=3, lora_dropout=0.1)
    assert foreseen.computed(job) == (whole, whole)
