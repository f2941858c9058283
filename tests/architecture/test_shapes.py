"""The annotations of the package are checked while tests run: see --jaxtyping-packages in pyproject.toml."""

import sys

import jaxtyping
import pytest
import torch

from inlay.core import lowrank
from inlay.core.routed import Factors
from inlay.packing.rows import Batch

OUT, IN, R = 5, 3, 2


@pytest.fixture(autouse=True)
def annotations():
    """They are checked in every case, not only in the first of a test."""
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_wrong_argument_is_found():
    weight, A, B = torch.ones(OUT, IN), torch.ones(R, IN), torch.ones(OUT, R)
    assert lowrank.merged(weight, A, B, 2).shape == (OUT, IN)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"merged\(\) parameter B="):
        lowrank.merged(weight, A, B.T.contiguous(), 2)


@pytest.mark.parametrize(
    "fields", [(Factors, (R, IN), (OUT, R + 1)), (Batch, (2, 7), (2, 6))], ids=["Factors", "Batch"]
)
def test_fields_that_do_not_fit_together_are_found(fields):
    cls, one, two = fields
    more = (1.5,) if cls is Factors else ()
    dtype = torch.float32 if cls is Factors else torch.long
    with pytest.raises(jaxtyping.TypeCheckError):
        cls(torch.ones(one, dtype=dtype), torch.ones(two, dtype=dtype), *more)


PLANTED = """
from collections.abc import Iterator
from jaxtyping import Float
from torch import Tensor
def turned(x: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
    return x.T
def doubled(x: Float[Tensor, "in"], y: "Float[Tensor, 'in']") -> Float[Tensor, "twice"]:
    return turned_once(x + y).repeat(2)
def turned_once(x: Float[Tensor, "in"]) -> Float[Tensor, "in"]:
    return x.flip(0)
def filled(number: int, value: float = 1) -> Float[Tensor, "{number}"]:
    return Tensor([value] * (number + (number == 3)))
def rows(x: Float[Tensor, "out in"]) -> Iterator[Float[Tensor, "in"]]:
    yield from x
def name(number: int, *, size: "Nowhere | None" = None) -> str:
    return number or ""
"""
"""A module whose results are not always what its annotations say."""


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """That module, with the same hook."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "planted_shapes.py").write_text(PLANTED)
    with jaxtyping.install_import_hook("planted_shapes", "beartype.beartype"):
        import planted_shapes
    yield planted_shapes
    del sys.modules["planted_shapes"]


def test_a_wrong_annotation_is_found(planted):
    with pytest.raises(jaxtyping.TypeCheckError, match=r"(?s)planted_shapes.turned\(\) return .* dimension out is 3"):
        planted.turned(torch.ones(OUT, IN))
    with pytest.raises(jaxtyping.TypeCheckError, match=r"return value of planted_shapes\.filled"):
        planted.filled(3)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"planted_shapes.name\(\) return 3"):
        planted.name(3)


def test_a_wrong_argument_of_any_kind_of_function_is_found(planted):
    wrong = {
        "name": dict(number="3"),
        "filled": dict(number=2, value="1"),
        "doubled": dict(x=torch.ones(IN), y=torch.ones(OUT)),
        "rows": dict(x=torch.ones(IN)),
    }
    for function, arguments in wrong.items():
        with pytest.raises(jaxtyping.TypeCheckError, match=f"(?s){function}.* parameter .?{[*arguments][-1]}"):
            getattr(planted, function)(**arguments)


def test_what_is_right_is_let_through(planted):
    """Axes of one name in two functions are two axes; a whole number does for a float."""
    assert planted.doubled(torch.ones(IN), torch.ones(IN)).tolist() == [2.0] * 2 * IN
    assert planted.turned(torch.ones(IN, IN)).shape == (IN, IN)
    assert planted.filled(2, 5).tolist() == [5, 5]
    assert len(list(planted.rows(torch.ones(OUT, IN)))) == OUT
    assert planted.name(0, size="anything") == ""
