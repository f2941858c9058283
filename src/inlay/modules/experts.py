"""Fused experts: one tensor holds a linear map for each expert, and every token goes through a few of them.

    gate_up_proj (experts, out, in),  down_proj (experts, out, in)         or (experts, in, out), as the module says
    y = sum over a token's experts e of  weight_e  down_e(act(gate_up_e(x)))

An adapter of such a parameter is the same for each expert: its tensors have the experts in front, (experts, r, in) and
(experts, out, r). A row's tokens take their own row's adapter in every expert; the change of a weight is never formed.

Source of the layout: the experts of transformers 5, `integrations/moe.py` there.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inlay.errors import TargetError, explain
from inlay.modules.linear import Dense, Known, ParameterMaps, Part, Product

UP, DOWN = ("gate_up_proj", "up_proj"), "down_proj"


_SPELLINGS = {
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3")),
    "up_proj": (("up_proj",), ("w1",)),
    "down_proj": (("down_proj",), ("w2",)),
}
"""What the linear maps of a parameter are called where a checkpoint has them expert by expert, in the order of their rows."""


class Expert(Dense):
    """The linear map of one expert."""

    def __init__(self, module: nn.Module, name: str, number: int):
        self._name, self._number = name, number
        super().__init__(module, transposed=_flag(module, "is_transposed"))

    @property
    def stored(self) -> Tensor:
        return self.module.get_parameter(self._name)[self._number]

    @property
    def bias(self) -> Float[Tensor, " out"] | None:
        bias = self.module._parameters.get(f"{self._name}_bias")
        return None if bias is None else bias[self._number]


class Experts(ParameterMaps):
    """The linear maps of all experts, as one parameter holds them."""

    kind = "experts"
    not_found = "the checkpoint has its experts in a form that is not known here"

    def __init__(self, module: nn.Module, name: str):
        self.module, self.name = module, name
        self.transposed, self.is_plain = _flag(module, "is_transposed"), True
        self.count = len(self.stored)

    @property
    def stored(self) -> Tensor:
        return self.module.get_parameter(self.name)

    @property
    def sizes(self) -> dict[str, int]:
        return {self.kind: len(self.stored), **self.one.sizes}

    @cached_property
    def _each(self) -> Sequence[Expert]:
        return [Expert(self.module, self.name, number) for number in range(len(self.stored))]

    @property
    def each(self) -> Sequence[Expert]:
        return self._each

    def stored_as(self, path: str, known: Known) -> dict[str, Part | None]:
        whole = known(path)
        if whole is not None:
            return {whole: None}
        module = self.holder(path)
        for spelling in _SPELLINGS[self.name]:
            rows = self.one.out_features // len(spelling)
            for place in (module, module.replace(".mlp.", ".block_sparse_moe.")):
                parts = {
                    known(f"{place}.{e}.{name}.weight"): Part(e, number * rows)
                    for e in range(len(self.each))
                    for number, name in enumerate(spelling)
                }
                if None not in parts:
                    return {name: part for name, part in parts.items() if name is not None}
        return {}

    def computed(
        self,
        product: Product,
        hidden_states: Float[Tensor, "tokens width"],
        top_k_index: Int[Tensor, "tokens k"],
        top_k_weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens width"]:
        module: Any = self.module
        up = UP[0] if module.has_gate else UP[1]
        k = top_k_index.shape[1]
        order = top_k_index.flatten().argsort(stable=True)  # by expert, and there by token
        inverse, counts = order.argsort(), top_k_index.flatten().bincount(minlength=module.num_experts).tolist()
        x = hidden_states[:, None].expand(-1, k, -1).flatten(0, 1)
        parts = []
        for e, (part, tokens) in enumerate(
            zip(_Permuted.apply(x, order, inverse).split(counts), (order // k).split(counts), strict=True)
        ):
            if not len(part):
                continue
            h = product(up, e, part, tokens)
            h = module._apply_gate(h) if module.has_gate else module.act_fn(h)
            y = product(DOWN, e, h, tokens)
            parts.append(module.post_expert_norm(y) if module.has_post_expert_norm else y)
        y = _Permuted.apply(torch.cat(parts), inverse, order).unflatten(0, (-1, k))
        return (y * top_k_weights[..., None]).sum(1).to(hidden_states.dtype)


class _Permuted(torch.autograd.Function):
    """Rows in another order; the gradient in the one before, where torch would add row by row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return x.index_select(0, order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:  # type: ignore[override]  # torch names its first argument by keyword
        return grad_outputs[0].index_select(0, ctx.inverse), None, None


def experts_of(module: nn.Module) -> list[Experts]:
    """The parameters of a module of fused experts, in the order of their definition; nothing of any other module."""
    names = [name for name, tensor in module._parameters.items() if tensor is not None and tensor.dim() == 3]
    known = all(hasattr(module, flag) for flag in ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm"))
    return [Experts(module, name) for name in names if name in (*UP, DOWN)] if known else []


def check_known(modules: Mapping[str, nn.Module], others: Iterable[str]) -> None:
    """Refuse to adapt all linear layers of a model with experts of no known form, among these modules, by path.

    **Raises:**

    - `TargetError`: it has some, by what `transformers` calls such classes; the hint names `others`, which can be adapted.
    """
    strange = {path: m for path, m in modules.items() if "Expert" in type(m).__name__ and not experts_of(m)}
    unknown = [
        f"{path}.{name}"
        for path, m in strange.items()
        for name, tensor in m._parameters.items()
        if tensor is not None and tensor.dim() > 1
    ]
    if unknown:
        wrong = "this model has experts of a form that is not known here: most of its linear layers would be left out"
        names = ",".join(dict.fromkeys(path.rpartition(".")[2] for path in others))
        raise TargetError(explain(wrong, found=unknown[:3], do=f"--target-modules {names}"))


def _flag(module: nn.Module, name: str) -> bool:
    return bool(getattr(module, name))
