"""How a map stores its weight: the equation's W and back, for every form that there is."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from inlay.layout.layout import Layout
from inlay.modules.frozen import FrozenLinear, Placeholder, QuantizedLinear
from inlay.modules.linear import as_linear
from inlay.quant import find
from tests.support import models


def quantised(transposed):
    scheme, W = find("int8"), torch.randn(7, 64)
    return QuantizedLinear(scheme.open(scheme.quantize(W)), None, transposed)


MODULES = {
    "linear": lambda: torch.nn.Linear(5, 7),
    "Conv1D": lambda: Conv1D(7, 5),
    "frozen": lambda: FrozenLinear(torch.randn(5, 7), None, transposed=True),
    "embedding": lambda: torch.nn.Embedding(5, 7),
    "conv2d": lambda: torch.nn.Conv2d(5, 7, (3, 2)),
    "quantised": lambda: quantised(False),
    "quantised Conv1D": lambda: quantised(True),
}


@pytest.mark.parametrize("kind", MODULES)
def test_a_weight_is_given_as_the_equation_has_it_and_back_as_it_is_stored(kind):
    linear = as_linear(MODULES[kind]())
    assert tuple(linear.sizes.values()) == tuple(linear.stored.shape)
    W = linear.as_map(linear.stored)
    assert W.shape == (linear.out_features, linear.in_features)
    assert torch.equal(W, linear.weight(W.dtype))
    assert torch.equal(linear.as_stored(W), linear.stored)


def test_rows_of_single_tokens_are_put_into_rows_of_a_weight():
    """Against the whole weight with the same rows put in: columns of an embedding, rows of a head."""
    ids, change = torch.tensor([4, 1]), torch.randn(2, 7)
    table, head = as_linear(torch.nn.Embedding(5, 7)), as_linear(torch.nn.Linear(7, 5))
    for linear, axis in ((table, 1), (head, 0)):
        W = linear.weight(torch.float32).detach()
        wanted = W.clone().index_add_(axis, ids, change.T if axis else change)
        for start in range(0, len(W), 2):
            rows = W[start : start + 2].clone()
            linear.merge_rows_(rows, ids, change, start)
            assert torch.equal(rows, wanted[start : start + 2])


@pytest.mark.parametrize("module", [torch.nn.Linear(64, 7), Conv1D(7, 64)])
def test_a_placeholder_is_filled_with_a_weight_of_its_shape(module):
    empty = Placeholder(module)
    scheme = find("int8")
    linear = as_linear(empty.filled(scheme.open(scheme.quantize(torch.randn(empty.shape))), torch.float32))
    assert empty.shape == (7, 64)
    assert tuple(linear.stored.shape) == tuple(module.weight.shape)


def test_a_layout_knows_which_parameters_hold_several_maps():
    layout = Layout(models.model("mixtral"))
    paths = [path for maps in layout.parameters.values() for path in maps]
    assert paths == [path for path, linear in layout.maps.items() if linear.kind == "experts"]
    assert all(layout.module_of(path) == path.rpartition(".")[0] for path in paths)
