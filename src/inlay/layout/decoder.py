"""What prompts need to know of a language model."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from inlay.errors import CompatibilityError, explain
from inlay.methods.contract import Decoder
from inlay.modules.frozen import table_rows, table_size


def decoder_of(model: nn.Module, tokenize: Callable[[str], Sequence[int]] | None) -> Decoder | None:
    """What prompts need to know of `model`; None where it is no decoder of `transformers`."""
    getter, config = getattr(model, "get_input_embeddings", None), getattr(model, "config", None)
    if getter is None or config is None or getattr(config, "is_encoder_decoder", False):
        return None
    text, table = config.get_text_config(), getter()
    heads = _number(text, "num_attention_heads")
    count, width = table_size(table)
    return Decoder(
        num_layers=_number(text, "num_hidden_layers"),
        width=width,
        num_heads=heads and (_number(text, "num_key_value_heads") or heads),
        head_dim=_number(text, "head_dim") or (_number(text, "hidden_size") // heads if heads else 0),
        embed=lambda ids: table_rows(table, ids),
        tokenize=tokenize or _no_tokenizer,
        num_tokens=count,
    )


def _number(config: Any, name: str) -> int:
    """A number of a configuration; 0 where it has none of that name, or one for each layer."""
    value = getattr(config, name, None)
    return value if isinstance(value, int) else 0


def _no_tokenizer(text: str) -> Sequence[int]:
    raise CompatibilityError(
        explain(
            "there is no tokenizer for the text that this prompt starts from", found=repr(text), do="inlay.load(MODEL)"
        )
    )
