"""Rows as the model will see them: the pieces of their text that are trained on, the tokens that end them, what is cut."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from inlay.data import forms, sources
from inlay.data.files import Numbered
from inlay.data.sources import Source
from inlay.errors import DataError
from inlay.tasks import causal_lm
from inlay.text.mask import Example

Piece = Literal["", "trained", "end", "cut"]
"""Not trained on; trained on; the trained token that ends an answer; beyond the longest row."""

MARKS: dict[Piece, tuple[str, str]] = {"": ("", ""), "trained": ("[[", "]]"), "end": ("[[", "]]"), "cut": ("~~", "~~")}
"""What stands around a piece where there are no colours; an end token is within the marks of its answer."""

_WITHOUT_END = 1 << 40
"""More tokens than a row has."""


@dataclasses.dataclass(frozen=True)
class Shown:
    """A row, or one of those that it was split into."""

    source: str
    pieces: tuple[tuple[str, Piece], ...] = ()
    """Its text on one line, piece by piece."""
    num_tokens: int = 0
    num_trained: int = 0
    num_cut: int = 0
    """Tokens beyond the longest row."""
    ends: tuple[str, ...] = ()
    """The tokens that end its answers."""
    problem: str = ""
    """Why it can't be trained on."""


def shown(source: Source, tokenizer: Any, max_length: int, train_on: str, skip: int, count: int) -> Iterator[Shown]:
    """The rows of a source from `skip` on, `count` of them; no more of it is read."""
    values: list[tuple[str, Any]] = []

    def take(numbered: Iterable[Numbered], name: str, unused: Counter[str]) -> list[int]:
        numbered = itertools.islice(numbered, max(0, skip + count - len(values)))
        values.extend((f"{name}:{number}", value) for number, value in numbered)
        return [len(values)]

    sources.read(source, take)
    for place, value in values[skip:]:
        try:
            (row,) = forms.read([value]).rows
            row = dataclasses.replace(row, source=place)
            made = causal_lm.prepare([row], tokenizer, _WITHOUT_END, train_on, None).examples
        except DataError as error:
            yield Shown(place, problem="; ".join(error.found) or error.wrong)
            continue
        yield from (_shown(tokenizer, example, max_length) for example in made)


def _shown(tokenizer: Any, example: Example, max_length: int) -> Shown:
    kinds: list[Piece] = ["trained" if flag else "" for flag in example.trained]
    for i, token in enumerate(example.input_ids):
        if i >= max_length:
            kinds[i] = "cut"
        elif kinds[i] and token in example.ends and kinds[i + 1 : i + 2] != ["trained"]:
            kinds[i] = "end"
    pieces: list[tuple[str, Piece]] = []
    start = 0
    for kind, group in itertools.groupby(kinds):
        stop = start + len([*group])
        pieces.append((tokenizer.decode(list(example.input_ids[start:stop])).replace("\n", "⏎"), kind))
        start = stop
    num_cut = max(0, len(example.input_ids) - max_length)
    ends = tuple(str(tokenizer.convert_ids_to_tokens(token)) for token in example.ends)
    return Shown(example.source, tuple(pieces), len(example.input_ids), example.num_trained, num_cut, ends)


def marked(pieces: Iterable[tuple[str, Piece]]) -> str:
    """The text of pieces with marks in place of colours: an answer and the token that ends it within one pair."""
    text = "".join(f"{MARKS[kind][0]}{piece}{MARKS[kind][1]}" for piece, kind in pieces)
    return text.replace("]][[", "")
