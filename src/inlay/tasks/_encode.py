"""Texts as what a model is called with: tokens, rows that are filled up and their mask; and the points and answers it gives."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from inlay.core.pooling import pooled
from inlay.errors import ConfigError, DataError, explain
from inlay.layout import targets
from inlay.tasks.contract import Given, Loaded


def text_of(row: Given, *keys: str) -> str:
    """The text of a row: itself, or what it has under one of these keys.

    **Raises:**

    - `DataError`: it has none of them, or no text there.
    """
    if isinstance(row, str):
        return whole(row, "the text")
    key = next((key for key in keys if key in row), None)
    if key is None:
        raise DataError(f"keys {', '.join(map(str, row)) or 'none'}")
    return whole(row[key], key)


def whole(value: Any, name: str) -> str:
    """A value that is a text of whole characters.

    **Raises:**

    - `DataError`: it is none.
    """
    if not isinstance(value, str):
        raise DataError(f"{name} is {'null' if value is None else f'a {type(value).__name__}'}, not a string")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{name} holds half a character (a lone surrogate)")
    return value


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer without an end token: a model trained with it never stops.

    **Raises:**

    - `ConfigError`: there is none.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            explain(
                "this tokenizer has no end token, so that a model trained with it would never stop",
                found=f"{tokenizer.name_or_path}: eos_token is not set",
                do='set "eos_token" in its tokenizer_config.json',
            )
        )


def text_ids(base: Loaded, text: str) -> tuple[int, ...]:
    """A text as tokens, with those that the tokenizer puts around it.

    **Raises:**

    - `DataError`: it has none.
    """
    ids = tuple(base.tokenizer(text)["input_ids"])
    if not ids:
        raise DataError("a text of no tokens")
    return ids


def pair_ids(base: Loaded, text: str, other: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(two texts as the tokens of one row, which of the two each token belongs to; nothing where the model does not ask)."""
    made = base.tokenizer(text, other)
    types = made.get("token_type_ids", ()) if getattr(base.model.config, "type_vocab_size", 0) > 1 else ()
    return tuple(made["input_ids"]), tuple(types)


def word_ids(base: Loaded, words: Sequence[str]) -> tuple[tuple[int, ...], list[int]]:
    """(words with blanks between them as tokens, the number of each word's first piece among those).

    **Raises:**

    - `ConfigError`: the tokenizer does not know where its pieces stand in a text.
    - `DataError`: a word has no piece of its own.
    """
    if not base.tokenizer.is_fast:
        raise ConfigError(
            explain(
                "this tokenizer does not say which pieces belong to which word",
                found=type(base.tokenizer).__name__,
                do="a base with a tokenizer.json",
            )
        )
    made = base.tokenizer(" ".join(words), return_offsets_mapping=True)
    offsets, firsts = made["offset_mapping"], list[int]()
    start, piece = 0, 0
    for word in words:
        stop = start + len(word)
        while piece < len(offsets) and offsets[piece][1] <= start:
            piece += 1
        if piece == len(offsets) or offsets[piece][0] >= stop or firsts[-1:] == [piece]:
            raise DataError(f"the tokenizer has no piece of its own for {word!r}")
        firsts.append(piece)
        start = stop + 1
    return tuple(made["input_ids"]), firsts


def inputs(base: Loaded, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] = ()) -> dict[str, Tensor]:
    """What a model is called with for rows of tokens: padded at the end, with the mask of what is not padding."""
    device = targets.device_of(base.model)
    made = {
        "input_ids": padded(rows, pad_id(base)),
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
    }
    if any(types):
        made["token_type_ids"] = padded(types, 0)
    return {name: tensor.to(device) for name, tensor in made.items()}


def padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of numbers as one tensor (rows, longest), filled up at the end."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


def pad_id(base: Loaded) -> int:
    """The token that rows are filled up with; the model's configuration names it afterwards, since some models look there for
    the last real token of a row."""
    chosen = base.pad_token
    base.model.config.pad_token_id = base.model.config.get_text_config().pad_token_id = chosen
    return chosen


def groups(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """The numbers of rows of these lengths, the short ones first, in groups of `most` tokens at most with their padding."""
    group: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if group and (len(group) + 1) * lengths[number] > most:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def points(
    base: Any,  # `Loaded`, with its pooling: a base may refuse that when it is asked for it, and a protocol asks
    rows: Sequence[Sequence[int]],
) -> Float[Tensor, "rows width"]:
    """Where texts of tokens lie, under the adapters that are active: in float32 or wider, of length 1."""
    given = inputs(base, rows)
    hidden = base.model(**given).last_hidden_state
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    return torch.nn.functional.normalize(pooled(wide, given["attention_mask"], base.pooling), dim=-1)


def answers(base: Loaded, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """The greedy answers of an encoder and decoder to prompts of tokens, under the adapters that are active."""
    out = base.model.generate(
        **inputs(base, prompts),
        max_new_tokens=max_new_tokens,
        num_beams=1,
        do_sample=False,
        pad_token_id=pad_id(base),
        eos_token_id=base.end_tokens,
    )
    return [text.strip() for text in base.tokenizer.batch_decode(out, skip_special_tokens=True)]


def wide(logits: Tensor) -> Tensor:
    """Logits in float32 or wider.

    **Raises:**

    - `DataError`: some are no numbers.
    """
    if not logits.isfinite().all():
        raise DataError(
            explain(
                "this model's output is not a number, so that it says nothing",
                found="NaN or infinity among the logits: weights that are not finite, or too large for this dtype",
                do="--dtype float32, or fetch the base again",
            )
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
