"""Rows as tokens, and which of them the loss is taken on.

A conversation is rendered whole. The answer of turn i lies between what the template renders before it, generation
prompt included, and what it renders after it; this needs no marks in the template. Where a template rewrites earlier
turns, as those do that drop old reasoning, the conversation is rendered again with a mark in the answer's place. The
end-of-turn token belongs to the answer: without it a model never learns to stop.

The text is encoded whole, and cut only where a prompt has other tokens alone than with its answer behind it: generation
starts from the prompt alone.
"""

import bisect
import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

from inlay.errors import ConfigError, DataError, explain
from inlay.text.template import Message, encode, render

Span = tuple[int, int]
"""Characters start <= i < stop of a rendered text."""

_MARK = "\ue0f1\ue0f2\ue0f1"
"""Stands in the place of an answer; private characters, so that no data has them."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A row as tokens; `trained[i]`: token i is a target of the loss (the first token never is one)."""

    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    source: str
    """Where the row came from, such as train.jsonl:12."""


@dataclasses.dataclass(frozen=True)
class Draft:
    """A row as text, for `encoded` to turn into tokens together with others."""

    text: str
    spans: tuple[Span, ...]
    """The answers."""
    is_unended: bool
    """The text stops with an answer whose end token is still to be added."""
    train_on_all: bool
    source: str


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
    """A conversation as tokens, all assistant turns trained on, or everything."""
    return answers(tokenizer, [], messages, source, train_on_all=train_on_all)


def answers(
    tokenizer: Any,
    prompts: Sequence[Message],
    completions: Sequence[Message],
    source: str,
    *,
    train_on_all: bool = False,
) -> Example:
    """A prompt and its completion as tokens, trained on the assistant turns of the completion."""
    return encoded(tokenizer, [draft(tokenizer, prompts, completions, source, train_on_all=train_on_all)])[0]


def draft(
    tokenizer: Any,
    prompts: Sequence[Message],
    completions: Sequence[Message],
    source: str,
    *,
    train_on_all: bool = False,
) -> Draft:
    """A prompt and its completion as text, and the assistant turns of the completion in it.

    **Raises:**

    - `DataError`: the template refuses the row; or, unless `train_on_all`, there is no answer, one has no text, or the
      template leaves one out.
    """
    messages = [*prompts, *completions]
    turns = [i for i in range(len(prompts), len(messages)) if messages[i]["role"] == "assistant"]
    if not train_on_all:
        _check_answers(messages, turns, source)
    text = render(tokenizer, messages, source)
    spans: list[Span] = []
    for i in turns:
        after = spans[-1][1] if spans else 0
        span = _between(tokenizer, messages, i, text, after) or _marked(tokenizer, messages, i, text, after)
        if span is not None:
            spans.append(span)
        elif not train_on_all:
            raise _left_out(messages[i], source)
    is_unended = False
    if spans and not text[spans[-1][1] :].strip():  # the row stops with this answer: so must its tokens
        stop = spans[-1][1]
        is_unended = re.search(rf"(?:{_special_pattern(tokenizer)})$", text[:stop]) is None
        text = text[:stop] if is_unended else text
    return Draft(text, tuple(spans), is_unended, train_on_all, source)


def encoded(tokenizer: Any, drafts: Sequence[Draft]) -> list[Example]:
    """Drafts as tokens. Many at a time are faster than one by one."""
    if not drafts:
        return []
    if not tokenizer.is_fast:
        return [_example(tokenizer, row, *_piecewise(tokenizer, row)) for row in drafts]
    whole = _encoded(tokenizer, [row.text for row in drafts])
    added = frozenset(tokenizer.get_added_vocab().values())
    tails = [
        [(start, *_tail(ids, offsets, start, added)) for start, _ in row.spans]
        for row, (ids, offsets) in zip(drafts, whole, strict=True)
    ]
    texts = {row.text[at:start] for row, starts in zip(drafts, tails, strict=True) for start, _, at in starts}
    alone = {text: ids for text, (ids, _) in zip(texts, _encoded(tokenizer, list(texts)), strict=True)} if texts else {}
    examples = []
    for row, (ids, offsets), starts in zip(drafts, whole, tails, strict=True):
        trained: list[bool] | None = [False] * len(ids)
        for (start, i, at), (_, stop) in zip(starts, row.spans, strict=True):
            first = _meets(ids, i, alone[row.text[at:start]]) or _meets(ids, 0, encode(tokenizer, row.text[:start]))
            if not first:
                trained = None
                break
            end = bisect.bisect_left(offsets, (stop, 0))
            trained[first:end] = [True] * (end - first)
        examples.append(_example(tokenizer, row, *(_piecewise(tokenizer, row) if trained is None else (ids, trained))))
    return examples


def document(tokenizer: Any, text: str, source: str) -> Example:
    """A text as tokens, with the tokenizer's own start and one end token; everything is trained on."""
    ids = list(tokenizer(text, verbose=False)["input_ids"])
    if not text.strip() or not ids:
        raise DataError(explain("a row has no text", found=source, do="remove the row"))
    if ids[-1] != tokenizer.eos_token_id:
        ids.append(tokenizer.eos_token_id)
    return Example(tuple(ids), (False,) + (True,) * (len(ids) - 1), source)


def fit(example: Example, max_length: int, too_long: str) -> list[Example]:
    """The row itself where it has at most `max_length` tokens; otherwise nothing ('drop') or its windows ('window').

    A window starts with the last token of the one before it, so that no target is lost: the first token of a window has
    nothing before it to be predicted from. Windows without a target are left out; one token alone is never one.
    """
    if len(example.input_ids) <= max_length:
        return [example]
    if too_long == "drop" or max_length < 2:
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


def _check_answers(messages: Sequence[Message], turns: Sequence[int], source: str) -> None:
    if not turns:
        raise DataError(
            explain("a row has no turn of the assistant", found=source, do="add its answer, or --train-on all")
        )
    if not all(messages[i]["content"].strip() or messages[i].get("tool_calls") for i in turns):
        raise DataError(explain("a row has an empty answer", found=source, do="remove the row"))


def _left_out(message: Message, source: str) -> DataError:
    return DataError(
        explain(
            "the chat template leaves an answer out, or changes it, so that it can't be trained on",
            found=f"{source}: {message['content'].strip()[:60]!r}",
            do="a row for each answer: prompt, the messages before it, and completion, the answer",
        )
    )


def _between(tokenizer: Any, messages: Sequence[Message], i: int, text: str, after: int) -> Span | None:
    """The answer of turn i, between what is rendered before it and with it; None where the text has other fronts."""
    if i == 0:
        return None
    try:
        before = render(tokenizer, messages[:i], add_generation_prompt=True)
        # the last turn's end is the text's own end: the template need not be asked again
        upto = text if i == len(messages) - 1 else render(tokenizer, messages[: i + 1])
    except DataError:  # a part of a conversation may be refused where the whole is not
        return None
    if not (text.startswith(before) and text.startswith(upto) and after <= len(before) < len(upto)):
        return None
    return len(before), len(before) + len(_without_tail(tokenizer, upto[len(before) :]))


def _marked(tokenizer: Any, messages: Sequence[Message], i: int, text: str, after: int) -> Span | None:
    """The answer of turn i, where a mark put in its place comes out, with the end-of-turn token after it."""
    content = messages[i]["content"].strip()
    try:
        marked = render(tokenizer, [*messages[:i], {**messages[i], "content": _MARK}, *messages[i + 1 :]])
    except DataError:
        return None
    before, mark, behind = marked.partition(_MARK)
    start, stop = len(before), len(text) - len(behind)
    if not (content and mark and text.startswith(before) and text.endswith(behind) and after <= start < stop):
        return None
    if text[start:stop].strip() != content:
        return None
    match = re.compile(rf"\s*({_special_pattern(tokenizer)})").match(text, stop)
    return start, match.end() if match else stop


def _without_tail(tokenizer: Any, answer: str) -> str:
    """The answer up to its end-of-turn token: white space behind that is the template's, not the model's to write."""
    matches = list(re.finditer(_special_pattern(tokenizer), answer))
    return answer[: matches[-1].end()] if matches and not answer[matches[-1].end() :].strip() else answer.rstrip()


def _special_pattern(tokenizer: Any) -> str:
    """A pattern for the special tokens of a tokenizer, and other whole tokens that were added to it."""
    return _any_of(frozenset([*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]))


@functools.lru_cache(maxsize=8)
def _any_of(texts: frozenset[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)"


def _example(tokenizer: Any, row: Draft, ids: list[int], trained: list[bool]) -> Example:
    if row.is_unended:
        ids, trained = [*ids, tokenizer.eos_token_id], [*trained, True]
    if row.train_on_all:
        trained = [True] * len(ids)
    return Example(tuple(ids), (False, *trained[1:]), row.source)


def _encoded(tokenizer: Any, texts: list[str]) -> list[tuple[list[int], list[Span]]]:
    """The tokens of each text and the characters that they stand for."""
    made = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [(one.ids, one.offsets) for one in made.encodings]


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


def _piecewise(tokenizer: Any, row: Draft) -> tuple[list[int], list[bool]]:
    """The tokens of a text that is cut where an answer starts, if the prompt's tokens are others without it.

    A tokenizer that does not tell which characters a token stands for has the text cut at the answers' ends too.
    """
    edges = {0, len(row.text)} | ({stop for _, stop in row.spans} if not tokenizer.is_fast else set())
    cut = 0
    for start, stop in row.spans:
        prompt = encode(tokenizer, row.text[cut:start])
        if not tokenizer.is_fast or encode(tokenizer, row.text[cut:stop])[: len(prompt)] != prompt:
            edges.add(start)
            cut = start
    ids: list[int] = []
    trained: list[bool] = []
    for left, right in itertools.pairwise(sorted(edges)):
        if tokenizer.is_fast:
            piece, offsets = _encoded(tokenizer, [row.text[left:right]])[0]
            inside = [any(start <= left + at < stop for start, stop in row.spans) for at, _ in offsets]
        else:
            piece = encode(tokenizer, row.text[left:right])
            inside = [any(start <= left < stop for start, stop in row.spans)] * len(piece)
        ids, trained = ids + piece, trained + inside
    return ids, trained
