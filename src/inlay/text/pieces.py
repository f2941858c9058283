"""What a conversation says, piece by piece, and where each piece stands in the rendered text.

    conservation: every content, thought, call and schema of a row stands in the text, once and in order, or it is refused

A chat template is a program: it may pass over a role, drop old thoughts, move the system message, write arguments as JSON.
So every piece gets a private mark before and behind it, and the conversation is rendered with and without the marks. Where
both texts are the same but for the marks, these say exactly where each piece went. A template that looks into the contents may
write something else when it sees a mark; then the pieces are searched for, one after the other.

Marks lie inside the white space around a piece, which templates strip, and inside tags such as `<think>`, which they split at.
"""

import copy
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inlay.errors import DataError, explain

Message = dict[str, Any]
Span = tuple[int, int]
"""Characters start <= i < stop of a rendered text."""

_STARTS, _STOPS, NUM_MARKS = 0xF0000, 0x100000, 0xFFFE
"""The first mark before and behind a piece, and of how many: the two private planes of Unicode, one character each."""

MARK = re.compile("[\U000f0000-\U0010fffd]")
_TAG = re.compile(
    r"(</?(?:[\w:]*think(?:ing)?|thought|reasoning|tool_calls?|tool_responses?|response|answer)>|\[/?THINK\]"
    r"|<\|(?:START|END)_(?:THINKING|RESPONSE|ACTION)\|>)"
)
_OPENS = re.compile(r"<(?:[\w:]*think(?:ing)?|thought|reasoning)>|\[THINK\]|<\|START_THINKING\|>")
_CLOSES = re.compile(r"</(?:[\w:]*think(?:ing)?|thought|reasoning)>|\[/THINK\]|<\|END_THINKING\|>")
TOOLS = -1
"""Where pieces of the schemas stand: before every message."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """One thing that a row says."""

    turn: int
    """The number of its message, or `TOOLS`."""
    role: str
    kind: str
    """content, reasoning, name, call or schema."""
    text: str
    """Without white space around it."""


@dataclasses.dataclass(frozen=True)
class Loose:
    """A value that has no mark, such as 3, true or the name of an argument: one of `forms` must be there."""

    piece: int
    """The number of the piece that it belongs to: it stands behind it."""
    forms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A piece that the text does not have as it should."""

    piece: Piece
    what: str
    """leaves out, changes, repeats or moves."""


class Said:
    """The pieces of a conversation and its tools, and both with marks in them."""

    def __init__(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None):
        self.pieces: list[Piece] = []
        self.loose: list[Loose] = []
        self.tools = [self._schema(tool, "") for tool in tools] if tools else None
        self._ends = [(len(self.pieces), len(self.loose))]
        self.messages: list[Message] = []
        for i, message in enumerate(messages):
            self.messages.append(self._message(i, message))
            self._ends.append((len(self.pieces), len(self.loose)))

    @property
    def can_mark(self) -> bool:
        """There are marks enough, and nobody else uses them."""
        return len(self.pieces) <= NUM_MARKS and not any(MARK.search(piece.text) for piece in self.pieces)

    def until(self, stop: int) -> "Said":
        """What the first `stop` messages say, and the tools."""
        made = copy.copy(self)
        num_pieces, num_loose = self._ends[stop]
        made.pieces, made.loose = self.pieces[:num_pieces], self.loose[:num_loose]
        made.messages, made._ends = self.messages[:stop], self._ends[: stop + 1]
        return made

    def located(self, marked: str) -> tuple[str, list[list[Span]]]:
        """The text without its marks, and for each piece the places where it stands."""
        starts: list[list[int]] = [[] for _ in self.pieces]
        spans: list[list[Span]] = [[] for _ in self.pieces]
        parts, before = [], 0
        for num, mark in enumerate(MARK.finditer(marked)):
            parts.append(marked[before : mark.start()])
            before, at, code = mark.end(), mark.start() - num, ord(mark.group())
            if code < _STOPS:
                starts[code - _STARTS].append(at)
            elif starts[code - _STOPS]:
                spans[code - _STOPS].append((starts[code - _STOPS][-1], at))
        parts.append(marked[before:])
        return "".join(parts), spans

    def searched(self, text: str) -> list[list[Span]]:
        """The same without marks: each piece of a message behind the one before it, others anywhere."""
        spans: list[list[Span]] = []
        after = 0
        for piece in self.pieces:
            is_free = piece.turn == TOOLS or piece.role in ("system", "developer")
            found = [
                (at, at + len(form))
                for form in written(piece.text)
                if (at := text.find(form, 0 if is_free else after)) >= 0
            ]
            spans.append([min(found)] if found else [])
            if found and not is_free:
                after = min(found)[1]
        return spans

    def faults(self, text: str, spans: Sequence[Sequence[Span]]) -> list[Fault]:
        """What a text with its pieces at `spans` does not have as it should, in the order of the row."""
        found: list[Fault] = []
        last_turn, highest, before = -1, 0, 0  # of the messages up to the one before this
        for piece, places in zip(self.pieces, spans, strict=True):
            if not places:
                found.append(Fault(piece, "leaves out"))
                continue
            if not all(_is_written(text[start:stop], piece) for start, stop in places):
                found.append(Fault(piece, "changes"))
            if piece.kind in ("content", "reasoning") and len(places) > 1:
                found.append(Fault(piece, "repeats"))
            if piece.turn == TOOLS or piece.role in ("system", "developer"):
                continue
            if piece.turn != last_turn:
                last_turn, before = piece.turn, highest
            if places[0][0] < before:
                found.append(Fault(piece, "moves"))
            highest = max(highest, places[0][1])
        return found + [Fault(self.pieces[loose.piece], "changes") for loose in self._lost(text, spans)]

    def extents(self, spans: Sequence[Sequence[Span]]) -> dict[int, Span]:
        """From where to where a message's pieces stand, by its number."""
        found: dict[int, Span] = {}
        for piece, places in zip(self.pieces, spans, strict=True):
            if places and piece.turn != TOOLS:
                start, stop = found.get(piece.turn, places[0])
                found[piece.turn] = min(start, places[0][0]), max(stop, places[0][1])
        return found

    def _lost(self, text: str, spans: Sequence[Sequence[Span]]) -> Iterator[Loose]:
        """The loose values that stand nowhere between the messages before and behind their own."""
        if not self.loose:
            return
        bounds = self.extents(spans)
        turns = sorted(bounds)
        for loose in self.loose:
            piece = self.pieces[loose.piece] if loose.piece < len(self.pieces) else None
            if piece is None or not spans[loose.piece]:
                continue
            start, stop = 0, len(text)
            if piece.turn != TOOLS:
                i = turns.index(piece.turn)
                start = bounds[turns[i - 1]][1] if i else 0
                stop = bounds[turns[i + 1]][0] if i + 1 < len(turns) else len(text)
            if not any(form in text[start:stop] for form in loose.forms):
                yield loose

    def _marked(self, text: str, turn: int, role: str, kind: str) -> str:
        core = text.strip()
        if not core:
            return text
        k = len(self.pieces)
        self.pieces.append(Piece(turn, role, kind, core))
        if k >= NUM_MARKS:
            return text
        before, behind = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        return f"{before}{chr(_STARTS + k)}{core}{chr(_STOPS + k)}{behind}"

    def _message(self, i: int, message: Message) -> Message:
        role, made = str(message.get("role")), dict(message)
        if isinstance(message.get("name"), str) and role != "tool":  # that of a result is known from its call
            made["name"] = self._marked(message["name"], i, role, "name")
        for key in ("reasoning_content", "content"):
            if isinstance(message.get(key), str):
                made[key] = self._content(message[key], i, role, "reasoning" if key != "content" else "content")
        if message.get("tool_calls"):
            made["tool_calls"] = [self._call(call, i, role) for call in message["tool_calls"]]
        return made

    def _content(self, text: str, i: int, role: str, kind: str) -> str:
        parts = _TAG.split(text)
        if len(parts) == 1 or kind == "reasoning":
            return self._marked(text, i, role, kind)
        is_thought = thought_of(text) is not None and not _OPENS.match(text.lstrip())
        made = []
        for n, part in enumerate(parts):
            if n % 2:
                is_thought = bool(_OPENS.fullmatch(part)) or (is_thought and not _CLOSES.fullmatch(part))
                made.append(part)
            else:
                made.append(self._marked(part, i, role, "reasoning" if is_thought and role == "assistant" else kind))
        return "".join(made)

    def _call(self, call: Any, i: int, role: str) -> Any:
        if not isinstance(call, Mapping):
            return call
        if isinstance(call.get("function"), Mapping):
            return {**call, "function": self._call(call["function"], i, role)}
        made, number = dict(call), len(self.pieces)
        if isinstance(call.get("name"), str):
            made["name"] = self._marked(call["name"], i, role, "call")
        if "arguments" in call:
            made["arguments"] = self._value(call["arguments"], i, role, number)
        return made

    def _value(self, value: Any, i: int, role: str, number: int) -> Any:
        """An argument: strings are marked, what else it holds must stand behind the call's name."""
        if isinstance(value, str):
            return self._marked(value, i, role, "call")
        if isinstance(value, Mapping):
            self._must_have([(str(key),) for key in value], number)
            return {key: self._value(item, i, role, number) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(item, i, role, number) for item in value]
        if value is not None:
            self._must_have([(json.dumps(value), str(value))], number)
        return value

    def _schema(self, value: Any, key: str) -> Any:
        """A schema: names and descriptions are marked, parameters' names must be there; the rest is for templates to read."""
        if isinstance(value, str):
            return self._marked(value, TOOLS, "tools", "schema") if key in ("name", "description") else value
        if isinstance(value, list | tuple):
            return [self._schema(item, "") for item in value]
        if not isinstance(value, Mapping):
            return value
        number, is_function = len(self.pieces), "name" in value and isinstance(value.get("parameters"), Mapping)
        is_named = key == "properties" and not is_function  # its keys are parameters, maybe "name" or "description"
        if not is_function and not is_named and isinstance(value.get("enum"), list | tuple) and number:
            self._must_have([(str(item), json.dumps(item)) for item in value["enum"]], number - 1)
        made = {name: self._schema(item, "" if is_named else name) for name, item in value.items()}
        if is_function and len(self.pieces) > number:
            self._must_have([(name,) for name in _parameters(value)], number)
        return made

    def _must_have(self, forms: Sequence[tuple[str, ...]], number: int) -> None:
        self.loose += [Loose(number, form) for form in forms]


def _parameters(function: Mapping[str, Any]) -> list[str]:
    """The names of the parameters of a function's schema."""
    properties = function["parameters"].get("properties")
    return [str(name) for name in properties] if isinstance(properties, Mapping) else []


def written(text: str) -> list[str]:
    """The ways in which templates write a text: as it is, and inside JSON or Python quotes."""
    forms = [text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1]]
    return list(dict.fromkeys(forms))


def is_tag(text: str) -> bool:
    """It is a tag of a thought or a call, which an answer may hold."""
    return _TAG.fullmatch(text) is not None


def thought_of(text: str) -> str | None:
    """The thought that an answer begins with, without its tags; None where it has none. The opening tag may be missing."""
    closing = _CLOSES.search(text)
    if closing is None:
        return None
    thought = text[: closing.start()].lstrip()
    opening = _OPENS.match(thought)
    return thought[opening.end() :] if opening else thought


def opened_thought(prompt: str) -> tuple[int, str] | None:
    """Where a prompt opens a thought at its very end, and the tag that closes it; None where it does not."""
    found = [match for match in _OPENS.finditer(prompt) if not prompt[match.end() :].strip()]
    if not found:
        return None
    tag = found[-1].group()
    closing = tag.replace("START", "END") if "START" in tag else f"{tag[0]}/{tag[1:]}"
    return found[-1].start(), closing


def _is_written(found: str, piece: Piece) -> bool:
    if found == piece.text or found in written(piece.text):
        return True
    return piece.kind == "schema" and found.split() in [form.split() for form in written(piece.text)]


_HINTS = {
    "name": "the name in content, rows without names, or a model whose template writes them",
    "schema": "a model whose template lists tools, or rows without them",
    "call": "a model whose template writes calls, or the call as text in content",
    "reasoning": "the thought in content, between <think> and </think>, or a model whose template writes it",
    "tool": "a model whose template knows results of tools, or the result in a user message",
    "user": "a template that is right in the model's chat_template.jinja",
    "system": "its text at the start of the first user message, or a model whose template has a system role",
}


def refusal(fault: Fault, source: str, name: str) -> DataError:
    """The error for a piece that the template of the model `name` does not write as it should."""
    piece = fault.piece
    what = {
        "name": f"the name of the {piece.role}",
        "schema": "what a tool is",
        "call": "the call of a tool",
        "reasoning": "a thought",
    }.get(piece.kind, "an answer" if piece.role == "assistant" else f"what the {piece.role} says")
    verb = {
        "leaves out": f"leaves {what} out",
        "changes": f"changes {what}",
        "repeats": f"writes {what} twice",
        "moves": f"moves {what} before an earlier message",
    }[fault.what]
    where = "tools" if piece.turn == TOOLS else f"message {piece.turn} ({piece.role})"
    hint = _HINTS.get(piece.kind) or _HINTS.get("system" if piece.role == "developer" else piece.role)
    more = f" (the template of {name})" if name else ""
    return DataError(
        explain(
            f"the chat template {verb}",
            found=f"{source}: {where}: {piece.text[:60]!r}{more}",
            do=hint or "a row for each answer: prompt, the messages before it, and completion, the answer",
        )
    )
