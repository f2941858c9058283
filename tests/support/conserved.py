"""Rows of every layout from a seed, and what is wrong with what becomes of them: nothing that a row says is dropped in silence.

    wrong(row, family) = "" if every piece stands in the tokens' text once and in order, answers as what is trained on,
                         columns that are not used are named, or an `InlayError` refuses the row

A row is made together with the list of what it says, so that nothing here asks Inlay what it has read. Each piece has a number of
its own at both ends, by which it is counted.
"""

import dataclasses
import json
import random
import time
from typing import Any

from inlay.data import forms
from inlay.errors import InlayError
from inlay.tasks.causal_lm import prepare
from inlay.text.answers import FORGOTTEN
from tests.templates import families, others, thinkers

FAMILIES = {**families.FAMILIES, **thinkers.FAMILIES, **others.FAMILIES, "without a template": families.Family("")}
"""What the rows are written with."""

INSIDE = (
    "tide", "nine minutes", "assistant", "user\n", '{"x": 1}', "'", '"', "\\n", "é", "你好", "🙂", "\n\n", "  two", "<b>", "</s>", "<|im_end|>",
    "<|im_start|>assistant", "[/INST]", "<|eot_id|>", "<end_of_turn>", "{{ x }}", "|", "`code`", "1.0", "true", "", "", "", "",
)  # fmt: skip
"""What stands between a piece's two numbers: what templates look for, what ends turns, what JSON escapes."""

SYSTEM, TOOLS = -2, -1
"""The turns of what may stand anywhere: the system's text and the schemas."""

BESIDE = (
    "difficulty", "lang", "sytem", "toolcalls", "label", "text", "input", "context", "output", "answer", "question", "system",
    "system_prompt", "completion", "rejected", "references", "tools", "functions", "history", "messages",
)  # fmt: skip
"""Columns that are put beside those of a layout, most of which mean something elsewhere."""

OTHER_LAYOUTS = {"messages": "text", "answer": "text", "output": "text", "completion": "text", "references": "answers"}
"""Columns beside which another is the one that is not used, and named."""


@dataclasses.dataclass
class Piece:
    """One thing that a row says."""

    turn: int
    kind: str
    """content, reasoning, call, schema or column."""
    text: str
    number: str
    """The mark that stands in this piece and nowhere else."""
    trained: bool = False


@dataclasses.dataclass
class Made:
    """A row and what it says."""

    value: dict[str, Any]
    pieces: list[Piece]
    beside: dict[str, Piece]
    """Columns that are no part of the layout: to be named, found or refused."""
    refused: str = ""
    """Why it has to be refused, if it has."""


class _Maker:
    """Makes one row."""

    def __init__(self, rng):
        self.rng, self.pieces, self.refused = rng, [], ""

    def often(self, part):
        return self.rng.random() < part

    def piece(self, turn, kind, trained=False):
        number = f"q{len(self.pieces)}z"
        words = [self.rng.choice(INSIDE) for _ in range(self.rng.randrange(4))]
        text = " ".join([number, *words, number[::-1]])
        self.pieces.append(Piece(turn, kind, text, number, trained))
        return text

    def name(self, turn, kind, trained=False):
        number = f"q{len(self.pieces)}z"
        self.pieces.append(Piece(turn, kind, f"f_{number}_x", number, trained))
        return f"f_{number}_x"

    def content(self, turn, trained=False):
        """A text, or a list of parts that are one."""
        if not self.often(0.15):
            return self.piece(turn, "content", trained)
        parts = [self.piece(turn, "content", trained) for _ in range(self.rng.randrange(1, 4))]
        made = [self.rng.choice([text, {"type": "text", "text": text}, {"text": text, "type": None}]) for text in parts]
        if self.often(0.1):
            made.append(self.rng.choice([{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, 3]))
            self.refused = "a part that is no text"
        return made

    def schemas(self):
        return [self._schema() for _ in range(self.rng.randrange(1, 3))]

    def _schema(self):
        names = [self.name(TOOLS, "schema") for _ in range(self.rng.randrange(3))]
        properties = {name: {"type": self.rng.choice(["string", "integer"])} for name in names}
        for value in properties.values():
            if self.often(0.3):
                value["description"] = self.piece(TOOLS, "schema")
            if self.often(0.1):
                value["enum"] = [self.name(TOOLS, "schema")]
        parameters = {"type": "object", "properties": properties, "required": names[:1]}
        return {
            "name": self.name(TOOLS, "schema"),
            "description": self.piece(TOOLS, "schema"),
            "parameters": parameters,
        }

    def call(self, turn, trained):
        values = [
            lambda: self.piece(turn, "call", trained),
            lambda: 3,
            lambda: None,
            lambda: [self.piece(turn, "call", trained)],
        ]
        function = {"name": self.name(turn, "call", trained)}
        keys = [self.name(turn, "call", trained) for _ in range(self.rng.randrange(3))]
        function["arguments"] = {key: self.rng.choice(values)() for key in keys}
        if self.often(0.4):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=self.often(0.5))
        return function

    def turns(self, first=0, with_flags=True):
        """Messages as OpenAI has them."""
        often, made = 0.4 * self.often(0.5), []
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            made.append({"role": "user", "content": self.content(first + len(made))})
            if self.often(often):
                made += self._called(first + len(made), with_flags)
            made.append(self._answer(first + len(made), often, with_flags))
        for message in made:
            if self.often(0.05):
                message.setdefault("name" if message["role"] == "user" else "tool_calls", None)
            if self.often(0.01):
                message[self.rng.choice(["mood", "toolcalls", "images", "Content"])] = "x"
                self.refused = "an unknown key in a message"
        return made

    def _flag(self, with_flags):
        flag = {self.rng.choice(["weight", "train", "training", "loss"]): self.rng.choice([0, 1, True, False])}
        return flag if with_flags and self.often(0.1) else {}

    def _called(self, turn, with_flags):
        flag = self._flag(with_flags)
        trained = all(flag.values())
        if self.often(0.2):
            message = {"role": "assistant", "content": None, "function_call": self.call(turn, trained), **flag}
        else:
            calls = [{"function": self.call(turn, trained)} for _ in range(self.rng.choice([1, 1, 2]))]
            named = [{"id": f"call1234{i}", "type": "function", **call} for i, call in enumerate(calls)]
            message = {"role": "assistant", "content": self.rng.choice(["", None]), "tool_calls": named, **flag}
        result = {"role": self.rng.choice(["tool", "function"]), "content": self.piece(turn + 1, "content")}
        return [message, {**result, "tool_call_id": "call12340", "name": "tide"}]

    def _answer(self, turn, often, with_flags):
        flag = self._flag(with_flags)
        trained = all(flag.values())
        if self.often(often * 0.3):
            thought, said = self.piece(turn, "reasoning", trained), self.piece(turn, "content", trained)
            return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{said}", **flag}
        thoughts = {}
        if self.often(often):
            key = self.rng.choice(["reasoning_content", "reasoning", "thinking"])
            thoughts[key] = self.piece(turn, "reasoning", trained)
        return {"role": "assistant", **thoughts, "content": self.content(turn, trained), **flag}

    def opened(self, turns):
        """The same, at times behind a message of the system."""
        if not self.often(0.2):
            return turns
        return [{"role": self.rng.choice(["system", "developer"]), "content": self.content(SYSTEM)}, *turns]


def _messages(maker):
    value = {maker.rng.choice(["messages", "conversation"]): maker.opened(maker.turns())}
    if maker.often(0.25):
        value["tools"] = [{"type": "function", "function": schema} for schema in maker.schemas()]
    elif maker.often(0.1):
        value["functions"] = maker.schemas()
    return value


def _sharegpt(maker):
    turns = []
    for i in range(maker.rng.choice([1, 2, 3])):
        turns.append({"from": maker.rng.choice(["human", "user"]), "value": maker.piece(len(turns), "content")})
        if maker.often(0.2):
            turn = len(turns)
            turns.append({"from": "function_call", "value": json.dumps(maker.call(turn, True))})
            turns.append({"from": "observation", "value": maker.piece(turn + 1, "content")})
        flag = {"weight": 0} if i == 0 and maker.often(0.1) else {}
        trained = not flag
        turns.append({"from": "gpt", "value": maker.piece(len(turns), "content", trained), **flag})
    value = {"conversations": turns}
    if maker.often(0.2):
        value["system"] = maker.piece(SYSTEM, "content")
    if maker.often(0.2):
        value["tools"] = json.dumps(maker.schemas())
    return value


def _prompted(maker):
    if maker.often(0.4):
        return {"prompt": maker.piece(0, "content"), "completion": maker.piece(1, "content", True)}
    before = maker.turns(with_flags=False)
    for piece in maker.pieces:
        piece.trained = False
    asked = [*before, {"role": "user", "content": maker.content(len(before))}]
    answer = {"role": "assistant", "content": maker.content(len(asked), True)}
    value = {"prompt": maker.opened(asked), "completion": [answer] if maker.often(0.7) else answer["content"]}
    if isinstance(value["completion"], list) and maker.often(0.2):
        value["tools"] = maker.schemas()
    return value


def _alpaca(maker):
    history = []
    if maker.often(0.2):
        history = [
            [maker.piece(2 * i, "content"), maker.piece(2 * i + 1, "content")] for i in range(maker.rng.randrange(1, 3))
        ]
    turn = 2 * len(history)
    value = {"instruction": maker.piece(turn, "content")}
    if maker.often(0.5):
        value[maker.rng.choice(["input", "context"])] = maker.piece(turn, "content")
    elif maker.often(0.5):
        value["input"] = ""
    value[maker.rng.choice(["output", "response"])] = maker.piece(turn + 1, "content", True)
    return value | ({"history": history} if history else {}) | _with_system(maker)


def _with_system(maker):
    return {maker.rng.choice(["system", "system_prompt"]): maker.piece(SYSTEM, "content")} if maker.often(0.2) else {}


def _asked(maker):
    value = {}
    if maker.often(0.5):
        value["context"] = maker.piece(0, "content")
    value["question"] = maker.piece(0, "content")
    answer = maker.piece(1, "content", True)
    value |= maker.rng.choice([{"answer": answer}, {"answers": {"text": [answer]}}, {"solution": answer}])
    return value | _with_system(maker)


def _text(maker):
    return {
        "text": f"- {maker.piece(0, 'content', True)}"
    }  # nothing stands before the first token that it could be learned from


LAYOUTS = (_messages, _messages, _messages, _sharegpt, _prompted, _alpaca, _asked, _text)


def made(seed):
    """The row of a seed, and what it says."""
    maker = _Maker(random.Random(seed))
    value = maker.rng.choice(LAYOUTS)(maker)
    pieces, beside = [*maker.pieces], {}
    for name in maker.rng.sample(BESIDE, k=maker.rng.choice([0, 0, 0, 1, 2])):
        if name not in value and not (name in OTHER_LAYOUTS and OTHER_LAYOUTS[name] in value):
            text = maker.piece(SYSTEM, "column")
            value[name] = maker.rng.choice([text, text, [text], {"k": text}])
            beside[name] = maker.pieces[-1]
    for name in maker.rng.sample(["id", "source", "metadata"], k=maker.rng.randrange(2)):
        value[name] = "x"
    names = maker.rng.sample(list(value), k=len(value))
    return Made({name: value[name] for name in names}, pieces, beside, maker.refused)


def _squeezed(text):
    return "".join(text.split())


def _times(text, piece):
    """How often a piece stands in a text, whole, as it is or inside quotes, without regard to white space."""
    forms = {
        piece.text,
        repr(piece.text)[1:-1],
        json.dumps(piece.text, ensure_ascii=False)[1:-1],
        json.dumps(piece.text)[1:-1],
    }
    return max(text.count(form) for form in map(_squeezed, forms))


def wrong(row, tokenizer):
    """What of a row is dropped, doubled or moved in silence; empty where nothing is. And whether it was refused."""
    try:
        data = forms.read([row.value])
        prepared = prepare(data.rows, tokenizer, 10**6, "completions", None)
    except InlayError:
        return "", True
    if row.refused:
        return f"{row.refused} is not refused", False
    texts = [_squeezed(tokenizer.decode(example.input_ids)) for example in prepared.examples]
    trained = [_squeezed(_trained(tokenizer, example)) for example in prepared.examples]
    notes = " ".join((*data.notes, *prepared.notes))
    for name, piece in row.beside.items():
        if f" {name}" not in notes and not any(_times(text, piece) for text in texts):
            return f"the column {name} is neither used nor named", False
    forgotten = sum(note == FORGOTTEN for example in prepared.examples for note in example.notes)
    return _of_pieces(row, texts, trained, forgotten), False


def _trained(tokenizer, example):
    """What is trained on, run by run."""
    runs, before = [], 0
    for token, flag in zip(example.input_ids, example.trained, strict=True):
        if flag and not before:
            runs.append([])
        if flag:
            runs[-1].append(token)
        before = flag
    return "\0".join(tokenizer.decode(run) for run in runs)


def _of_pieces(row, texts, trained, forgotten):
    learned = [piece for piece in row.pieces if piece.trained]
    for piece in row.pieces:
        times = sum(_times(text, piece) for text in trained)
        once = piece.kind in ("content", "reasoning")
        if piece.trained and (times < 1 or (once and times > 1)):
            return f"{_named(piece)} is learned {times} times"
        if not piece.trained and any(piece.number in text for text in trained):
            return f"{_named(piece)} is learned, and is no answer"
    for text, answers in zip(texts, trained, strict=True):
        last = max(piece.turn for piece in learned if _times(answers, piece))
        highest = 0, 0  # (turn, place) of the piece that stands last so far
        for piece in sorted((piece for piece in row.pieces if piece.turn <= last), key=lambda piece: piece.turn):
            times = _times(text, piece)
            if not times and piece.kind == "reasoning" and forgotten and not _times(answers, piece):
                forgotten -= 1
                continue
            if not times:
                return f"{_named(piece)} is dropped"
            if piece.kind in ("content", "reasoning") and times + (text.count(piece.number) - times) > 1:
                return f"{_named(piece)} stands {text.count(piece.number)} times"
            place = text.index(piece.number)
            if piece.turn >= 0:
                if piece.turn > highest[0] and place < highest[1]:
                    return f"{_named(piece)} stands before an earlier turn"
                highest = piece.turn, max(highest[1], place)
    return ""


def _named(piece):
    where = {SYSTEM: "of the system", TOOLS: "of the tools"}.get(piece.turn, f"of turn {piece.turn}")
    return f"a {piece.kind} {where} ({piece.text[:60]!r})"


def search(seconds, seed=0, number=None, say=lambda text: None):
    """What is wrong with the rows from `seed` on, as many as `seconds` have room for or `number`; (findings, tried, refused)."""
    found, num_refused, tried, stop = [], 0, 0, time.monotonic() + seconds
    while time.monotonic() < stop and tried != number:
        row = made(seed)
        family = list(FAMILIES)[seed % len(FAMILIES)]
        fault, is_refused = wrong(row, families.tokenizer(FAMILIES[family]))
        if fault:
            found.append(
                f"seed {seed} (row, template of {family}): {fault}\n{json.dumps(row.value, ensure_ascii=False)}"
            )
            say(found[-1])
        num_refused += is_refused
        tried, seed = tried + 1, seed + 1
    return found, tried, num_refused
