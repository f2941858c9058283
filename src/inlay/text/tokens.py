"""Text as tokens, with the control tokens that contents quote kept as plain text.

A tokenizer makes one control token of `<|im_end|>` wherever it stands, in a template's own text and in what a user typed.
Only the template may end a turn: a control token inside a content is encoded as the characters that it is.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from inlay.errors import DataError, explain
from inlay.text.pieces import Span, is_tag


@dataclasses.dataclass(frozen=True)
class Added:
    """The whole tokens that were added to a vocabulary."""

    ids: frozenset[int]
    control_ids: frozenset[int]
    """Those that contents may not hold: special ones, and those that the chat template writes; tags of thoughts they may."""
    control_texts: tuple[str, ...]
    _whole: dict[int, frozenset[str]]
    """All of them by their length, the longest first."""

    following: list[str | None] = dataclasses.field(default_factory=list)
    """What the chat template writes between an answer and the next question, once it was looked up."""

    def ends(self, text: str) -> list[int]:
        """Where added tokens of a text end that may end an answer, which tags do not; none if more follows the last one."""
        found, at = [], 0
        while (span := self.first(text, at)) is not None:
            at = span[1]
            if not is_tag(text[span[0] : at]):
                found.append(at)
        return found if found and not text[found[-1] :].strip() else []

    def first(self, text: str, start: int = 0) -> Span | None:
        """The first added token of a text from `start` on."""
        for at in range(start, len(text)):
            for length, tokens in self._whole.items():
                if text[at : at + length] in tokens:
                    return at, at + length
        return None


def added(tokenizer: Any, written: str) -> Added:
    """The added tokens of a tokenizer whose chat template writes, for one, `written`."""
    vocabulary = tokenizer.get_added_vocab()
    special = {*tokenizer.all_special_tokens}
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    controls = {text for text in {*vocabulary, *special} if text.strip() and not is_tag(text)}
    controls = {text for text in controls if text in special or text in written}
    # some vocabularies have runs of newlines among them, which end nothing
    whole = sorted((text for text in {*vocabulary, *special} if text.strip()), key=len, reverse=True)
    by_length = {length: frozenset(group) for length, group in itertools.groupby(whole, key=len)}
    ids = {text: vocabulary.get(text, tokenizer.convert_tokens_to_ids(text)) for text in controls}
    return Added(
        ids=frozenset(vocabulary.values()),
        control_ids=frozenset(number for number in ids.values() if number is not None),
        control_texts=tuple(sorted(map(str, controls))),
        _whole=by_length,
    )


def encode(tokenizer: Any, text: str) -> list[int]:
    """The tokens of rendered text, whose special tokens are in it already."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text without a template, with the tokenizer's own start, once, and no end of the tokenizer's."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    while len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        del ids[0]
    if ids and ids[-1] == tokenizer.eos_token_id and len(ids) > 1:
        bare = encode(tokenizer, text)  # some tokenizers end every text
        if not bare or bare[-1] != ids[-1] or ids[-2:] == [ids[-1]] * 2:
            ids.pop()
    return ids


def with_offsets(tokenizer: Any, texts: list[str]) -> list[tuple[list[int], list[Span]]]:
    """The tokens of each text and the characters that they stand for."""
    if not texts:
        return []
    made = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [(one.ids, one.offsets) for one in made.encodings]


def quoted(ids: Sequence[int], offsets: Sequence[Span], contents: Sequence[Span], known: Added) -> list[int]:
    """The numbers of the tokens that are control tokens inside contents (sorted spans)."""
    found = [k for k, token in enumerate(ids) if token in known.control_ids]
    starts = [start for start, _ in contents]
    return [
        k for k in found if (i := bisect.bisect_right(starts, offsets[k][0])) and offsets[k][1] <= contents[i - 1][1]
    ]


def has_quoted(text: str, contents: Sequence[Span], known: Added) -> bool:
    """Whether contents hold control tokens, by their text."""
    return any(control in text[start:stop] for start, stop in contents for control in known.control_texts)


def encode_quoting(tokenizer: Any, text: str, contents: Sequence[Span], known: Added) -> list[int]:
    """The tokens of a text whose contents (sorted spans) have no control tokens, only the characters of them.

    **Raises:**

    - `DataError`: the tokenizer makes a control token of them whatever is done.
    """
    if not tokenizer.is_fast:
        if has_quoted(text, contents, known):
            raise _unavoidable(text, contents, known)
        return encode(tokenizer, text)
    ((ids, offsets),) = with_offsets(tokenizer, [text])
    fakes = set(quoted(ids, offsets, contents, known))
    if not fakes:
        return ids
    made: list[int] = []
    edges = [-1, *(k for k, token in enumerate(ids) if token in known.ids and k not in fakes), len(ids)]
    for left, right in itertools.pairwise(edges):
        if left >= 0:
            made.append(ids[left])
        if fakes.isdisjoint(range(left + 1, right)):
            made += ids[left + 1 : right]
            continue
        start = offsets[left][1] if left >= 0 else 0
        stop = offsets[right][0] if right < len(ids) else len(text)
        plain = _plain(tokenizer, text[start:stop], is_first=left < 0)
        if not known.control_ids.isdisjoint(plain):
            raise _unavoidable(text, contents, known)
        made += plain
    return made


def _plain(tokenizer: Any, text: str, *, is_first: bool) -> list[int]:
    """The tokens of a piece of a text as if no token had been added to the vocabulary.

    Behind another token it is encoded after a newline, which is then taken away: some tokenizers put a space before a text.
    """
    backend = tokenizer.backend_tokenizer

    def tokens(text: str) -> list[int]:
        text = backend.normalizer.normalize_str(text) if backend.normalizer else text
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)] if backend.pre_tokenizer else [text]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    if is_first:
        return tokens(text)
    front, whole = tokens("\n"), tokens("\n" + text)
    return whole[len(front) :] if whole[: len(front)] == front else tokens(text)


def _unavoidable(text: str, contents: Sequence[Span], known: Added) -> DataError:
    found = next((c for start, stop in contents for c in known.control_texts if c in text[start:stop]), "")
    return DataError(
        explain(
            "a content holds a control token that this tokenizer can't write as plain text",
            found=f"{found!r} in the text",
            do="take it out of the row, or put a space into it",
        )
    )
