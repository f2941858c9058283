"""Rows as tokens, and which of them the loss is taken on.

    trained = the tokens of the answers (`inlay.text.answers`), each with the token that ends it

The end-of-turn token belongs to the answer: without it a model never learns to stop. The text is encoded whole, and cut only
where a prompt has other tokens alone than with its answer behind it: generation starts from the prompt alone.

A token takes 5 bytes: 4 for its number, 1 for whether it is trained on.
"""

import bisect
import dataclasses
import itertools
import re
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.errors import DataError, explain
from inlay.text.answers import QUOTED, Draft, drafts
from inlay.text.pieces import Message, Span
from inlay.text.template import added_tokens
from inlay.text.tokens import Added, encode, encode_quoting, has_quoted, quoted, text_ids, with_offsets

STARTED = "texts begin with the start token already: it is not doubled"
CONTROLS = "control tokens inside texts are read as such"
"""What is said of rows of text; see `inlay.text.answers.SPLIT`."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A row as tokens; `trained[i]`: token i is a target of the loss (the first token never is one)."""

    input_ids: Sequence[int]
    """Kept as an array of 4 bytes each."""
    trained: Sequence[int]
    """Kept as a byte each, 1 or 0."""
    source: str
    """Where the row came from, such as train.jsonl:12."""
    ends: tuple[int, ...] = ()
    """The tokens that end its answers, each once."""
    notes: tuple[str, ...] = ()
    """What was done to the row, in words that follow a number of such things."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_ids", array("i", self.input_ids))
        object.__setattr__(self, "trained", bytes(self.trained))

    @property
    def num_trained(self) -> int:
        """How many tokens are targets."""
        return bytes(self.trained).count(1, 1)


def conversation(
    tokenizer: Any,
    messages: Sequence[Message],
    source: str,
    *,
    train_on_all: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    trained: Sequence[bool] | None = None,
) -> list[Example]:
    """A conversation as tokens, its answers trained on, or everything; several rows where one text can't hold all answers.

    The arguments are those of `inlay.text.answers.drafts`.
    """
    made = drafts(tokenizer, [], messages, source, train_on_all=train_on_all, tools=tools, trained=trained)
    return encoded(tokenizer, made)


def encoded(tokenizer: Any, rows: Sequence[Draft]) -> list[Example]:
    """Drafts as tokens. Many at a time are faster than one by one."""
    if not rows:
        return []
    known = added_tokens(tokenizer)
    if not tokenizer.is_fast:
        return [_example(tokenizer, row, *_piecewise(tokenizer, row, known), 0) for row in rows]
    whole = with_offsets(tokenizer, [row.text for row in rows])
    tails = [
        [(start, *_tail(ids, offsets, start, known.ids)) for start, _ in row.spans]
        for row, (ids, offsets) in zip(rows, whole, strict=True)
    ]
    texts = list({row.text[at:start] for row, starts in zip(rows, tails, strict=True) for start, _, at in starts})
    alone = {text: ids for text, (ids, _) in zip(texts, with_offsets(tokenizer, texts), strict=True)}
    examples = []
    for row, (ids, offsets), starts in zip(rows, whole, tails, strict=True):
        num_quoted = len(quoted(ids, offsets, row.contents, known))
        prompts = [(start, i, alone[row.text[at:start]]) for start, i, at in starts]
        trained = None if num_quoted else _trained(tokenizer, row, ids, offsets, prompts)
        made = _piecewise(tokenizer, row, known) if trained is None else (ids, trained)
        examples.append(_example(tokenizer, row, *made, num_quoted))
    return examples


def _trained(
    tokenizer: Any, row: Draft, ids: list[int], offsets: list[Span], prompts: Sequence[tuple[int, int, list[int]]]
) -> bytearray | None:
    """Which tokens of a whole text are trained on; None where a prompt has other tokens alone.

    `prompts`: for each answer (the character that it starts at, the token that the end of its prompt begins with, the tokens of
    that end alone).
    """
    trained = bytearray(len(ids))
    for (start, i, prompt), (_, stop) in zip(prompts, row.spans, strict=True):
        first = _meets(ids, i, prompt) or _meets(ids, 0, encode(tokenizer, row.text[:start]))
        if not first:
            return None
        end = bisect.bisect_left(offsets, (stop, 0))
        trained[first:end] = b"\1" * (end - first)
    return trained


def document(tokenizer: Any, text: str, source: str) -> Example:
    """A text as tokens, with the tokenizer's own start and one end token, neither twice; everything is trained on.

    It may have been through a template already: control tokens in it stay what they are.
    """
    end, start = tokenizer.eos_token or "", tokenizer.bos_token
    text = text.rstrip() if end and text.rstrip().endswith(end) else text
    ids = text_ids(tokenizer, text)
    if not text.strip() or not ids:
        raise DataError(explain("a row has no text", found=source, do="remove the row"))
    while len(ids) > 1 and ids[-1] == ids[-2] == tokenizer.eos_token_id:
        ids.pop()
    if ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    inside = sum(token in added_tokens(tokenizer).control_ids for token in ids[1:-1])
    notes = [STARTED] * bool(start and text.startswith(start)) + [CONTROLS] * inside
    return Example(ids, (False,) + (True,) * (len(ids) - 1), source, (ids[-1],), tuple(notes))


def show(tokenizer: Any, example: Example, marks: tuple[str, str] = ("[[", "]]")) -> str:
    """The row as text on one line, its trained tokens between marks."""
    pieces = []
    for trained, group in itertools.groupby(
        zip(example.input_ids, example.trained, strict=True), key=lambda pair: pair[1]
    ):
        text = tokenizer.decode([token for token, _ in group])
        pieces.append(f"{marks[0]}{text}{marks[1]}" if trained else text)
    return "".join(pieces).replace("\n", "⏎")


def _example(tokenizer: Any, row: Draft, ids: Sequence[int], trained: Sequence[int], num_quoted: int) -> Example:
    if row.is_unended:
        ids, trained = [*ids, tokenizer.eos_token_id], [*trained, True]
    flags = bytes(trained)
    ends = tuple(dict.fromkeys(ids[run.end() - 1] for run in _RUN.finditer(flags)))
    if row.train_on_all:
        ends, flags = ends or (ids[-1],), b"\1" * len(ids)
    return Example(ids, b"\0" + flags[1:], row.source, ends, (*row.notes, *[QUOTED] * num_quoted))


_RUN = re.compile(b"\1+")
"""A run of trained tokens."""


def _tail(ids: list[int], offsets: list[Span], start: int, added: frozenset[int]) -> tuple[int, int]:
    """(token, character) behind the last added token before `start`; nothing in front of it changes what follows."""
    i = bisect.bisect_left(offsets, (start, 0))
    while i > 0 and ids[i - 1] not in added:
        i -= 1
    return i, offsets[i - 1][1] if i else 0


def _meets(ids: list[int], i: int, prompt: list[int]) -> int:
    """The token after `prompt`, if it stands at `i` in a row; else 0."""
    stop = i + len(prompt)
    return stop if ids[i:stop] == prompt else 0


def _piecewise(tokenizer: Any, row: Draft, known: Added) -> tuple[list[int], list[bool]]:
    """The tokens of a text that is cut where an answer starts, if the prompt's tokens are others without it.

    It is cut at the answers' ends too where a token does not tell which characters it stands for: by a tokenizer that does
    not know, or in a content whose control tokens are text.
    """
    is_blind = not tokenizer.is_fast or has_quoted(row.text, row.contents, known)
    edges = {0, len(row.text)} | ({edge for span in row.spans for edge in span} if is_blind else set())
    cut = 0
    for start, stop in row.spans if not is_blind else ():
        prompt = encode(tokenizer, row.text[cut:start])
        if encode(tokenizer, row.text[cut:stop])[: len(prompt)] != prompt:
            edges.add(start)
            cut = start
    ids: list[int] = []
    trained: list[bool] = []
    for left, right in itertools.pairwise(sorted(edges)):
        if is_blind:
            contents = [(max(a, left) - left, min(b, right) - left) for a, b in row.contents if a < right and b > left]
            piece = encode_quoting(tokenizer, row.text[left:right], contents, known)
            inside = [any(start <= left < stop for start, stop in row.spans)] * len(piece)
        else:
            ((piece, offsets),) = with_offsets(tokenizer, [row.text[left:right]])
            inside = [any(start <= left + at < stop for start, stop in row.spans) for at, _ in offsets]
        ids, trained = ids + piece, trained + inside
    return ids, trained
