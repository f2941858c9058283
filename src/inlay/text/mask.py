"""Rows as tokens, and which of them the loss is taken on.

A conversation is rendered whole. The answer of turn i lies between what the template renders before it, generation prompt
included, and what it renders after it; this needs no marks in the template. Where a template rewrites earlier turns, as
those do that drop old reasoning, the answer's text is looked up instead. The end-of-turn token belongs to the answer:
without it a model never learns to stop.
"""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import Any

from inlay.errors import ConfigError, DataError, explain
from inlay.text.template import Message, encode, render

Span = tuple[int, int]
"""Characters start <= i < stop of a rendered text."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A row as tokens; `trained[i]`: token i is a target of the loss (the first token never is one)."""

    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    source: str
    """Where the row came from, such as train.jsonl:12."""


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


def conversation(tokenizer: Any, messages: Sequence[Message], source: str, *, train_on_all: bool = False) -> Example:
    """A conversation as tokens, all assistant turns trained on, or everything.

    **Raises:**

    - `DataError`: no turn of the assistant has any text, or the template hides one.
    """
    text, spans = _rendered(tokenizer, messages, source)
    return _example(tokenizer, text, spans, source, train_on_all)


def answers(
    tokenizer: Any,
    prompts: Sequence[Message],
    completions: Sequence[Message],
    source: str,
    *,
    train_on_all: bool = False,
) -> Example:
    """A prompt and its completion as tokens, trained on the assistant turns of the completion."""
    text, spans = _rendered(tokenizer, [*prompts, *completions], source)
    wanted = sum(message["role"] == "assistant" for message in completions)
    return _example(tokenizer, text, spans[len(spans) - wanted :], source, train_on_all)


def document(tokenizer: Any, text: str, source: str) -> Example:
    """A text as tokens, with the tokenizer's own start and one end token; everything is trained on."""
    ids = list(tokenizer(text)["input_ids"])
    if not text.strip():
        raise DataError(explain("a row has no text", found=source, do="remove the row"))
    if ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return Example(tuple(ids), (False,) + (True,) * (len(ids) - 1), source)


def fit(example: Example, max_length: int, too_long: str) -> list[Example]:
    """The row itself where it has at most `max_length` tokens; otherwise nothing ('drop') or its windows ('window').

    A window starts with the last token of the one before it, so that no target is lost: the first token of a window has
    nothing before it to be predicted from. Windows without a target are left out.
    """
    if len(example.input_ids) <= max_length:
        return [example]
    if too_long == "drop":
        return []
    windows = []
    for start in range(0, len(example.input_ids) - 1, max_length - 1):
        ids, trained = example.input_ids[start : start + max_length], example.trained[start : start + max_length]
        if any(trained[1:]):
            windows.append(Example(ids, (False, *trained[1:]), example.source))
    return windows


def show(tokenizer: Any, example: Example, marks: tuple[str, str] = ("[[", "]]")) -> str:
    """The row as text on one line, its trained tokens between marks."""
    pieces = []
    for trained, group in itertools.groupby(
        zip(example.input_ids, example.trained, strict=True), key=lambda pair: pair[1]
    ):
        text = tokenizer.decode([token for token, _ in group])
        pieces.append(f"{marks[0]}{text}{marks[1]}" if trained else text)
    return "".join(pieces).replace("\n", "⏎")


def _rendered(tokenizer: Any, messages: Sequence[Message], source: str) -> tuple[str, list[Span]]:
    """The rendered conversation, and the span of every assistant turn in it."""
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise DataError(
            explain("a row has no turn of the assistant", found=source, do="add its answer, or --train-on all")
        )
    text = render(tokenizer, messages)
    spans: list[Span] = []
    for i in turns:
        if not messages[i]["content"].strip():
            raise DataError(explain("a row has an empty answer", found=source, do="remove the row"))
        after = spans[-1][1] if spans else 0
        before = render(tokenizer, messages[:i], add_generation_prompt=True)
        # the last turn's end is the text's own end: templates need not be asked again
        upto = text if i == len(messages) - 1 else render(tokenizer, messages[: i + 1])
        if text.startswith(before) and text.startswith(upto) and after <= len(before) < len(upto):
            spans.append((len(before), len(before) + len(_without_tail(tokenizer, upto[len(before) :]))))
        else:
            spans.append(_searched(tokenizer, text, messages[i]["content"], after, source))
    return text, spans


def _searched(tokenizer: Any, text: str, content: str, after: int, source: str) -> Span:
    """The span of an answer whose text stands in the rendered conversation, with the end-of-turn token after it."""
    start = text.find(content.strip(), after)
    if start < 0:
        raise DataError(
            explain(
                "the chat template leaves an answer out, or changes it, so that it can't be trained on",
                found=f"{source}: {content.strip()[:60]!r}",
                do="split the conversation so that this answer is its last turn",
            )
        )
    stop = start + len(content.strip())
    match = re.compile(rf"\s*({_special_pattern(tokenizer)})").match(text, stop)
    return start, match.end() if match else stop


def _without_tail(tokenizer: Any, answer: str) -> str:
    """The answer up to its end-of-turn token: white space behind that is the template's, not the model's to write."""
    matches = list(re.finditer(_special_pattern(tokenizer), answer))
    return answer[: matches[-1].end()] if matches and not answer[matches[-1].end() :].strip() else answer.rstrip()


def _special_pattern(tokenizer: Any) -> str:
    """A pattern for the special tokens of a tokenizer, and other whole tokens that were added to it."""
    texts = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)"


def _example(tokenizer: Any, text: str, spans: Sequence[Span], source: str, train_on_all: bool) -> Example:
    if spans and not text[spans[-1][1] :].strip():  # the conversation ends with this answer: so must its tokens
        ended = re.search(rf"(?:{_special_pattern(tokenizer)})$", text[: spans[-1][1]])
        text = text if ended else text[: spans[-1][1]]
        ids, trained = _tokens(tokenizer, text, spans)
        if not ended:
            ids, trained = [*ids, tokenizer.eos_token_id], [*trained, True]
    else:
        ids, trained = _tokens(tokenizer, text, spans)
    if train_on_all:
        trained = [True] * len(ids)
    return Example(tuple(ids), (False, *trained[1:]), source)


def _tokens(tokenizer: Any, text: str, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
    """The tokens of the whole text, and which of them lie in a span.

    The text is cut where a token would hold the end of a prompt and the start of an answer: generation starts from the
    prompt alone, and never sees such a token.
    """
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets: list[Span] = encoded["offset_mapping"]
        if not any(_straddled(offsets, start) for start, _ in spans):
            return encoded["input_ids"], [_inside(offset, spans) for offset in offsets]
    ids: list[int] = []
    trained: list[bool] = []
    edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
    for start, stop in itertools.pairwise(edges):
        piece = encode(tokenizer, text[start:stop])
        ids += piece
        trained += [any(a <= start < b for a, b in spans)] * len(piece)
    return ids, trained


def _straddled(offsets: Sequence[Span], edge: int) -> bool:
    """A token has characters on both sides of `edge`."""
    i = bisect.bisect_left(offsets, (edge, 0)) - 1  # the last token that starts before the edge
    return i >= 0 and offsets[i][1] > edge


def _inside(offset: Span, spans: Sequence[Span]) -> bool:
    return any(start <= offset[0] < stop for start, stop in spans)
