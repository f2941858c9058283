"""A row, checked, whatever file it came from."""

import dataclasses
import json
from typing import Any, Protocol, runtime_checkable


@runtime_checkable  # the tests check it where they check shapes
class Kept(Protocol):
    """What splitting and counting need of a row, whatever its task."""

    @property
    def prompt(self) -> Any: ...

    def content(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a source, checked."""

    form: str
    """messages, prompt+completion or text."""
    source: str
    """Where it came from, such as train.jsonl:12."""
    messages: list[dict[str, str]] | None = None
    prompt: str | list[dict[str, str]] | None = None
    completion: str | list[dict[str, str]] | None = None
    references: tuple[str, ...] = ()
    text: str | None = None

    def content(self) -> str:
        """What the row says, in one canonical string, without where it came from."""
        values = [self.messages, self.prompt, self.completion, list(self.references), self.text]
        return json.dumps(values, ensure_ascii=False)
