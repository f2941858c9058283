"""A model of `transformers` on the meta device, with placeholders for the linear layers that get their weights afterwards.

`transformers` builds a model on the meta device, lets a quantiser change its modules, and loads what parameters are left. The
quantiser here only takes modules away, so that the library never reads a quantised weight, nor needs bitsandbytes for it.
"""

import functools
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from inlay import quant, tasks
from inlay.base import heads
from inlay.errors import CompatibilityError, explain
from inlay.gguf import packed
from inlay.io.checkpoint import Checkpoint
from inlay.layout import stored
from inlay.modules.frozen import Placeholder, is_linear_layer
from inlay.quant.contract import Matrix, Packed

NAME = "inlay"
"""What the quantiser is called among those of `transformers`."""


def arguments(config: Any, paths: Collection[str]) -> dict[str, Any]:
    """What `from_pretrained` is given for a checkpoint of this configuration whose modules at `paths` are quantised.

    A path may lack the prefix that the model has for its body, as the names in a checkpoint may.
    """
    del config.quantization_config
    return {"config": config, "quantization_config": _quantizer()(paths)}


_TABLES = {
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "AutoModel": "MODEL_MAPPING_NAMES",
}
"""Where `transformers` lists the architectures that each of these classes makes, by type of model."""


def meta(checkpoint: Checkpoint, auto_class: str = "AutoModelForCausalLM", labels: Sequence[str] = ()) -> nn.Module:
    """The model of a checkpoint without any weights: its modules and their shapes; `labels`: the names of its classes.

    **Raises:**

    - `CompatibilityError`: `transformers` has no model of this architecture and class.
    """
    import transformers

    auto: Any = getattr(transformers, auto_class)
    try:
        config = heads.configuration(checkpoint, labels)
        with torch.device("meta"):
            model: nn.Module = auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever the code of a thousand architectures raises
        raise unknown_architecture(checkpoint, error, auto_class) from None
    return model


def own_class(checkpoint: Checkpoint) -> str:
    """The class of `transformers` that makes the model which the checkpoint was saved from, by the name that it gives.

    Where that name is none that `transformers` has: a causal language model if there is one of this type, else the body.
    """
    from transformers.models.auto import modeling_auto

    kind, made = checkpoint.config.get("model_type"), (checkpoint.config.get("architectures") or [""])[0]
    of_kind = {auto: getattr(modeling_auto, table).get(kind, ()) for auto, table in _TABLES.items()}
    for auto, known in of_kind.items():
        if made in ((known,) if isinstance(known, str) else known):  # some types have several
            return auto
    is_causal = bool(of_kind["AutoModelForCausalLM"]) or not of_kind["AutoModel"]
    return "AutoModelForCausalLM" if is_causal else "AutoModel"


def unknown_architecture(
    checkpoint: Checkpoint, error: Exception, auto_class: str = "AutoModelForCausalLM"
) -> CompatibilityError:
    """The error for a model that `transformers` can't make."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if (other := other_class(checkpoint, auto_class, f"{auto_class} makes none of it")) is not None:
        return other
    wrong = "transformers makes no causal language model of this directory"
    do = "a causal language model that transformers knows; pip install --upgrade transformers for a new one"
    if auto_class != "AutoModelForCausalLM":
        wrong = f"transformers makes no model of this directory with {auto_class}"
        do = "another base, or another --task"
    found = f"{checkpoint.directory}: model_type {checkpoint.config.get('model_type')!r}, {reason}"
    return CompatibilityError(explain(wrong, found=found, do=do))


def other_class(checkpoint: Checkpoint, auto_class: str, found: str) -> CompatibilityError | None:
    """The error for a checkpoint that was saved from a model for something else than asked for; None where it was not.

    `found`: what is wrong with it for what is asked for.
    """
    own, known = own_class(checkpoint), tasks.by_auto_class()
    if own == auto_class or own not in known:
        return None
    made = str((checkpoint.config.get("architectures") or ["no architecture"])[0])
    task = "embedding, or sequence-classification" if own == "AutoModel" else known[own]
    return CompatibilityError(
        explain(
            f"this model was made for something else than {known.get(auto_class, auto_class)}",
            found=f"{checkpoint.directory}: {made}; {found}",
            do=f"--task {task}, in train, eval and predict; or another base",
        )
    )


def placeholders(model: nn.Module) -> dict[str, Placeholder]:
    """The layers that wait for their weights, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Placeholder)}


def matrix(scheme: str, tensors: Packed) -> Matrix:
    """The matrix of the tensors that a scheme, or a type of GGUF, has for a weight."""
    return packed.open_matrix(scheme, tensors) if scheme in packed.READ else quant.find(scheme).open(tensors)


@functools.cache
def _quantizer() -> Any:
    """The configuration class that makes `transformers` use our quantiser; registered the first time."""
    from transformers.quantizers import base
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.utils import quantization_config

    config_class: Any = quantization_config.QuantizationConfigMixin  # Any: the library annotates its methods with less
    quantizer_class: Any = base.HfQuantizer

    @register_quantization_config(NAME)
    class Config(config_class):
        def __init__(self, paths: Collection[str]):
            self.quant_method = NAME
            self.paths = paths

    @register_quantizer(NAME)
    class MetaQuantizer(quantizer_class):
        def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
            _put_placeholders_(model, self.quantization_config.paths)
            _untie_placeholders_(model)
            return model

        def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
            self.remove_quantization_config(model)
            return model

        @property
        def is_trainable(self) -> bool:
            return True

        def is_serializable(self) -> bool:
            return False

    return Config


def _put_placeholders_(model: nn.Module, paths: Collection[str]) -> None:
    """Replace every linear layer and embedding at `paths` by a placeholder."""
    prefix = getattr(model, "base_model_prefix", "")
    for path, module in list(model.named_modules()):
        if stored.checkpoint_path(path, prefix, paths) is None:
            continue
        if is_linear_layer(module) or type(module) is nn.Embedding:  # subclasses compute more than rows
            model.set_submodule(path, Placeholder(module))


def _untie_placeholders_(model: Any) -> None:
    """Let `transformers` tie no parameters that placeholders have not: these are given the same matrix."""
    waiting = tuple(f"{path}." for path in placeholders(model))
    tied = model.all_tied_weights_keys
    model.all_tied_weights_keys = {key: source for key, source in tied.items() if not key.startswith(waiting)}
