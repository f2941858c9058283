"""Conversations as text: the tokenizer's own chat template, or one plain default where it has none.

The default is what a prompt and its completion look like to a base model:

    <s>{user}\\n{assistant}</s>\\n{user}\\n{assistant}</s>

Every message ends with a newline but the last answer, and an answer ends with the end token before it.
"""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from inlay.errors import DataError, explain

PLAIN = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)
"""The template for tokenizers that have none."""

Message = dict[str, str]


def render(
    tokenizer: Any, messages: Sequence[Message], source: str = "the prompt", *, add_generation_prompt: bool = False
) -> str:
    """The conversation as text, up to where an answer starts if `add_generation_prompt`.

    **Raises:**

    - `DataError`: the template refuses the messages, as some do with a system message; it names `source`.
    """
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=None if tokenizer.chat_template else PLAIN,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except TemplateError as error:
        raise DataError(
            explain(
                "the chat template of this model refuses the messages",
                found=f"{source}: {error}",
                do="use roles that it knows, in the order that it wants; a system text can open the first user message",
            )
        ) from None


def encode(tokenizer: Any, text: str) -> list[int]:
    """The tokens of rendered text, whose special tokens are in it already."""
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def prompt_ids(tokenizer: Any, prompt: str | Sequence[Message]) -> list[int]:
    """The tokens that a model is given before it answers: those that stood before the answer in training.

    **Arguments:**

    - `prompt`: what the user says, or a conversation that ends with it.

    **Raises:**

    - `DataError`: the prompt is not text, or the template refuses it.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    for message in messages:
        broken = [character for character in message["content"] if "\ud800" <= character <= "\udfff"]
        if broken:
            raise DataError(explain("a prompt is not text", found=f"{broken[0]!a}, half a character", do="UTF-8 text"))
    return encode(tokenizer, render(tokenizer, messages, add_generation_prompt=True))
