"""Talk with the base and its adapters."""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Iterator
from typing import Any

from inlay.base.base import Base
from inlay.cli import _tasks, answered_by
from inlay.cli._command import OnBase, repeated
from inlay.cli._lines import Lines
from inlay.cli._screen import say
from inlay.cli.generate import attach_all, check_raw
from inlay.errors import ConfigError, InlayError, explain
from inlay.generation.generate import check_sampling
from inlay.generation.sampling import GENERATED_BY, Sampling, recommended

HELP = "/use NAME, /use none, /system TEXT, /new, or Ctrl-D to end; Ctrl-C ends an answer"
"""What can be typed beside messages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(OnBase):
    """A conversation on stdin and stdout."""

    adapter: repeated(str) = ()  # type: ignore[valid-type]  # an annotation built by a function
    """An adapter directory, the first of which answers; given several times, /use NAME changes between them."""

    system: str | None = None
    """A system message in front of the conversation."""

    raw: bool = False
    """Continue every line as it stands, without the chat template and without what was said before; so is an adapter asked that
    was trained on plain text."""

    max_new_tokens: int | None = None
    """Longest answer in tokens; 256, or what the model's positions leave, unless given."""

    greedy: bool = False
    """Always take the likeliest token, as --temperature 0 does."""

    temperature: float | None = None
    """0 takes the likeliest token; above 0 tokens are drawn. This and the next three are the checkpoint's own recommendation
    unless given."""

    top_p: float | None = None
    """Draw only from the likeliest tokens that have this much of the probability together."""

    top_k: int | None = None
    """Draw only from this many of the likeliest tokens; 0: from all."""

    repetition_penalty: float | None = None
    """Above 1, tokens that are in the text already become less likely."""

    force: bool = False
    """Use adapters that were trained on another base: answers will be wrong in ways that look right."""

    def __post_init__(self) -> None:
        check_raw(self.raw, self.system)
        if self.greedy and self.temperature:
            found = f"--greedy with --temperature {self.temperature:g}"
            raise ConfigError(explain("greedy answers have no temperature", found=found, do="--greedy"))
        start = Sampling() if self.greedy or self.temperature == 0 else Sampling(temperature=1.0)
        check_sampling(self.max_new_tokens, self._given(start), 0)

    def run(self) -> int:
        """Read messages until the end of the input."""
        _tasks.check_answers("chat", self.model, self.adapter)
        base = self.load()
        names = attach_all(base, self.adapter, self.force)
        base.active = names[0] if names else None
        start, source = (
            (Sampling(), "as asked") if self.greedy or self.temperature == 0 else recommended(base.checkpoint)
        )
        sampling = self._given(start)
        check_sampling(self.max_new_tokens, sampling, 0)
        say("base", base.describe())
        say("adapters", f"{', '.join(base.adapters) or 'none'} · active: {base.active or 'none'}")
        say("answers", f"{sampling} ({source if sampling == start else 'as asked'})")
        say("", HELP)
        talk = _Talk(base, sampling, self.max_new_tokens, self.system or "", self.raw or None)
        talk.say_form()
        with Lines() as lines:
            while talk.take(lines):
                pass
        return 0

    def _given(self, start: Sampling) -> Sampling:
        """`start` with what the flags say."""
        given = {name: getattr(self, name) for name in GENERATED_BY}
        return dataclasses.replace(start, **{name: value for name, value in given.items() if value is not None})


class _Talk:
    """The conversation so far, and what is done with the next message."""

    def __init__(self, base: Base, sampling: Sampling, max_new_tokens: int | None, system: str, raw: bool | None):
        self.base, self.sampling, self.max_new_tokens = base, sampling, max_new_tokens
        self.system, self.raw = system, raw
        self.messages: list[dict[str, str]] = []
        self.num_answers = 0

    def take(self, lines: Lines) -> bool:
        """Read one message and answer it; False at the end of the input."""
        ctrl_c: list[int] = []
        try:
            with _interruptible(ctrl_c):
                line = lines.read(f"{self.base.active or 'base'}> ")
        except KeyboardInterrupt:
            if not (lines.is_terminal and ctrl_c):
                raise
            print(f"\n{HELP}", file=sys.stderr)  # the line is thrown away, as a shell does
            return True
        except InlayError as error:
            print(f"error: {error}", file=sys.stderr)
            return True
        if line:
            (self._order if line.startswith("/") else self._answer)(line)
        return line is not None

    def say_form(self) -> None:
        """Say so where lines are continued as they stand."""
        if self._is_raw:
            why = (
                "as asked"
                if self.raw
                else f"{self.base.active} was trained on plain text; /system TEXT asks through the template"
            )
            say("raw", f"every line is continued as it stands, each on its own ({why})")

    @property
    def _is_raw(self) -> bool:
        active = self.base.active
        return self.base.asks_raw("", active if isinstance(active, str) else None, self.raw, self.system or None)

    def _answer(self, line: str) -> None:
        """Answer a message; the conversation goes on whatever happens."""
        said = [*self.messages, {"role": "user", "content": line}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        streamer = _streamer(self.base.tokenizer)
        self.num_answers += 1
        ctrl_c: list[int] = []
        streamer.interrupted = ctrl_c
        try:
            with _interruptible(ctrl_c):
                answer = self.base.generate(
                    [line if self._is_raw else [*system, *said]],
                    self.base.active,
                    raw=self._is_raw,
                    max_new_tokens=self.max_new_tokens,
                    seed=self.num_answers,
                    streamer=streamer,
                    **{name: getattr(self.sampling, name) for name in GENERATED_BY},
                )[0]
        except KeyboardInterrupt:
            if not ctrl_c:  # a request to end the program
                raise
            answer = streamer.text
            print(flush=True)
            print("the answer was interrupted; the conversation goes on", file=sys.stderr)
        except InlayError as error:  # most often, the conversation has outgrown the model's positions
            way_out = "\n  or:    /new forgets the conversation so far" if self.messages else ""
            print(f"error: {error}{way_out}", file=sys.stderr)
            return
        if not self._is_raw:
            self.messages = [*said, {"role": "assistant", "content": answer.strip()}]

    def _order(self, line: str) -> None:
        """Do what a line with a slash says; a mistake is told, and the conversation goes on."""
        order, _, name = (part.strip() for part in line.partition(" "))
        base = self.base
        if order == "/use":
            if name in ("", "none", *base.adapters):
                base.active = None if name in ("", "none") else name
                say("active", str(base.active or "none"))
                self.say_form()
            else:
                known = ", ".join([*base.adapters, "none"])
                print(
                    f"error: no adapter of that name is attached\n  found: {name!r}; there are {known}", file=sys.stderr
                )
        elif order == "/system":
            self.system = name
            say("system", name or "no system message")
        elif order == "/new":
            self.messages.clear()
            say("new", "the conversation so far is forgotten")
        elif order == "/help":
            say("", HELP)
        else:
            print(f"error: there is no {order}\n  hint:  {HELP}", file=sys.stderr)


@contextlib.contextmanager
def _interruptible(pressed: list[int]) -> Iterator[None]:
    """Within the block Ctrl-C raises KeyboardInterrupt, as other signals do, and is noted in `pressed`."""

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    with answered_by(signal.SIGINT, press):
        yield


def _streamer(tokenizer: Any) -> Any:
    """Prints an answer as it is made, and keeps it in `text`; `interrupted` is the list that Ctrl-C fills."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        text = ""
        interrupted: list[int] = []  # noqa: RUF012  # replaced before use

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.text += text
            super().on_finalized_text(text, stream_end)
            if self.interrupted:  # some library has swallowed the exception
                signal.default_int_handler(signal.SIGINT, None)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]


Command = Chat
