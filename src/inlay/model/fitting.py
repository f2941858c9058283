"""An adapter's tensors on the layers of a model: which replace what the layer holds, and whether they change anything there."""

import warnings

import torch
from torch import Tensor

from inlay.errors import CompatibilityError, explain, few
from inlay.formats.contract import AdapterFile, Layer
from inlay.methods import hooks
from inlay.methods.contract import LinearMethod
from inlay.model import targets
from inlay.model.layout import Layout
from inlay.modules import trial


def layers(layout: Layout) -> dict[str, Layer]:
    """What every module of the model is, and every parameter of its fused experts, by path."""
    as_stored = ("conv2d", "experts")
    return dict.fromkeys(layout.modules, Layer()) | {
        path: Layer(
            linear.kind,
            tuple(linear.stored.shape) if linear.kind in as_stored else (linear.out_features, linear.in_features),
            linear.transposed,
        )
        for path, linear in layout.maps.items()
    }


def is_same(weight: Tensor, stored: Tensor) -> bool:
    """The numbers of two tensors are equal; of one without numbers, as in an outline, the shape."""
    return weight.shape == stored.shape and (weight.is_meta or torch.equal(weight.float(), stored.float()))


def check_heard(name: str, file: AdapterFile, layout: Layout) -> None:
    """Say which layers of an adapter's file this model never calls; refuse a change of those whose weight it reads.

    **Raises:**

    - `CompatibilityError`: what the file has for such a layer would change its weight, and the model would not see it.
    """
    idle = {path: why for path in file.params if (why := layout.unused.get(path, trial.NO_EFFECT)) != trial.NO_EFFECT}
    idle = {path: why for path, why in idle.items() if path in layout.maps}
    wrong = [path for path, why in idle.items() if why == trial.READ and _changes(file, path, layout)]
    if wrong:
        raise CompatibilityError(
            explain(
                f"{name} changes layers that this model would not let it change",
                found=few(targets.reasons({path: idle[path] for path in wrong})),
                do="train it again without them, or with --method full",
            )
        )
    idle = {
        path: why for path, why in idle.items() if all(other in layout.unused for other in layout.tied.get(path, ()))
    }
    if idle:  # of a shared weight one name is never called, and the others are
        warnings.warn(
            f"{name} has tensors that change nothing: {'; '.join(targets.reasons(idle))}",
            stacklevel=4,
        )


def _changes(file: AdapterFile, path: str, layout: Layout) -> bool:
    """The weight at `path` would be another one with the adapter's change."""
    method, linear = hooks.for_module(file.method, path), layout.maps[path]
    if not isinstance(method, LinearMethod):
        return False
    added = set(file.params[path]) & set(method.shapes(linear.one))
    params = {**hooks.share(method, file.shared, linear.one), **{key: file.params[path][key] for key in added}}
    weight = linear.weight(torch.float32).cpu()
    return bool(added) and not torch.equal(method.merge(params, weight, None)[0], weight)
