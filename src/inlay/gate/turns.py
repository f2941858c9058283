"""Turns of a conversation in an order that no talk has.

    a talk = (system)? (user (call+ result+)* answer)+          the last call may be the last turn: it is what is learned

Readers refuse roles that nobody knows (`inlay.data.messages`); this is about roles that are known.
"""

import functools
import re

from inlay.data.rows import Row

_LETTERS = {"system": "S", "developer": "S", "user": "U", "tool": "R", "assistant": "A"}
_TALK = re.compile(r"S?(?:U(?:(?:C+R+)*A|(?:C+R+)+))*U(?:C+R+)*(?:A|C+)")

_REMEMBERED = 100
"""Longer talks are looked at each time."""


def are_odd(row: Row) -> bool:
    """The turns of a row are in another order."""
    messages = row.messages
    if messages is None:
        if isinstance(row.prompt, str | None) and isinstance(row.completion, str | None):
            return False
        parts = ((row.prompt, "user"), (row.completion, "assistant"))
        messages = [
            each
            for part, role in parts
            for each in (part if isinstance(part, list) else [{"role": role, "content": part}])
        ]
    order = "".join("C" if each.get("tool_calls") else _LETTERS.get(each["role"], "?") for each in messages)
    return _is_odd(order) if len(order) <= _REMEMBERED else _TALK.fullmatch(order) is None


@functools.lru_cache(1 << 12)
def _is_odd(order: str) -> bool:
    return _TALK.fullmatch(order) is None
