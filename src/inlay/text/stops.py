"""Which tokens end an answer: those that ended what was trained on, or those that would end a turn of the chat template.

A tokenizer's end token is often another: a base whose end is `<|endoftext|>` has a template that ends turns with `<|im_end|>`.
A model that learned the one and is stopped at the other never stops. So an adapter's record says what ended its answers, and
of what form its rows were:

    "text": {"form": "messages", "stop_tokens": ["<|im_end|>"]}
"""

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from inlay.errors import DataError
from inlay.text import mask
from inlay.text.pieces import Message
from inlay.text.template import PROBE

FORM, STOP_TOKENS, TEXT = "form", "stop_tokens", "text"
"""The keys of a record's "text", and what a form without a template is called."""

_CALL: Message = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "tide", "arguments": {"harbour": "Brest"}},
}
_TRIALS: tuple[list[Message], ...] = (
    PROBE[:2],
    PROBE,
    [PROBE[0], {"role": "assistant", "content": "", "tool_calls": [_CALL]}],
)

_known: WeakKeyDictionary[Any, tuple[Any, tuple[int, ...]]] = WeakKeyDictionary()


def record_of(form: str, ends: Iterable[int], tokenizer: Any) -> dict[str, Any]:
    """What a record says of rows of `form` whose answers end with the tokens `ends`."""
    return {FORM: form, STOP_TOKENS: [str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(set(ends))]}


def is_raw(record: Mapping[str, Any]) -> bool:
    """An adapter with this record was trained on texts, and is asked with one as it is, without a template."""
    return record.get("text", {}).get(FORM) == TEXT


def stop_ids(tokenizer: Any, record: Mapping[str, Any]) -> list[int]:
    """The tokens that end an answer of an adapter with this record: the tokenizer's end and those that its rows ended with.

    Where the record does not say, as those of other tools and an empty one, the tokens that would end a turn.
    """
    said = record.get("text", {}).get(STOP_TOKENS)
    if said is None:
        found = [*_of_template(tokenizer)]
    else:
        ids = {text: tokenizer.convert_tokens_to_ids(text) for text in said}
        known = {text: token for text, token in ids.items() if token is not None}
        found = [token for text, token in known.items() if tokenizer.convert_ids_to_tokens(token) == text]
    return [token for token in dict.fromkeys([tokenizer.eos_token_id, *found]) if token is not None]


def _of_template(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end turns of a tokenizer's chat template; looked up once."""
    if tokenizer.eos_token_id is None or not tokenizer.chat_template:
        return ()
    if (found := _known.get(tokenizer)) is None or found[0] != tokenizer.chat_template:
        ends: list[int] = []
        for trial in _TRIALS:
            with contextlib.suppress(DataError):  # many templates know no calls
                ends += [end for row in mask.conversation(tokenizer, trial, "a trial") for end in row.ends]
        found = (tokenizer.chat_template, tuple(dict.fromkeys(ends)))
        _known[tokenizer] = found
    return found[1]
