"""An adapter for another engine: the same change of every weight, in what that engine reads and as it reads it.

    delta W_i = scaling_i B_i A_i   of rank r_i, as use_rslora and the patterns say
              = (alpha / r) [c_i B_i, 0] [A_i; 0],   r = max r_i,   c_i = scaling_i r / alpha

Engines that take LoRA alone differ in which of a file's settings they look at, and all of them read one r and one lora_alpha.
So that is what is written: factors of smaller rank are filled up with zeros. Where all layers have one rank and one scaling,
and alpha = scaling r is a whole number, the factors stay as they are, to the bit; else alpha = r, and c_i goes into B_i, in
float32.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from inlay import engines, formats
from inlay.core.routed import Factors
from inlay.errors import CompatibilityError, UnknownNameError, explain, nearest
from inlay.formats import peft
from inlay.formats.contract import AdapterFile, Layer
from inlay.methods import hooks
from inlay.methods.contract import Params, by_kind, factors
from inlay.methods.lora import Lora

INLAY = "inlay"
"""What stands for the form in which Inlay keeps its own: that of PEFT, with methods that PEFT does not have."""


def names() -> list[str]:
    """What an adapter can be exported for: engines, and formats that are not an engine's."""
    return sorted({INLAY, *engines.FORMS, *(form for form in formats.written() if form not in engines.FORMS.values())})


def served(file: AdapterFile) -> list[str]:
    """The engines for which something can be written that does what the adapter does."""
    refused = engines.incurable(*_outline(file))
    return [engine for engine in engines.FORMS if engine not in refused]


def write(directory: Path, file: AdapterFile, engine: str) -> AdapterFile:
    """Write an adapter into `directory`, which exists, for an engine or in a format: what was written.

    **Raises:**

    - `UnknownNameError`: there is no such engine or format.
    - `CompatibilityError`: the engine can't do what the adapter does, or the format has no place for it; every reason is named.
    """
    if engine not in names():
        near, found = nearest(engine, names()), f"{engine!r}; known are {', '.join(names())}"
        raise UnknownNameError(explain("nothing of that name reads adapters", found=found, do=f"--for {near or INLAY}"))
    if engine not in engines.FORMS:
        formats.write(directory, file, "peft" if engine == INLAY else engine)
        return file
    features = engines.incurable(*_outline(file)).get(engine, [])
    if features:
        found = [feature.name for feature in features]
        cures = {feature.cure for feature in features}
        raise CompatibilityError(
            explain(f"{engine} can't do what this adapter does", found=found, do=_instead(file, cures))
        )
    file = plain(file, together=engine == engines.SGLANG) if engine in engines.PLAIN else file
    formats.write(directory, file, engines.FORMS[engine])
    return file


def plain(file: AdapterFile, *, together: bool = False) -> AdapterFile:
    """A LoRA with one rank and one lora_alpha for all its layers, which does the same.

    **Arguments:**

    - `together`: layers of `inlay.engines.TOGETHER` beside an adapted one have a change too, which is none.
    """
    method = file.method
    assert isinstance(method, Lora), "the engines that this is for take no other method"
    changes = {path: factors(hooks.for_module(method, path), params) for path, params in file.params.items()}
    known = {path: change for path, change in changes.items() if change is not None}
    r = max(len(change.A) for change in known.values())
    alphas = {change.scaling * len(change.A) for change in known.values()}
    alpha = alphas.pop() if len(alphas) == 1 and all(len(change.A) == r for change in known.values()) else 0.0
    alpha = round(alpha) if abs(alpha - round(alpha)) <= 1e-6 * alpha and round(alpha) else r
    params = {path: _filled(change, r, alpha) for path, change in known.items()}
    if together:
        params |= _beside(params, file.model.layers)
    plainest = Lora(r=r, lora_alpha=alpha, target_modules=tuple(params))
    return dataclasses.replace(file, method=plainest, params=params, base_weights={})


def _filled(change: Factors, r: int, alpha: float) -> Params:
    """The factors of one layer with rank r and the scaling alpha / r."""
    A, B, factor = change.A, change.B, change.scaling * r / alpha
    if abs(factor - 1) > 1e-6:  # what is left is the rounding of a square root
        A, B = A.float(), B.float() * factor
    more = r - len(A)
    return {"lora_A": torch.nn.functional.pad(A, (0, 0, 0, more)), "lora_B": torch.nn.functional.pad(B, (0, more))}


def _beside(params: Mapping[str, Params], layers: Mapping[str, Layer]) -> dict[str, Params]:
    """Changes that are none for the layers that belong to adapted ones and are not adapted themselves."""
    made: dict[str, Params] = {}
    for path, pair in params.items():
        holder, _, last = path.rpartition(".")
        group = next((group for group in engines.TOGETHER if last in group), ())
        for other in (f"{holder}.{name}" for name in group):
            if other not in params and other in layers:
                sizes, r = layers[other].sizes, len(pair["lora_A"])
                dtype = pair["lora_A"].dtype
                made[other] = {"lora_A": _none(r, sizes["in"], dtype), "lora_B": _none(sizes["out"], r, dtype)}
    return made


def _none(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(rows, columns, dtype=dtype)


def _outline(file: AdapterFile) -> tuple[engines.Config, engines.Shapes]:
    """The adapter as files in PEFT's form would say it."""
    config, tensors = peft.described(file)
    return config, {name: tensor.shape for name, tensor in tensors.items()}


def _instead(file: AdapterFile, cures: set[str]) -> str:
    """What to type instead."""
    if file.method.unmergeable_because:
        return "inlay serve MODEL --adapters ADAPTER: no weight can hold this change"
    is_linear = by_kind(file.method, maps=lambda _: True, blocks=lambda _: False, front=lambda _: False, none=False)
    if cures == {"convert"} and is_linear:
        return "inlay convert MODEL ADAPTER --output PLAIN makes a LoRA of it, which can be exported"
    return "inlay merge MODEL ADAPTER --output MERGED: a model that needs no adapter"
