"""Talk with the base and its adapters.

Lines are messages, but for those that begin with a slash: /help lists what they do, and a message that begins with a slash has
two. Three quotation marks alone on a line begin and end a message of several lines; so is a paste of several lines one message.
Ctrl-C stops an answer; pressed twice it ends the chat, as Ctrl-D does.
"""

import dataclasses
import signal
import sys
from typing import Any

from inlay.cli import answered_by
from inlay.cli._lines import Lines
from inlay.cli._talk import How, Talk
from inlay.cli.generate import attach_all, check_raw
from inlay.errors import ConfigError, InlayError, explain
from inlay.generation.generate import check_sampling
from inlay.generation.sampling import GENERATED_BY, Sampling, recommended
from inlay.options import purpose
from inlay.options.flags import OnBase, Signed
from inlay.options.types import repeated
from inlay.screen import say

HINT = "/help lists what can be typed beside messages; Ctrl-C stops an answer, twice it ends the chat"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chat(OnBase, Signed):
    """A conversation on stdin and stdout."""

    adapter: repeated(str) = ()  # type: ignore[valid-type]  # an annotation built by a function
    """An adapter, as a directory or name@version; the first answers; given several times, /adapter NAME changes
    between them."""

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
        self.check_signed(self.adapter)
        purpose.check_answers("chat", self.model, self.adapter)
        base = self.load()
        names = attach_all(base, self.adapter, self.force, self.require_signed_by)
        base.active = names[0] if names else None
        start, source = (
            (Sampling(), "as asked") if self.greedy or self.temperature == 0 else recommended(base.checkpoint)
        )
        sampling = self._given(start)
        check_sampling(self.max_new_tokens, sampling, 0)
        say("base", base.describe())
        say("adapters", f"{', '.join(base.adapters) or 'none'} · active: {base.active or 'none'}")
        say("answers", f"{sampling} ({source if sampling == start else 'as asked'})")
        how = How(
            model=self.model,
            sampling=sampling,
            max_new_tokens=self.max_new_tokens,
            raw=self.raw,
            force=self.force,
            require=self.require_signed_by,
        )
        talk = Talk(base, how, [])
        if self.system:
            talk.set_system(self.system)
        say("", HINT)
        talk.say_form()
        with Lines() as lines:
            return _converse(talk, lines)

    def _given(self, start: Sampling) -> Sampling:
        """`start` with what the flags say."""
        given = {name: getattr(self, name) for name in GENERATED_BY}
        return dataclasses.replace(start, **{name: value for name, value in given.items() if value is not None})


def _converse(talk: Talk, lines: Lines) -> int:
    """Read and hear until there is no more, or Ctrl-C is pressed twice; the exit status."""
    pressed = talk.pressed

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.default_int_handler(number, frame)

    with answered_by(signal.SIGINT, press):
        while True:
            try:
                line = lines.read(f"{talk.base.active or 'base'}> ")
                pressed.clear()
                if line is None or (line and not talk.hear(line)):
                    return 0
                pressed.clear()
            except InlayError as error:  # a line that could not be read
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                if not (pressed and lines.is_terminal):
                    raise
                print(file=sys.stderr)  # the line is thrown away, as a shell does
                if len(pressed) > 1:
                    return 130
                print("Ctrl-C once more ends the chat", file=sys.stderr)


Command = Chat
