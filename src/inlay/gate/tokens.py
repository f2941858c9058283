"""Faults of rows as tokens: what they begin and end with, what the tokenizer can't write, and whether it gives a text back.

A text goes through the template, the tokenizer and back again; what each turn says has to be in it, whatever became of
white space and of large letters. Templates that drop something are refused where rows are rendered (`inlay.text.pieces`);
what is lost here is lost by the tokenizer.
"""

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from inlay.data.rows import Row
from inlay.gate.said import strings
from inlay.text.mask import Example
from inlay.text.template import added_tokens

NUM_TRIED, TRIED_AT_ONCE = 96, 32
"""As many rows are turned back into text, and of those that come together, spread over them."""

_LAST = 8
"""An answer's end token stands among so many last tokens: white space may follow it."""


def faults(tokenizer: Any, examples: Sequence[Example], cut: Collection[str]) -> Iterator[tuple[str, str]]:
    """(Kind of fault, place of the row) for rows as tokens; `cut` are the places of those whose answers are cut."""
    start, known = tokenizer.bos_token_id, added_tokens(tokenizer).ids | {tokenizer.eos_token_id}
    unknown = _unknown(tokenizer)
    for example in examples:
        ids = example.input_ids
        if start is not None and len(ids) > 1 and ids[0] == ids[1] == start:
            yield "doubled-start", example.source
        if unknown is not None and unknown in ids:
            yield "unknown-token", example.source
        if example.source not in cut and not _is_ended(example, known):
            yield "no-end", example.source


def _is_ended(example: Example, known: Collection[int]) -> bool:
    """One of the row's end tokens, which a tokenizer knows as a whole, stands at its end."""
    last = example.input_ids[: bytes(example.trained).rfind(1) + 1][-_LAST:]
    return any(token in known and token in last for token in example.ends)


def _unknown(tokenizer: Any) -> int | None:
    """The token of what can't be written, where that is all that it is: some vocabularies begin or end texts with it."""
    unknown = tokenizer.unk_token_id
    return None if unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) else unknown


def lossy(tokenizer: Any, row: Row, examples: Sequence[Example]) -> bool:
    """What a row says is not in what its tokens say; `examples` are all that was made of it."""
    said = _squeezed("".join(tokenizer.decode(list(example.input_ids)) for example in examples))
    return any(_squeezed(text) not in said for text in _contents(row))


def _contents(row: Row) -> Iterator[str]:
    """Each text of a row that a template writes as it is."""
    for part in (row.text, row.prompt, row.completion, *(row.messages or ())):
        for message in part if isinstance(part, list) else [part]:
            yield from strings(message["content"] if isinstance(message, Mapping) else message)


def _squeezed(text: str) -> str:
    """A text without white space, in small letters, its signs in their plainest form: what normalisers of tokenizers
    leave."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return "".join(sign for sign in plain if not (sign.isspace() or unicodedata.combining(sign)))
