"""Merging an adapter into a quantised checkpoint, and saying how much of it survives.

    T = W + delta W,   W' = the quantised weight of T,   W0 = the base's own quantised weight
    survives: cosine of W' - W0 and delta W, and |W' - W0 - delta W| / |delta W|, layer by layer

A step of four bits is wide: a change of one per cent of the weights moves hardly any of them to another place, and is erased.
Constants by least squares keep a little more than plain ones, at any size of the change. Not done: a small adapter beside the
checkpoint for what is lost; whoever has an adapter to carry keeps the one that was trained, and loses nothing.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from inlay import quant
from inlay.base.base import Base
from inlay.base.load import load
from inlay.base.quantize import quantize
from inlay.errors import CompatibilityError, ConfigError, explain
from inlay.export.agreement import SAMPLE, has_answers, ids_of, logits
from inlay.export.merge import check_mergeable, num_bytes, write
from inlay.io import output as output_directory
from inlay.io.checkpoint import open_checkpoint
from inlay.model.adapter import Adapter
from inlay.model.changes import adds, replaced
from inlay.names import is_inside
from inlay.quant.contract import Matrix

MIN_COSINE = 0.9
"""Where the change that survives points further away than this from the one that was learned, merging is refused."""


class Survival(NamedTuple):
    """What became of a change that was merged into a quantised checkpoint."""

    layers: dict[str, tuple[float, float]]
    """Cosine and relative error of each layer's change, by path."""
    cosine: float
    """Of all layers together."""
    relative_error: float
    divergence: float
    """Kullback-Leibler divergence of the merged model's next tokens, or classes, from those of base and adapter: nats each."""
    adapter_divergence: float
    """The same of the plain base's: what there is to lose."""


def merge_quantized(
    base: Base,
    adapter: str,
    output: str | Path,
    scheme: str,
    *,
    keep: Sequence[str] = (),
    force: bool = False,
    texts: Sequence[str] = SAMPLE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Survival:
    """Write the quantised checkpoint in which `adapter` is part of the weights, and measure what survives of it.

    **Arguments:**

    - `adapter`: the name of an attached adapter.
    - `scheme`: one of `inlay.quant.names()`.
    - `keep`: linear maps to leave in 16 bits, beside the output head and those that the base has so.
    - `force`: write it even where less than `MIN_COSINE` survives.
    - `texts`: what the divergence is measured on.

    **Raises:**

    - `CompatibilityError`: too little survives; nothing is written. And those of `merge` and `quantize`.
    """
    target, held = output_directory.place(output), base.adapters[adapter]
    check_mergeable(held)
    _check_measurable(base, scheme)
    output_directory.check_free(target)
    output_directory.check_space(target, 2 * num_bytes(base, adapter))
    with output_directory.new_directory(target) as partial:
        _write_quantized(base, held, partial, target.name, scheme, keep=keep, progress=progress)
        base.check_unchanged()
        made = load(partial / "made", dtype=str(base.dtype).removeprefix("torch."), task=base.spec, labels=base.labels)
        made.checkpoint = dataclasses.replace(made.checkpoint, name=target.name, reference=str(target.absolute()))
        survival = _survival(base, held, made, scheme, texts)
        if survival.cosine < MIN_COSINE and not force:
            raise CompatibilityError(_too_little(survival, scheme))
        _move_up(partial / "made")
    return survival


def _move_up(folder: Path) -> None:
    for file in folder.iterdir():
        file.rename(folder.parent / file.name)
    folder.rmdir()


def _write_quantized(
    base: Base,
    adapter: Adapter,
    folder: Path,
    name: str,
    scheme: str,
    *,
    keep: Sequence[str],
    progress: Callable[[int, int], None],
) -> None:
    """Write the merged base, quantised, into `made` of a folder; on the way it is there in its own precision."""
    (folder / "dense").mkdir()
    write(base, adapter, folder / "dense", lambda done, total: progress(done // 2, total))
    dense = dataclasses.replace(open_checkpoint(folder / "dense"), name=name)
    last_half: Callable[[int, int], None] = lambda done, total: progress((done + total) // 2, total)  # noqa: E731
    kept = [*keep, *_in_sixteen_bits(base)]
    quantize(dense, folder / "made", scheme, keep=kept, refine=True, progress=last_half)
    shutil.rmtree(folder / "dense")


def _check_measurable(base: Base, scheme: str) -> None:
    """Refuse a model without a head: how far its answers are from others is not known.

    **Raises:**

    - `ConfigError`: it has none.
    """
    if not has_answers(base):
        raise ConfigError(
            explain(
                "what survives of an adapter is measured on answers, and this model has none",
                found=f"--quantize {scheme} with an adapter for {base.task}",
                do=f"merge without --quantize, then inlay quantize --scheme {scheme}",
            )
        )


def _in_sixteen_bits(base: Base) -> list[str]:
    """The linear maps of a quantised base that are not quantised, but for its head."""
    if base.scheme is None:
        return []
    return [p for p, linear in base.linears.items() if p != base.head and not isinstance(linear.matrix, Matrix)]


def _changed(base: Base, adapter: Adapter) -> list[str]:
    """The linear maps whose weight the adapter changes, but for the heads of the task, which stay plain."""
    paths = (path for path in adapter.params if path in base.linears and not is_inside(path, base.heads))
    return [path for path in paths if adds(adapter.at(path)) or "weight" in replaced(adapter.at(path))]


def _change(base: Base, adapter: Adapter, path: str) -> tuple[Tensor, Tensor]:
    """(W, T) of one layer, in float32."""
    weight = base.linears[path].weight(torch.float32)
    merged, _ = adapter.merged(path, weight, None)
    return weight, merged


def _survival(base: Base, adapter: Adapter, made: Base, scheme: str, texts: Sequence[str]) -> Survival:
    layers, sums = {}, torch.zeros(4, dtype=torch.float64)
    for path in _changed(base, adapter):
        weight, merged = _change(base, adapter, path)
        before = weight if base.scheme is not None else _rounded(weight, made, path, scheme)
        after = made.linears[path].weight(torch.float32)
        wanted, got = merged - weight, after - before
        parts = torch.stack(
            [(got * wanted).sum(), got.square().sum(), wanted.square().sum(), (got - wanted).square().sum()]
        ).double()
        layers[path] = _measures(parts)
        sums += parts
    divergence, adapter_divergence = _divergences(base, adapter, made, texts)
    return Survival(layers, *_measures(sums), divergence, adapter_divergence)


def _rounded(weight: Tensor, made: Base, path: str, scheme: str) -> Tensor:
    """What the base's own weight becomes where it is quantised without the change."""
    if not isinstance(made.linears[path].matrix, Matrix):
        return weight
    how = quant.find(scheme)
    return how.open(how.refine(weight)).dequantize(torch.float32)


def _measures(parts: Tensor) -> tuple[float, float]:
    """Cosine and relative error from <got, wanted>, |got|^2, |wanted|^2 and |got - wanted|^2."""
    product, got, wanted, off = parts.tolist()
    if not wanted:
        return (1.0, 0.0) if not got else (0.0, math.inf)
    return (product / math.sqrt(got * wanted) if got else 0.0), math.sqrt(off / wanted)


def _divergences(base: Base, adapter: Adapter, made: Base, texts: Sequence[str]) -> tuple[float, float]:
    """The mean divergence from base and adapter of the merged model, and of the plain base."""
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    for text in texts:
        ids = ids_of(base, text)
        true = logits(base, ids, adapter.name).float().log_softmax(-1)
        others = (logits(made, ids, None), logits(base, ids, None))
        for i, other in enumerate(others):
            sums[i] += (true.exp() * (true - other.float().log_softmax(-1))).sum()
        count += true[..., 0].numel()
    divergence, adapter_divergence = (sums / count).tolist()
    return divergence, adapter_divergence


def _too_little(survival: Survival, scheme: str) -> str:
    worst = min(survival.layers, key=lambda path: survival.layers[path][0])
    return explain(
        f"{scheme} would erase too much of this adapter",
        found=[
            f"what survives has a cosine of {survival.cosine:.2f} with what was learned, at least {MIN_COSINE} is asked for; "
            f"{worst}: {survival.layers[worst][0]:.2f}",
            f"divergence from base and adapter {survival.divergence:.3g} nats a token, of {survival.adapter_divergence:.3g} "
            "that the adapter makes",
        ],
        do="merge without --quantize; or keep the adapter apart: --adapter works with every command; or --force",
    )
