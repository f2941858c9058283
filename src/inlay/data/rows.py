"""A row, checked, whatever file it came from."""

import dataclasses
import json
from typing import Any, Protocol, runtime_checkable

Message = dict[str, Any]
"""role, content, and where they are there reasoning_content, tool_calls, name and tool_call_id."""


@runtime_checkable  # the tests check it where they check shapes
class Kept(Protocol):
    """What splitting, counting and the gate need of a row, whatever its task."""

    @property
    def source(self) -> str: ...

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
    messages: list[Message] | None = None
    prompt: str | list[Message] | None = None
    completion: str | list[Message] | None = None
    references: tuple[str, ...] = ()
    text: str | None = None
    tools: list[dict[str, Any]] | None = None
    """The schemas of the functions that may be called."""
    trained: tuple[bool, ...] | None = None
    """For each message, those of the prompt first: it is trained on if it is an answer. None: every answer is."""

    def content(self) -> str:
        """What the row says, in one canonical string, without where it came from."""
        values: list[Any] = [self.messages, self.prompt, self.completion, list(self.references), self.text]
        if self.tools is not None or self.trained is not None:
            values += [self.tools, self.trained]
        return json.dumps(values, ensure_ascii=False)
