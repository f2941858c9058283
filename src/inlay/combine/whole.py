"""Tensors that replace the module's own: biases, modules that are saved whole, embeddings of single tokens.

    W + sum_i w_i (W_i - W) = sum_i w_i W_i + (1 - sum_i w_i) W

W is the base's, which no adapter's file has. So the sum is known where the weights of the adapters that have the tensor come
to 1, and only there: everything else is refused, as is a way that is none of a sum and looks at the entries of W_i - W.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from inlay.combine.checks import Named, added, is_saved
from inlay.combine.contract import Way
from inlay.errors import CompatibilityError, explain, few

NEAR = 1e-6
"""How far from 1 the weights may come to: 0.1 and nine others like it do not in floating point."""


def sums(files: Named, weights: Mapping[str, float], way: Way) -> dict[str, dict[str, Tensor]]:
    """Path -> tensor name -> the weighted sum of what the adapters have there, in float32.

    **Raises:**

    - `CompatibilityError`: the way is none of a sum; the weights of those that have a tensor do not come to 1; or not all
      have it, a bias or a token.
    """
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, file in files.items():
        for path, module in file.params.items():
            for key in module.keys() - added(file, path).keys():
                found.setdefault((path, key), {})[name] = module[key]
    if found and not way.is_sum:
        wrong = (
            f"{type(way).__name__.lower()} of these tensors is not known: they replace the base's, which is in no file"
        )
        listed = few([f"{path}.{key}: of {', '.join(tensors)}" for (path, key), tensors in sorted(found.items())])
        raise CompatibilityError(explain(wrong, found=listed, do="--how svd, with weights that come to 1"))
    problems = []
    for (path, key), tensors in sorted(found.items()):
        total = sum(weights[name] for name in tensors)
        lacking = [name for name in files if name not in tensors and not is_saved(files[next(iter(tensors))], path)]
        if abs(total - 1) > NEAR:
            problems.append(f"{path}.{key}: weights that come to {total:g}, of {', '.join(tensors)}")
        elif lacking:
            problems.append(f"{path}.{key}: not in {', '.join(lacking)}")
    if problems:
        wrong = "the sum of these tensors is not known: they replace the base's, which is in no adapter's file"
        do = "weights that come to 1, such as --weights 0.5,0.5, of adapters that all train them"
        raise CompatibilityError(explain(wrong, found=few(problems), do=do))
    out: dict[str, dict[str, Tensor]] = {}
    for (path, key), tensors in found.items():
        terms = (weights[name] * tensor.double() for name, tensor in tensors.items())
        out.setdefault(path, {})[key] = sum(terms, torch.zeros(())).float()
    return out
