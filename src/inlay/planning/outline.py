"""A base without its weights: all that its configuration and its tokenizer can tell, in the time that these take.

It has the layers, shapes and heads of the base that `inlay.base.load` makes, on the meta device, and turns rows into tokens as
that does. What only a model that computes can be asked is taken for granted: that it is causal, that its rows can be packed.
"""

from collections.abc import Sequence
from typing import Any

import torch

from inlay import tasks
from inlay.base import meta_model
from inlay.base.base import Base
from inlay.base.heads import heads_of
from inlay.base.load import read_tokenizer
from inlay.io.checkpoint import Checkpoint
from inlay.layout import stored
from inlay.tasks.contract import TaskSpec


def outline(
    checkpoint: Checkpoint, spec: TaskSpec, labels: Sequence[str], dtype: torch.dtype, tokenizer: Any = None
) -> Base:
    """The base of a checkpoint for a task, without weights.

    **Arguments:**

    - `labels`: the names of the classes, where the task has classes and the checkpoint brings none.
    - `dtype`: what it is to compute in.
    - `tokenizer`: that of the checkpoint, where it has been read.

    **Raises:**

    - `CompatibilityError`: `transformers` has no such model of this architecture.
    - `FormatError`: there is no tokenizer that can be read.
    """
    model = meta_model.meta(checkpoint, spec.auto_class, labels)
    for name in spec.dropped_modules:
        if isinstance(getattr(model, name, None), torch.nn.Module):
            setattr(model, name, None)
    prefix, held = getattr(model, "base_model_prefix", ""), checkpoint.tensors
    lacking = [n for n, _ in model.named_parameters() if held and stored.checkpoint_path(n, prefix, held) is None]
    heads = heads_of(model, lacking, spec, tasks.has_own_head(checkpoint, spec))
    return Base(
        model.eval(), tokenizer or read_tokenizer(checkpoint), checkpoint, dtype, True, None, spec=spec, heads=heads
    )
