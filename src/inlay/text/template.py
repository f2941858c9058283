"""Conversations as text: the tokenizer's own chat template, or one plain default where it has none.

The default is what a prompt and its completion look like to a base model:

    <s>{user}\\n{assistant}</s>\\n{user}\\n{assistant}</s>

Every message ends with a newline but the last answer, and an answer ends with the end token before it.
"""

import functools
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inlay.errors import DataError, explain
from inlay.text.bounded import failure, rendered

PLAIN = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)
"""The template for tokenizers that have none."""

Message = dict[str, Any]


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    source: str = "the prompt",
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The conversation as text, up to where an answer starts if `add_generation_prompt`.

    **Arguments:**

    - `tools`: the schemas of the functions that the model may call, for templates that list them.

    **Raises:**

    - `DataError`: the template refuses the messages, as some do with a system message, or fails on them; it names `source`.
    - `FormatError`: the template is not Jinja, or goes beyond the bounds of `inlay.text.bounded`.
    """
    given: dict[str, Any] = {"tools": None if tools is None else list(tools)}
    given["add_generation_prompt"] = add_generation_prompt
    names = ["messages", "documents", *given, *tokenizer.special_tokens_map]
    apply = functools.partial(tokenizer.apply_chat_template, list(messages), tokenize=False, **given)
    try:
        template = tokenizer.get_chat_template(None if tokenizer.chat_template else PLAIN, given["tools"])
        if template == PLAIN:
            return apply(chat_template=PLAIN)
        variables = apply(chat_template=_all_of(name for name in names if _VARIABLE.fullmatch(name)))
    except Exception as error:  # what transformers asks of messages and tools differs from version to version
        raise failure(source, f"{type(error).__name__}: {error}") from None
    return rendered(str(template), variables, source)


_VARIABLE = re.compile(r"(?!(?:true|false|none)$)[A-Za-z]\w*", re.ASCII)
"""Names that a template can read; a downloaded configuration may call its special tokens anything."""


def _all_of(names: Iterable[str]) -> str:
    """A template whose text is a JSON object with all that a template can see, after `transformers` has prepared it."""
    pairs = ", ".join(f"'{name}': {name}" for name in dict.fromkeys(names) if not keyword.iskeyword(name))
    return f"{{{{ {{{pairs}}} | tojson }}}}"


def encode(tokenizer: Any, text: str) -> list[int]:
    """The tokens of rendered text, whose special tokens are in it already."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def prompt_ids(tokenizer: Any, prompt: str | Sequence[Message]) -> list[int]:
    """The tokens that a model is given before it answers: those that stood before the answer in training.

    **Arguments:**

    - `prompt`: what the user says, or a conversation that ends with it.

    **Raises:**

    - `DataError`: the prompt is not text, or the template refuses it or makes no token of it.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    for message in messages:
        broken = [character for character in message["content"] if "\ud800" <= character <= "\udfff"]
        if broken:
            raise DataError(explain("a prompt is not text", found=f"{broken[0]!a}, half a character", do="UTF-8 text"))
    ids = encode(tokenizer, render(tokenizer, messages, add_generation_prompt=True))
    if not ids:
        raise DataError(
            explain(
                "the chat template of this model makes no text of the prompt",
                found=f"{str(prompt)[:80]!r}",
                do="a prompt that is not empty, or a template that is right in the model's chat_template.jinja",
            )
        )
    return ids
