"""The names that rows give to what they hold, as found in the data sets of others -> what each is to Inlay.

`docs/guides/data.md` shows a row of every layout; a test keeps the two together.
"""

from collections.abc import Iterable, Sequence
from typing import Any

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns that hold a conversation, a list of turns."""

PROMPTS = ("prompt", "instruction", "question", "query", "problem", "input")
"""Columns that ask, the first that a row has; `input` asks where nothing else does."""

COMPLETIONS = ("completion", "output", "response", "answer", "answers", "solution")
"""Columns that answer: a row has one of them, beside `prompt` and `completion` the others are not used."""

CONTEXTS = {"instruction": ("input", "context"), "question": ("context",), "query": ("context",)}
"""Column that asks -> columns whose text stands behind an instruction, or before a question."""

SYSTEMS = ("system", "system_prompt")
"""Columns that hold the system message."""

TOOLS = ("tools", "functions")
"""Columns that hold the schemas of functions; the second is what OpenAI called them before."""

HISTORY = "history"
"""Turns before an instruction, as pairs of what was asked and answered."""

PREFERENCES = ("chosen", "rejected")
"""Columns of rows that say which of two answers is better."""

IGNORED = frozenset(
    {"id", "_id", "idx", "index", "uuid", "__index_level_0__", "", "source", "metadata", "parallel_tool_calls"}
)
"""Columns that say nothing to learn from, and are left out without a word."""

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "function_call",
    "tool_call": "function_call",
}
"""Who speaks in a turn -> the role of the message; the text of a `function_call` is a call in JSON."""

WHO, WHAT = ("role", "from"), ("content", "value")
"""Keys of a turn: who speaks, what is said."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a turn with what is thought before the answer."""

FLAGS = ("weight", "train", "training", "loss")
"""Keys of an assistant's turn that say whether it is trained on: 0 and 1, or false and true."""

KEPT = ("name", "tool_call_id")
"""Keys of a turn that the template gets as they are."""

TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a content that are text."""

ROW_KEYS = frozenset({*CONVERSATIONS, *PROMPTS, *COMPLETIONS, *PREFERENCES, "text", "references"})
"""An object with one of these is a row, not a file's list of rows with something beside it."""


MAX_SHOWN = 40
"""Characters of a name that a message shows."""


def cut(name: Any) -> str:
    """A name for a message: a file may hold one of any length."""
    text = str(name)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def in_words(names: Sequence[Any]) -> str:
    """Some names for a message: the first ten, and how many more there are."""
    return ", ".join([*map(cut, names[:10]), *([f"and {len(names) - 10:,} more"] if len(names) > 10 else [])])


def twice_in(names: Iterable[str]) -> str | None:
    """A name that stands twice, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def unused_of(keys: Iterable[Any]) -> list[str]:
    """Those of some columns that have to be named where they are not used."""
    return [str(key) for key in keys if str(key) not in IGNORED]
