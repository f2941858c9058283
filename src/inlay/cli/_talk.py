"""A conversation with a base and its adapters: the questions, their answers, and what lines with a slash do."""

import dataclasses
import functools
import json
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inlay.base.base import Base
from inlay.cli import told
from inlay.cli.generate import attach_all, check_raw
from inlay.errors import ConfigError, InlayError, OutputError, UnknownNameError, explain, nearest, within_memory
from inlay.generation.sampling import GENERATED_BY, Sampling
from inlay.hub import store
from inlay.io import output
from inlay.options import purpose
from inlay.screen import say
from inlay.serve.words import Detokenizer
from inlay.text import template

OVERWRITE = "--overwrite"
"""What lets a conversation be written over a file that is there."""


class Turn(NamedTuple):
    """A question and its answer; one that was cut is the beginning of an answer, and is not trained on."""

    question: str
    answer: str
    is_cut: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """How a conversation is led, whatever is said in it."""

    model: str
    sampling: Sampling
    max_new_tokens: int | None = None
    raw: bool = False
    force: bool = False
    require: tuple[Path, ...] = ()
    """Public keys of which one must have signed an adapter; anybody where there are none."""

    @property
    def settings(self) -> dict[str, Any]:
        """What every answer is asked with."""
        drawn = {name: getattr(self.sampling, name) for name in GENERATED_BY}
        return {**drawn, "max_new_tokens": self.max_new_tokens, "raw": self.raw or None}


class Talk:
    """The conversation so far, and what is done with the next line.

    **Attributes:**

    - `pressed`: filled by Ctrl-C: once stops an answer.
    """

    def __init__(self, base: Base, how: How, pressed: list[int]):
        self.base, self.how, self.pressed = base, how, pressed
        self.system = ""
        self.turns: list[Turn] = []
        self.question: str | None = None
        """What was asked last; the last turn has the answer, if `is_answered`."""
        self.is_answered = False
        self.seed = 0

    def hear(self, line: str) -> bool:
        """Answer a message, or do what a line with a slash says; False ends the chat. Faults are told, and it goes on."""
        try:
            with within_memory():
                if line.startswith("/") and not line.startswith("//"):
                    return self._ordered(line[1:])
                self.question, self.is_answered = line.removeprefix("/"), False
                self._ask(self.question, self.turns)
        except BrokenPipeError:  # nobody reads the answers
            raise
        except KeyboardInterrupt:
            if len(self.pressed) != 1:  # a request to end the program, or the second
                raise
            print("\ninterrupted; the conversation goes on", file=sys.stderr)
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if isinstance(error, (SystemExit, GeneratorExit)):
                raise
            print(f"error: {told(error)}", file=sys.stderr)
        return True

    def set_system(self, text: str) -> None:
        """Put a system message before the conversation.

        **Raises:**

        - `ConfigError`, `DataError`: lines go on as they stand, or the template takes none.
        """
        check_raw(self.how.raw, text)
        template.prompt_ids(self.base.tokenizer, template.PROBE[:1], system=text)
        self.system = text

    def say_form(self) -> None:
        """Say so where lines are continued as they stand."""
        if self._is_raw(self._active):
            by = f"{self._active} was trained on plain text; /system TEXT asks through the template"
            say("raw", f"every line is continued as it stands, each on its own ({'as asked' if self.how.raw else by})")

    @property
    def _active(self) -> str | None:
        return self.base.active if isinstance(self.base.active, str) else None

    def _is_raw(self, adapter: str | None) -> bool:
        return self.base.asks_raw("", adapter, self.how.raw or None, self.system or None)

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        said = [("system", self.system)] if self.system else []
        for turn in turns:
            said += [("user", turn.question), ("assistant", turn.answer.strip())]
        return [{"role": role, "content": content} for role, content in said]

    def _prompt(self, question: str, before: Sequence[Turn], adapter: str | None) -> Any:
        """What an adapter is asked: the line as it stands, or the conversation with it."""
        if self._is_raw(adapter):
            return question
        return [*self._messages(before), {"role": "user", "content": question}]

    def _ask(self, question: str, before: Sequence[Turn]) -> None:
        """Answer a question that follows these turns; with an answer, it and they are the conversation."""
        self.seed += 1
        adapter = self._active
        shown = _Shown(self.base.tokenizer, self.pressed)
        prompt = self._prompt(question, before, adapter)
        try:
            self.base.generate([prompt], adapter, seed=self.seed, streamer=shown, **self.how.settings)
        except ConfigError as error:  # the conversation has outgrown the model's positions
            way_out = "\n  or:    /drop forgets the oldest question, /new forgets all; then /retry"
            raise ConfigError(f"{error}{way_out * bool(before)}") from None
        except KeyboardInterrupt:
            if len(self.pressed) != 1:
                raise
            print(flush=True)
            print("the answer was interrupted; the conversation goes on", file=sys.stderr)
            if not shown.text.strip():
                return
        is_cut = shown.last not in self.base.stop_ids(adapter)
        if is_cut and not self.pressed:
            say("cut", f"after {shown.count} tokens, the most that --max-new-tokens and the model's positions allow")
        if not isinstance(prompt, str):
            self.turns, self.is_answered = [*before, Turn(question, shown.text, is_cut)], True

    def _ordered(self, line: str) -> bool:
        """Do what a line says behind its slash; False ends the chat."""
        name, _, given = (part.strip() for part in line.partition(" "))
        if name not in ORDERS:
            near = nearest(name, ORDERS)
            do = f"/{near}" if near else "/help lists them; a message that begins with a slash is written with two"
            raise UnknownNameError(explain(f"there is no /{name}", found=f"/{line}", do=do))
        if given and not ORDERS[name].given:
            raise ConfigError(explain(f"/{name} takes nothing", found=given, do=f"/{name}"))
        return ORDERS[name].run(self, given) is not False

    def help(self, given: str) -> None:
        """Every line that can be typed beside messages."""
        say("", help_text())

    def adapter(self, given: str) -> None:
        """Change who answers."""
        base = self.base
        if not given:
            names = [f"{name}{' (active)' * (name == self._active)}" for name in base.adapters]
            say("adapters", ", ".join([*names, "none, the base" + " (active)" * (self._active is None)]))
            return
        path = Path(given).expanduser()
        if given == "none" or given in base.adapters:
            base.active = None if given == "none" else given
        elif store.is_here(given):
            purpose.check_answers("chat", self.how.model, [str(path)])
            base.active = attach_all(base, (str(path),), self.how.force, self.how.require)[0]
        else:
            raise _unknown_adapter(given, base.adapters)
        say("active", f"{self._active or 'none'}{' · the conversation goes on' * bool(self.turns)}")
        self.say_form()

    def compare(self, given: str) -> None:
        """Answer a question by several, in one batch and by the same draws."""
        names, separator, asked = f" {given} ".partition(" -- ")
        base, chosen = self.base, names.split() or ["none", *self.base.adapters]
        if unknown := [name for name in chosen if name != "none" and name not in base.adapters]:
            raise _unknown_adapter(unknown[0], base.adapters, "; /compare -- QUESTION asks all of them")
        question = asked.strip() if separator else self.question
        if not question:
            raise ConfigError(explain("there is no question to compare answers to", do="/compare -- QUESTION"))
        before = self.turns if separator or not self.is_answered else self.turns[:-1]
        adapters = [None if name == "none" else name for name in chosen]
        prompts = [self._prompt(question, before, name) for name in adapters]
        seeds = [max(self.seed, 1)] * len(chosen)
        answers = base.generate(prompts, adapters, seed=seeds, **self.how.settings)
        for name, answer in zip(adapters, marked([answer.strip() for answer in answers]), strict=True):
            print(f"--- {name or 'base'}\n{answer}", flush=True)

    def system_(self, given: str) -> None:
        """Show, set or clear the system message."""
        if given == "none":
            self.system = ""
        elif given:
            self.set_system(given)
        say("system", self.system + " · the template takes it" * bool(given) if self.system else "no system message")
        self.say_form()

    def retry(self, given: str) -> None:
        """Answer the last question anew."""
        if self.question is None:
            raise ConfigError(explain("there is no question to answer anew", do="a question"))
        self._ask(self.question, self.turns[:-1] if self.is_answered else self.turns)

    def forget(self, given: str, *, turns: slice) -> None:
        """Keep some of the turns."""
        before, self.turns = len(self.turns), self.turns[turns]
        if self.is_answered:
            self.question = self.turns[-1].question if self.turns else None
            self.is_answered = bool(self.turns)
        say("forgot", f"{before - len(self.turns)} of {before} questions, with their answers")

    def save(self, given: str) -> None:
        """Write the conversation as a row that `inlay train` takes."""
        name, _, last = given.rpartition(" ")
        name = name.strip() if last == OVERWRITE else given
        path = output.place(name)
        if not name or all(turn.is_cut for turn in self.turns):
            found = f"{len(self.turns)} answers, {sum(turn.is_cut for turn in self.turns)} of them cut"
            wrong = "there is no file to write" if not name else "there is no whole answer to save"
            raise ConfigError(explain(wrong, found=found, do="/save chat.jsonl" if not name else "/retry"))
        if path.exists() and last != OVERWRITE:
            do = f"/save {name} {OVERWRITE}, or another name"
            raise OutputError(explain("there is such a file, and nothing is overwritten", found=str(path), do=do))
        messages: list[dict[str, Any]] = [*self._messages(self.turns)]
        for message, turn in zip(messages[1 + bool(self.system) :: 2], self.turns, strict=True):
            message |= {"weight": 0} if turn.is_cut else {}
        row = json.dumps({"messages": messages}, ensure_ascii=False)
        try:
            output.write_file(path, f"{row}\n".encode())
        except OutputError as error:
            wrong, do = "the conversation could not be written", "/save FILE, in a folder of yours"
            raise OutputError(explain(wrong, found=error.found, do=do)) from None
        cut = sum(turn.is_cut for turn in self.turns)
        say("wrote", f"{path}: {len(self.turns)} answers, {cut} of them cut and not to be trained on (weight 0)")


class _Shown:
    """Prints an answer token by token, and keeps it: `text`, how many tokens it had, and the last of them."""

    def __init__(self, tokenizer: Any, pressed: list[int]):
        self._words, self._pressed = Detokenizer(tokenizer), pressed
        self.text, self.count, self.last, self._is_prompt = "", 0, -1, True

    def put(self, value: Any) -> None:
        """Take the prompt, then each token."""
        if not self._is_prompt:
            self.count, self.last = self.count + 1, int(value.flatten()[0])
            self._show(self._words.add(self.last))
        self._is_prompt = False
        if self._pressed:  # some library has swallowed the exception
            signal.default_int_handler(signal.SIGINT, None)

    def end(self) -> None:
        """The answer is whole."""
        self._show(self._words.end() + "\n")

    def _show(self, text: str) -> None:
        print(text, end="", flush=True)
        self.text += text


def _unknown_adapter(name: str, known: Any, more: str = "") -> InlayError:
    names = [*known, "none"]
    do = f"/adapter {nearest(name, names) or 'none'}, or a directory"
    found = f"{name!r}; there are {', '.join(names)}"
    return UnknownNameError(explain("no adapter of that name is attached", found=found, do=more.lstrip("; ") or do))


def marked(answers: Sequence[str]) -> list[str]:
    """Texts with the first word that is not the same in all between [[ and ]]; a text that ends before it has no mark."""
    words = [re.findall(r"\s*\S+", answer) for answer in answers]
    longest = max(map(len, words), default=0)
    at = next((i for i in range(longest) if len({"".join(some[i : i + 1]).strip() for some in words}) > 1), longest)
    for some in words:
        some[at : at + 1] = [re.sub(r"(\S+)", r"[[\1]]", word) for word in some[at : at + 1]]
    return ["".join(some) for some in words]


class Order(NamedTuple):
    """What a line with a slash does."""

    given: str
    """What may stand behind it."""
    help: str
    run: Callable[[Talk, str], bool | None]
    """It is given what stands behind the name; False ends the chat."""


_FORGET = {"new": slice(0), "drop": slice(1, None), "undo": slice(-1)}
ORDERS = {
    "adapter": Order("[NAME | DIR | none]", "let another adapter answer, or the base; alone: list them", Talk.adapter),
    "compare": Order("[NAME ...] [-- QUESTION]", "the answers of all, or of some, to the last question", Talk.compare),
    "system": Order("[TEXT | none]", "set the system message, or clear it; alone: show it", Talk.system_),
    "retry": Order("", "answer the last question anew, by another draw", Talk.retry),
    "undo": Order("", "forget the last question and its answer", functools.partial(Talk.forget, turns=_FORGET["undo"])),
    "drop": Order(
        "", "forget the oldest, where there is no room", functools.partial(Talk.forget, turns=_FORGET["drop"])
    ),
    "new": Order("", "forget the conversation", functools.partial(Talk.forget, turns=_FORGET["new"])),
    "save": Order(f"FILE [{OVERWRITE}]", "write the conversation as a row that inlay train takes", Talk.save),
    "help": Order("", "this list", Talk.help),
    "quit": Order("", "end, as Ctrl-D does", lambda talk, given: False),
}
"""Name -> what a line with a slash and that name does."""


def help_text() -> str:
    """The lines that can be typed beside messages, one a line."""
    lines = [(f"/{name} {order.given}".strip(), order.help) for name, order in ORDERS.items()]
    width = max(len(typed) for typed, _ in lines)
    return "\n".join(f"{typed:<{width}}  {does}" for typed, does in lines)
