"""The annotations of the package are checked while tests run: see --jaxtyping-packages in pyproject.toml."""

import jaxtyping
import pytest
import torch

from inlay.core import lowrank
from inlay.core.routed import Factors
from inlay.tasks._batch import Batch

OUT, IN, R = 5, 3, 2


@pytest.fixture(autouse=True)
def annotations():
    """They are checked in every case, not only in the first of a test."""
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_wrong_argument_is_found():
    weight, A, B = torch.ones(OUT, IN), torch.ones(R, IN), torch.ones(OUT, R)
    assert lowrank.merged(weight, A, B, 2).shape == (OUT, IN)
    with pytest.raises(jaxtyping.TypeCheckError, match="problem arose whilst typechecking parameter 'B'"):
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


def test_a_wrong_annotation_is_found(tmp_path, monkeypatch):
    """The same hook on a module whose result is not what its annotation says."""
    monkeypatch.syspath_prepend(tmp_path)
    source = (
        "from jaxtyping import Float\nfrom torch import Tensor\n"
        "def turned(x: Float[Tensor, 'out in']) -> Float[Tensor, 'out in']:\n    return x.T\n"
    )
    (tmp_path / "planted_shapes.py").write_text(source)
    with jaxtyping.install_import_hook("planted_shapes", "beartype.beartype"):
        import planted_shapes
    with pytest.raises(jaxtyping.TypeCheckError, match="return value of planted_shapes"):
        planted_shapes.turned(torch.ones(OUT, IN))
