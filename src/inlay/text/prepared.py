"""What a chat template sees: the messages, the tools and the special tokens as `transformers` prepares them, as JSON.

Messages are prepared each for itself, so a conversation is prepared once and its beginnings are had by leaving the others out.
A tokenizer without a template has a plain one, what a prompt and its completion look like to a base model:

    <s>{user}\\n{assistant}</s>\\n{user}\\n{assistant}</s>

Every message ends with a newline but the last answer, and an answer ends with the end token before it.
"""

import copy
import functools
import keyword
import re
from collections.abc import Mapping, Sequence
from typing import Any

from inlay.text.bounded import failure, rendered
from inlay.text.pieces import Message

PLAIN = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)
"""The template for tokenizers that have none."""


_VARIABLE = re.compile(r"(?!(?:true|false|none)$)[A-Za-z]\w*", re.ASCII)
"""Names that a template can read; a downloaded configuration may call its special tokens anything."""

_OWN = ("messages", "add_generation_prompt")  # put in for each text


class Prepared:
    """A conversation, prepared.

    **Raises:**

    - `DataError`: `transformers` can't prepare it; it names `source`.
    """

    template: str | None
    """The template, or None: the plain one."""

    def __init__(
        self, tokenizer: Any, messages: Sequence[Message], source: str, tools: Sequence[Mapping[str, Any]] | None
    ):
        schemas = None if tools is None else list(tools)
        self._apply = functools.partial(tokenizer.apply_chat_template, tokenize=False, tools=schemas)
        self._given, self._source = list(messages), source
        try:
            template = tokenizer.get_chat_template(None if tokenizer.chat_template else PLAIN, schemas)
            if template == PLAIN:
                self.template = None
                return
            self.template = str(template)
            names = [name for name in ("documents", "tools", *tokenizer.special_tokens_map) if name not in _OWN]
            text = self._apply(self._given, chat_template=_one_by_one(tuple(names)))
        except Exception as error:  # what transformers asks of messages and tools differs from version to version
            raise failure(source, f"{type(error).__name__}: {error}") from None
        *self._messages, self._rest = text.split("\0")

    def without(self, marks: re.Pattern[str], count: int, messages: Sequence[Message]) -> "Prepared | None":
        """What it would be of `messages`, which it has with `count` marks in them; None where it has others too."""
        made = copy.copy(self)
        made._given = list(messages)
        if made.template is not None:
            whole, num_marks = marks.subn("", "\0".join((*self._messages, self._rest)))
            if num_marks != count:
                return None
            *made._messages, made._rest = whole.split("\0")
        return made

    def variables(self, stop: int, add_generation_prompt: bool) -> str:
        """All that the template sees of the first `stop` messages, a JSON object."""
        messages, add = ", ".join(self._messages[:stop]), "true" if add_generation_prompt else "false"
        return f'{{"messages": [{messages}], "add_generation_prompt": {add}, {self._rest[1:]}'

    def text(self, stop: int, add_generation_prompt: bool) -> str:
        """What the template makes of the first `stop` messages, and nothing beside; raises as `inlay.text.bounded.rendered`."""
        if self.template is not None:
            return rendered(self.template, self.variables(stop, add_generation_prompt), self._source)
        try:
            return self._apply(self._given[:stop], chat_template=PLAIN, add_generation_prompt=add_generation_prompt)
        except Exception as error:  # as above
            raise failure(self._source, f"{type(error).__name__}: {error}") from None


@functools.lru_cache(64)
def _one_by_one(names: tuple[str, ...]) -> str:
    """A template whose text is each message as JSON with a zero character behind it, which JSON has not, and an object of the
    others of these variables."""
    known = (name for name in dict.fromkeys(names) if _VARIABLE.fullmatch(name) and not keyword.iskeyword(name))
    pairs = ", ".join(f"'{name}': {name}" for name in known)
    return f"{{% for message in messages %}}{{{{ message | tojson }}}}\0{{% endfor %}}{{{{ {{{pairs}}} | tojson }}}}"
