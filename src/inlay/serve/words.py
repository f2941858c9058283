"""The text of an answer as its tokens come: whole characters, and nothing that a stop string could still take back.

tokens  -->  Detokenizer  -->  characters  -->  Stops  -->  what may be shown
"""

from collections.abc import Sequence
from typing import Any

HALF = "�"
"""What a tokenizer writes for bytes that are no whole character."""

_MAX_HALVES = 8
"""So many tokens without a whole character are none that is still to come: one has four bytes at most."""


class Detokenizer:
    """Tokens into text, one after the other: all of it together is what the tokenizer makes of them together.

    A token may end within a character, and its text may depend on the token before it. So a few tokens are decoded with and
    without what is new; the difference is shown once it ends with a whole character.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = self._shown = 0
        """Tokens before `_shown` were shown, and those from `_start` on are decoded with what follows."""

    def add(self, token: int) -> str:
        """The text that a token completes."""
        self._tokens.append(token)
        text = self._new()
        if not text or (text.endswith(HALF) and len(self._tokens) - self._shown < _MAX_HALVES):
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return text

    def end(self) -> str:
        """What is left: a character that was never completed."""
        return self._new()

    def _new(self) -> str:
        before = self._decode(self._tokens[self._start : self._shown])
        return self._decode(self._tokens[self._start :])[len(before) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class Stops:
    """Text that ends before the first of some strings; what may be the beginning of one is held back."""

    def __init__(self, strings: Sequence[str]):
        self._strings = tuple(strings)
        self._held = ""
        self.found: str | None = None
        """The string that ended the text."""

    def add(self, text: str) -> str:
        """What may be shown now."""
        self._held += text
        found = [(at, string) for string in self._strings if (at := self._held.find(string)) >= 0]
        if found:
            at, self.found = min(found)
            shown, self._held = self._held[:at], ""
            return shown
        most = max((len(string) for string in self._strings), default=1) - 1
        starts = range(max(0, len(self._held) - most), len(self._held))
        end = next((at for at in starts if any(s.startswith(self._held[at:]) for s in self._strings)), len(self._held))
        shown, self._held = self._held[:end], self._held[end:]
        return shown

    def end(self) -> str:
        """What was held back, where no more text comes."""
        shown, self._held = self._held, ""
        return shown


def token_of(tokenizer: Any, token: int) -> dict[str, Any]:
    """A token as its text, and the bytes of that where it is whole characters."""
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return {"token": text, "bytes": None if HALF in text else list(text.encode())}
