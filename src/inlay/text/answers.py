"""Where the answers stand in a rendered conversation: from the end of the generation prompt to the token that ends the turn.

    prompt(i)   = the template's text for the messages before turn i, with its generation prompt
    answer(i)   = what generation has to write behind it: the rest of the text with turn i as its last, up to the end token

A row is one text as long as that text begins with prompt(i) for every answer i and goes on with answer(i). That is so for most
templates, and looked up once for each way in which turns follow each other, so that a row of 400 turns is rendered a
handful of times. Where a template writes earlier turns in another way once more follow (old thoughts are dropped, the system
text moves to the last question, another token ends the last turn), each answer becomes a row of its own.

A generation prompt that opens a thought is followed by a thought in training too: that of the row, or an empty one.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inlay.errors import DataError, explain
from inlay.text.pieces import Message, Span, opened_thought, refusal
from inlay.text.template import PROBE, Asked, Conversation, Rendered, added_tokens, opening

SPLIT = "rows split into one for each answer: the template writes earlier turns in another way"
THOUGHT = "answers got an empty thought: the template's generation prompt opens one"
FORGOTTEN = "thoughts of earlier turns left out, as the template does when it is asked for the next answer"
QUOTED = "control tokens in contents kept as text"
"""What is said of rows that are not trained on just as they stand; each follows a number."""

_EMPTY_BEFORE_OWN = re.compile(r"\s*<(\w+)>\s*</\1>\s*<\1>")


@dataclasses.dataclass(frozen=True)
class Draft:
    """A row as text, for `inlay.text.mask.encoded` to turn into tokens together with others."""

    text: str
    spans: tuple[Span, ...]
    """The answers."""
    contents: tuple[Span, ...]
    """What comes from the conversation: control tokens there are text."""
    is_unended: bool
    """The text stops with an answer whose end token is still to be added."""
    train_on_all: bool
    source: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _End:
    """How a turn ends: so many characters behind its last piece, or a token that is still to be added."""

    length: int
    appended: str = ""


def drafts(
    tokenizer: Any,
    prompts: Sequence[Message],
    completions: Sequence[Message],
    source: str,
    *,
    train_on_all: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    trained: Sequence[bool] | None = None,
) -> list[Draft]:
    """A prompt and its completion as text, and the assistant turns of the completion in it; a text for each where one can't
    hold them all.

    **Arguments:**

    - `tools`: the schemas that the conversation offers.
    - `trained`: for each message, those of the prompt first, whether it is to be learned if it is an answer of the
      completion; all are unless given.

    **Raises:**

    - `DataError`: the template refuses the row, or does not write all that it says; or, unless `train_on_all`, there is no
      answer, one is empty, or training and generation can't agree on where one starts.
    """
    return begun(tokenizer, prompts, completions, source, train_on_all=train_on_all, tools=tools, trained=trained)()


def begun(*row: Any, **how: Any) -> Callable[[], list[Draft]]:
    """What ends `drafts` of the same arguments, whose texts are under way from now on; what refuses the row does so there."""
    make = functools.partial(_Row, *row, **how)
    try:
        return make().drafts
    except DataError:
        return lambda: make().drafts()


def _check_answers(messages: Sequence[Message], turns: Sequence[int], source: str, *, are_left: bool) -> None:
    if not turns:
        do = "remove the row" if are_left else "add its answer, or --train-on all"
        wrong = "a row trains on none of its answers" if are_left else "a row has no turn of the assistant"
        raise DataError(explain(wrong, found=source, do=do))
    for each in (messages[i] for i in turns):
        if not ((each.get("content") or "").strip() or each.get("tool_calls")):
            raise DataError(explain("a row has an empty answer", found=source, do="remove the row"))


class _Row:
    """One row and the template that writes it."""

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[Message],
        completions: Sequence[Message],
        source: str,
        *,
        train_on_all: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        trained: Sequence[bool] | None,
    ):
        self.tokenizer, self.source, self.tools, self.train_on_all = tokenizer, source, tools, train_on_all
        self.messages = messages = [*prompts, *completions]
        answers = [i for i, each in enumerate(messages) if each["role"] == "assistant" and i >= len(prompts)]
        self.turns = turns = [i for i in answers if trained is None or trained[i]]
        if not train_on_all:
            _check_answers(messages, turns, source, are_left=bool(answers))
        self.added = added_tokens(tokenizer)
        self.talk = Conversation(tokenizer, messages, source, tools)
        calls = [call for message in messages for call in message.get("tool_calls") or [] if isinstance(call, Mapping)]
        ids = {*(call.get("id") for call in calls), *(message.get("tool_call_id") for message in messages)}
        self.ids = [value for value in ids if isinstance(value, str) and value]
        self._ahead([*turns[:-1][:1], *turns[-1:]], *((len(messages), False, marks) for marks in (False, True)))

    def drafts(self) -> list[Draft]:
        whole = self.talk.rendered(len(self.messages))
        forgotten = self._check(whole, len(self.messages))
        if self.train_on_all and not self.turns:
            return [self._draft(whole, [], "", ())]
        is_lost = any(turn in self.turns for turn in forgotten) and not self.train_on_all
        if not is_lost and (draft := self._together(whole, forgotten)):
            return [draft]
        if self.train_on_all:
            if forgotten:
                raise refusal(whole.faults[0], self.source, self.tokenizer.name_or_path)
            return [self._draft(whole, [], self._missing_end(whole), ())]
        self._ahead(self.turns)
        made = [self._alone(i) for i in self.turns]
        return [dataclasses.replace(made[0], notes=(*made[0].notes, SPLIT)), *made[1:]] if len(made) > 1 else made

    def _ahead(self, turns: Sequence[int], *more: Asked) -> None:
        """Begin to make the texts that tell where these turns begin and end, and more."""
        edges = (text for i in turns for text in ((i, True, False), (i + 1, False, False), (i + 1, False, True)))
        self.talk.ahead(*more, *(text for text in edges if text[0]))

    def _without_ids(self, text: str) -> str:
        """A text in which the numbers of calls are blank: it is the same for every call then."""
        for value in self.ids:
            if value in text:
                text = text.replace(value, "\0" * len(value))
        return text

    def _check(self, made: Rendered, last: int) -> list[int]:
        """Refuse a text that does not have all that the row says; the turns of earlier thoughts that it drops, as it may."""
        forgotten = []
        for fault in made.faults:
            is_thought = fault.piece.kind == "reasoning" and fault.piece.role == "assistant"
            if not (is_thought and fault.what == "leaves out" and fault.piece.turn <= last):
                raise refusal(fault, self.source, self.tokenizer.name_or_path)
            forgotten.append(fault.piece.turn)
        return forgotten

    def _missing_end(self, whole: Rendered) -> str:
        """The end token where the row stops with an answer without one."""
        is_open = self.messages[-1]["role"] == "assistant" and not self.added.ends(whole.text[-200:])
        return self.tokenizer.eos_token if is_open else ""

    def _draft(self, made: Rendered, spans: list[Span], appended: str, notes: Sequence[str]) -> Draft:
        stop = spans[-1][1] if spans and appended else len(made.text)
        return self._finished(made.text[:stop], spans, made.contents, appended, notes)

    def _finished(
        self, text: str, spans: list[Span], contents: list[Span], appended: str, notes: Sequence[str]
    ) -> Draft:
        if any(_EMPTY_BEFORE_OWN.match(text, start) for start, _ in spans):
            raise DataError(
                explain(
                    "the chat template writes an empty thought before the row's own",
                    found=f"{self.source}: {text[spans[-1][0] :][:80]!r}",
                    do="a template that is right in the model's chat_template.jinja, or rows without thoughts",
                )
            )
        is_header = appended not in ("", self.tokenizer.eos_token)
        if is_header:  # its white space may share tokens with the text
            text = text + appended
            spans = [*spans[:-1], (spans[-1][0], len(text))]
        return Draft(
            text,
            tuple(spans),
            tuple(contents),
            is_unended=bool(appended) and not is_header,
            train_on_all=self.train_on_all,
            source=self.source,
            notes=tuple(notes),
        )

    def _together(self, whole: Rendered, forgotten: list[int]) -> Draft | None:
        """All answers in one text; None where it does not hold them as generation has to write them."""
        spans: list[Span] = []
        seen: dict[Any, tuple[int, _End] | None] = {}
        appended, stop_of_all = "", len(whole.text)
        starts = _bounds(whole)
        for i in self.turns:
            if i not in whole.extents:
                return None
            (first, last), (before, after) = whole.extents[i], starts[i]
            if not before <= first <= last <= after:
                return None
            header, glue = whole.text[before:first], whole.text[last:after]
            key = (self._without_ids(header), self._without_ids(glue), i == 0, i == len(self.messages) - 1)
            if key not in seen or forgotten or i == self.turns[-1]:
                seen[key] = self._edges(whole, i, first, before, glue)
            if (edges := seen[key]) is None:
                return None
            spans.append((first - edges[0], last + edges[1].length))
            if i == len(self.messages) - 1:
                appended = edges[1].appended
                stop_of_all = _row_end(whole.text, spans[-1][1])
            elif edges[1].appended:
                return None
        made = dataclasses.replace(whole, text=whole.text[:stop_of_all])
        return self._draft(made, spans, appended, [FORGOTTEN] * len(forgotten))

    def _edges(self, whole: Rendered, i: int, first: int, before: int, glue: str) -> tuple[int, _End] | None:
        """How far before its first piece turn i begins, and how it ends; None where generation has it otherwise."""
        self._ahead([i])
        prompt = self.talk.text(i, add=True) if i else whole.text[:first]
        if not whole.text.startswith(prompt) or len(prompt) > first:
            return None
        header, is_last = prompt[before:], i == len(self.messages) - 1
        tail = glue if is_last else self._tail(i)
        end = None if tail is None else self._end(tail, header, glue, i, is_last)
        return None if end is None else (first - len(prompt), end)

    def _tail(self, i: int) -> str | None:
        """What stands behind turn i where it is the last."""
        try:
            made = self.talk.rendered(i + 1)
        except DataError:  # a part of a conversation may be refused where the whole is not
            return None
        return made.text[made.extents[i][1] :] if i in made.extents else None

    def _end(self, tail: str, header: str, glue: str, i: int, is_last: bool) -> _End | None:
        """How turn i ends, from what is behind it as the last turn, `tail`, and in this row, `glue`.

        It ends with the last added token of the tail that is there too where another message follows: some templates write an
        end of the whole text behind the end of the last turn.
        """
        closed = tail[: self._without_header(tail, header)]
        if ends := self.added.ends(closed):
            following = glue if not is_last else self._following(i) if len(ends) > 1 else None
            for end in reversed(ends):
                if following is None or following.startswith(closed[:end]):
                    return _End(end)
            return _End(ends[-1]) if is_last else None
        following = (self._following(i) or "") if is_last else glue
        kept = closed.rstrip()
        found = self.added.first(following, len(kept))
        if found and following.startswith(kept) and not following[len(kept) : found[0]].strip():
            # the next header ends the answer; where none follows, the text gets its first token
            return _End(len(kept), following[len(kept) : found[1]]) if is_last else _End(found[1])
        return _End(len(kept), self.tokenizer.eos_token) if is_last else None

    def _without_header(self, tail: str, header: str) -> int:
        """How much of a tail is no header of a next answer, which some templates write whether asked for one or not."""
        lost = opening(self.tokenizer)
        if lost is None:
            return len(tail)
        whole, tail = tail, tail + lost
        common = _common_end(tail, header)
        if not common.strip() or common.strip() == self.tokenizer.eos_token:
            return len(whole)
        if len(common) < len(tail):
            cut, at = len(tail) - len(common), 0
            while (found := self.added.first(tail, at)) is not None and found[0] < cut:
                at = found[1]
            return min(max(cut, at), len(whole))  # never within a token
        first = self.added.first(whole)  # the question ends as the answer does
        return first[1] if first else len(whole)

    def _following(self, i: int) -> str | None:
        """What stands between turn i and a message behind it, in a conversation made up for it; None where it is refused."""
        message = self.messages[i]
        has_calls = bool(message.get("tool_calls"))
        if not has_calls and self.added.following:
            return self.added.following[0]
        follows = {"role": "tool", "content": "2.1 m"} if has_calls else PROBE[2]
        if has_calls and isinstance(message["tool_calls"][0], Mapping) and message["tool_calls"][0].get("id"):
            follows = {**follows, "tool_call_id": message["tool_calls"][0]["id"]}
        probe = [PROBE[0], message if has_calls else PROBE[1], follows]
        try:
            made = Conversation(self.tokenizer, probe, "the prompt", self.tools).rendered(len(probe))
        except DataError:
            glue = None
        else:
            is_whole = 1 in made.extents and 2 in made.extents
            glue = made.text[made.extents[1][1] : made.extents[2][0]] if is_whole else None
        if not has_calls:
            self.added.following.append(glue)
        return glue

    def _alone(self, i: int) -> Draft:
        """The answer of turn i in a row of its own, behind what generation is given for it."""
        made = self.talk.rendered(i + 1)
        forgotten = self._check(made, i)
        if i not in made.extents:
            raise self._disagreement(i, made.text[-60:], "")
        first, last = made.extents[i]
        prompt = self.talk.text(i, add=True) if i else made.text[:first]
        before = max((stop for turn, (_, stop) in made.extents.items() if turn < i), default=0)
        end = self._end(made.text[last:], prompt[before:], made.text[last:], i, True)
        assert end is not None, "a last turn ends somehow"
        stop, notes = last + end.length, [FORGOTTEN] * len([turn for turn in forgotten if turn < i])
        if made.text.startswith(prompt) and len(prompt) <= first and i not in forgotten:
            cut = dataclasses.replace(made, text=made.text[: _row_end(made.text, stop)])
            return self._draft(cut, [(len(prompt), stop)], end.appended, notes)
        return self._behind_thought(made, i, prompt, stop, end.appended, notes)

    def _behind_thought(self, made: Rendered, i: int, prompt: str, stop: int, appended: str, notes: list[str]) -> Draft:
        """The answer of turn i behind a generation prompt that opens a thought which the template does not write."""
        opened = opened_thought(prompt)
        lost = [fault for fault in made.faults if fault.piece.turn == i]
        if opened is None or not made.text.startswith(prompt[: opened[0]]):
            if lost:
                raise refusal(lost[0], self.source, self.tokenizer.name_or_path)
            raise self._disagreement(i, prompt[-60:], made.text[: made.extents[i][0]][-60:])
        start, closing = opened
        rest, tag = made.text[start:stop], prompt[start:].strip()
        own = " ".join(fault.piece.text for fault in lost)
        cut = _cut(rest, tag, closing, bool(own))
        if cut is None:
            raise refusal(lost[0], self.source, self.tokenizer.name_or_path)
        is_written = rest.lstrip().startswith(tag)  # by the template, with other white space
        front = f"{own}\n{closing}\n\n" if own or not is_written else ""
        notes = notes if own or is_written else [*notes, THOUGHT]
        shift = len(prompt) + len(front) - start - cut
        contents = [(a, b) for a, b in made.contents if b <= start]
        contents += [(max(a, start + cut) + shift, b + shift) for a, b in made.contents if b > start + cut]
        if own:
            contents.append((len(prompt), len(prompt) + len(own)))
        text = prompt + front + rest[cut:]
        return self._finished(text, [(len(prompt), len(text))], sorted(contents), appended, notes)

    def _disagreement(self, i: int, asked: str, trained: str) -> DataError:
        return DataError(
            explain(
                "the chat template asks for this answer behind another text than it writes before it",
                found=[
                    f"{self.source}: message {i}: {(self.messages[i].get('content') or '').strip()[:60]!r}",
                    f"asked behind {asked!r}, written behind {trained!r}",
                ],
                do="a template that is right in the model's chat_template.jinja",
            )
        )


def _cut(rest: str, tag: str, closing: str, has_own: bool) -> int | None:
    """How much of a turn's text goes where the prompt has opened its thought: the tag, and an empty thought of the template's
    that the row's own replaces. None: there are two thoughts, that which the template leaves out and another."""
    opens = re.match(rf"\s*{re.escape(tag)}\s*", rest)
    if opens is None:
        return len(rest) - len(rest.lstrip())
    empty = re.compile(rf"\s*{re.escape(closing)}\s*").match(rest, opens.end())
    second = re.compile(rf"{re.escape(tag)}\s*").match(rest, empty.end()) if empty else None
    if has_own:
        return None if empty is None or second else empty.end()
    return second.end() if second else opens.end()


def _bounds(whole: Rendered) -> dict[int, Span]:
    """For each message with pieces, where the pieces of those before it stop and of those behind it start."""
    order = sorted(whole.extents)
    befores, afters, edge = {}, {}, 0
    for turn in order:
        befores[turn] = edge
        edge = max(edge, whole.extents[turn][1])
    edge = len(whole.text)
    for turn in reversed(order):
        afters[turn] = edge
        edge = min(edge, whole.extents[turn][0])
    return {turn: (befores[turn], afters[turn]) for turn in order}


def _row_end(text: str, stop: int) -> int:
    """Where a row ends whose last answer stops at `stop`: white space behind it may stay, the header of a next answer not."""
    return stop if text[stop:].strip() else len(text)


def _common_end(one: str, other: str) -> str:
    """The longest text that both end with."""
    length = 0
    while length < min(len(one), len(other)) and one[-1 - length] == other[-1 - length]:
        length += 1
    return one[len(one) - length :]
