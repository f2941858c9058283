"""Talk with the base and its adapters."""

import dataclasses
import io
import sys
from typing import Any

from inlay.cli._command import OnBase, repeated
from inlay.cli._screen import say
from inlay.cli.generate import attach_all
from inlay.errors import InlayError
from inlay.model.base import Base

HELP = "/use NAME, /use none, /new, or Ctrl-D to end"
"""What can be typed beside messages."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(OnBase):
    """A conversation on stdin and stdout."""

    adapter: repeated(str) = ()  # type: ignore[valid-type]  # an annotation built by a function
    """An adapter directory; given several times, /use NAME changes between them."""

    max_new_tokens: int | None = None
    """Longest answer in tokens; 256, or what the model's positions leave, unless given."""

    temperature: float = 0.0
    """0 takes the likeliest token; above 0 tokens are drawn."""

    force: bool = False
    """Use adapters that were trained on another base: answers will be wrong in ways that look right."""

    def run(self) -> int:
        """Read lines until the end of the input."""
        base = self.load()
        attach_all(base, self.adapter, self.force)
        say("base", base.describe())
        say("adapters", f"{', '.join(base.adapters) or 'none'} · active: {base.active or 'none'}")
        say("", HELP)
        messages: list[dict[str, str]] = []
        while (line := _read()) is not None:
            if line.startswith("/"):
                _order(base, line, messages)
            elif line:
                said = [*messages, {"role": "user", "content": line}]
                try:
                    messages = [*said, {"role": "assistant", "content": self._answer(base, said)}]
                except InlayError as error:  # most often, the conversation has outgrown the model's positions
                    print(f"error: {error}\n  hint:  /new forgets the conversation so far", file=sys.stderr)
        return 0

    def _answer(self, base: Base, messages: list[dict[str, str]]) -> str:
        from transformers import TextStreamer

        streamer: Any = TextStreamer(base.tokenizer, skip_prompt=True, skip_special_tokens=True)
        active = base.active
        answer = base.generate(
            [messages],
            active,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=len(messages),
            streamer=streamer,
        )
        return answer[0].strip()


def _read() -> str | None:
    """The next line of the user; None at the end."""
    if sys.stdin.isatty():
        print("> ", end="", file=sys.stderr, flush=True)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a stray byte ends no conversation
    line = sys.stdin.readline()
    return line.strip() if line else None


def _order(base: Base, line: str, messages: list[dict[str, str]]) -> None:
    """Do what a line with a slash says; a mistake is told, and the conversation goes on."""
    order, _, name = line.partition(" ")
    if order == "/use":
        if name in ("", "none", *base.adapters):
            base.active = None if name in ("", "none") else name
            say("active", str(base.active or "none"))
        else:
            known = ", ".join([*base.adapters, "none"])
            print(f"error: no adapter of that name is attached\n  found: {name!r}; there are {known}", file=sys.stderr)
    elif order == "/new":
        messages.clear()
        say("new", "the conversation so far is forgotten")
    elif order == "/help":
        say("", HELP)
    else:
        print(f"error: there is no {order}\n  hint:  {HELP}", file=sys.stderr)


Command = Chat
