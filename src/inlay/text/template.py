"""Conversations as text: the tokenizer's own chat template, or one plain default where it has none.

The default is what a prompt and its completion look like to a base model:

    <s>{user}\\n{assistant}</s>\\n{user}\\n{assistant}</s>

Every message ends with a newline but the last answer, and an answer ends with the end token before it.
"""

import contextlib
import dataclasses
import functools
import json
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from inlay.errors import ConfigError, DataError, explain
from inlay.text.bounded import failure, rendered, rendered_all
from inlay.text.pieces import TOOLS, Fault, Message, Said, Span, refusal
from inlay.text.tokens import Added, added, encode_quoting, text_ids

PLAIN = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\\n' }}{% endif %}"
    "{% endfor %}"
)
"""The template for tokenizers that have none."""


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    source: str = "the prompt",
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The conversation as text, up to where an answer starts if `add_generation_prompt`.

    Templates of models that see pictures get contents as lists of parts; those that put the arguments of a call into the text
    as they are get them as JSON.

    **Arguments:**

    - `tools`: the schemas of the functions that the model may call, for templates that list them.

    **Raises:**

    - `DataError`: the template refuses the messages, as some do with a system message, or fails on them; it names `source`.
    - `FormatError`: the template is not Jinja, or goes beyond the bounds of `inlay.text.bounded`.
    """
    manners = _manners_of(tokenizer, source)
    text = _with_its_arguments(
        tokenizer,
        [_in_parts(message) for message in messages] if manners.parts else list(messages),
        source,
        add_generation_prompt,
        tools,
    )
    return text + manners.lost_newline if add_generation_prompt else text


def _with_its_arguments(
    tokenizer: Any,
    messages: list[Message],
    source: str,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
) -> str:
    """What the template makes of the messages, the arguments of calls as objects or, where that is wrong, as JSON."""
    objects = [arguments for message in messages for arguments in _arguments(message)]
    as_text = [_with_arguments_as_text(message) for message in messages]
    try:
        text = _rendered(tokenizer, messages, source, add_generation_prompt, tools)
    except DataError:
        if objects:
            with contextlib.suppress(DataError):
                return _rendered(tokenizer, as_text, source, add_generation_prompt, tools)
        raise
    if any(str(value) in text and str(value) != json.dumps(value) for value in objects):
        with contextlib.suppress(DataError):
            return _rendered(tokenizer, as_text, source, add_generation_prompt, tools)
    return text


def _rendered(
    tokenizer: Any,
    messages: list[Message],
    source: str,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
) -> str:
    """What the template makes of just these messages."""
    template, text = _prepared(tokenizer, messages, source, add_generation_prompt, tools)
    return text if template is None else rendered(template, text, source)


def _prepared(
    tokenizer: Any,
    messages: list[Message],
    source: str,
    add_generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] | None,
) -> tuple[str | None, str]:
    """The template and its variables as JSON; or None and the text itself, where the tokenizer has no template."""
    given: dict[str, Any] = {"tools": None if tools is None else list(tools)}
    given["add_generation_prompt"] = add_generation_prompt
    names = ["messages", "documents", *given, *tokenizer.special_tokens_map]
    apply = functools.partial(tokenizer.apply_chat_template, messages, tokenize=False, **given)
    try:
        template = tokenizer.get_chat_template(None if tokenizer.chat_template else PLAIN, given["tools"])
        if template == PLAIN:
            return None, apply(chat_template=PLAIN)
        return str(template), apply(chat_template=_all_of(name for name in names if _VARIABLE.fullmatch(name)))
    except Exception as error:  # what transformers asks of messages and tools differs from version to version
        raise failure(source, f"{type(error).__name__}: {error}") from None


_VARIABLE = re.compile(r"(?!(?:true|false|none)$)[A-Za-z]\w*", re.ASCII)
"""Names that a template can read; a downloaded configuration may call its special tokens anything."""


def _all_of(names: Iterable[str]) -> str:
    """A template whose text is a JSON object with all that a template can see, after `transformers` has prepared it."""
    pairs = ", ".join(f"'{name}': {name}" for name in dict.fromkeys(names) if not keyword.iskeyword(name))
    return f"{{{{ {{{pairs}}} | tojson }}}}"


def _arguments(message: Message) -> list[Any]:
    """The arguments of a message's calls that are objects with something in them."""
    calls = [call.get("function", call) for call in message.get("tool_calls") or [] if isinstance(call, Mapping)]
    found = [call.get("arguments") for call in calls if isinstance(call, Mapping)]
    return [value for value in found if isinstance(value, Mapping) and value]


def _with_arguments_as_text(message: Message) -> Message:
    if not _arguments(message):
        return message
    calls = []
    for call in message["tool_calls"]:
        inner = call.get("function", call)
        text = inner.get("arguments")
        text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
        calls.append(
            {**call, "function": {**inner, "arguments": text}} if "function" in call else {**call, "arguments": text}
        )
    return {**message, "tool_calls": calls}


def _in_parts(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


@dataclasses.dataclass(frozen=True)
class _Manners:
    """What a template does whatever the conversation."""

    parts: bool = False
    """It reads contents as lists of parts, and writes nothing of one that is a text."""
    opens_always: bool = False
    """It may write the header of a next answer whether asked for one or not: a question has the same text either way."""
    lost_newline: str = ""
    """What stands behind the header of an answer, and is missing from a generation prompt that the template always writes:
    jinja2 drops the newline that a template ends with."""


def _manners_of(tokenizer: Any, source: str = "a trial") -> _Manners:
    """The manners of a tokenizer's template, found by a trial; looked up once. What goes beyond the bounds names `source`."""
    template = tokenizer.chat_template
    if not template:
        return _Manners()
    if (found := _manners.get(tokenizer)) is None or found[0] != template:
        parts = _writes(tokenizer, PROBE[:1], source) is False and bool(
            _writes(tokenizer, [_in_parts(PROBE[0])], source)
        )
        probe = [_in_parts(message) for message in PROBE[:2]] if parts else PROBE[:2]
        found = (template, _Manners(parts, *_opening(tokenizer, probe)))
        _manners[tokenizer] = found
    return found[1]


def _opening(tokenizer: Any, probe: list[Message]) -> tuple[bool, str]:
    """`opens_always` and `lost_newline`."""
    try:
        asked, unasked = (_rendered(tokenizer, probe[:1], "a trial", add, None) for add in (True, False))
        whole = _rendered(tokenizer, probe, "a trial", False, None)
    except DataError:
        return False, ""
    is_lost = asked == unasked and asked == asked.rstrip() and whole.startswith(f"{asked}\n{PROBE[1]['content']}")
    return asked == unasked, "\n" if is_lost else ""


def _writes(tokenizer: Any, messages: list[Message], source: str) -> bool | None:
    """The template writes what the user says, and not a list that it is in; None where it refuses."""
    try:
        text = _rendered(tokenizer, messages, source, False, None)
    except DataError:
        return None
    return PROBE[0]["content"] in text and "'type'" not in text and '"type"' not in text


PROBE: list[Message] = [
    {"role": "user", "content": "Boil an egg?"},
    {"role": "assistant", "content": "Nine minutes."},
    {"role": "user", "content": "And soft?"},
    {"role": "assistant", "content": "Six."},
]
"""A conversation that shows what a template does."""

_manners: WeakKeyDictionary[Any, tuple[Any, _Manners]] = WeakKeyDictionary()
_added: WeakKeyDictionary[Any, tuple[Any, Added]] = WeakKeyDictionary()


def opening(tokenizer: Any) -> str | None:
    """What is missing from a header of a next answer that a template writes unasked: a newline, taken by jinja2, or nothing.

    None where a template writes a header only when asked.
    """
    manners = _manners_of(tokenizer)
    return manners.lost_newline if manners.opens_always else None


def added_tokens(tokenizer: Any) -> Added:
    """The added tokens of a tokenizer, and which of them its template writes; looked up once."""
    # not its length, which counts the whole vocabulary anew; plain tokens that are added later end nothing
    state = (tokenizer.chat_template, tokenizer.eos_token, len(tokenizer.all_special_tokens))
    if (found := _added.get(tokenizer)) is None or found[0] != state:
        written = ""
        with contextlib.suppress(DataError):
            written = render(tokenizer, PROBE, add_generation_prompt=True)
        found = (state, added(tokenizer, written))
        _added[tokenizer] = found
    return found[1]


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as text, and where each thing that it says stands."""

    text: str
    said: Said
    spans: list[list[Span]]
    prompts: dict[int, str] = dataclasses.field(default_factory=dict)
    """By the numbers of turns, the texts that generation is given for them, as far as they were rendered on the way."""

    @functools.cached_property
    def contents(self) -> list[Span]:
        """The characters that come from the conversation, sorted, without overlap."""
        return sorted({span for spans in self.spans for span in spans})

    @functools.cached_property
    def extents(self) -> dict[int, Span]:
        """From where to where a message's pieces stand, by its number."""
        found: dict[int, Span] = {}
        for piece, places in zip(self.said.pieces, self.spans, strict=True):
            if places and piece.turn != TOOLS:
                start, stop = found.get(piece.turn, places[0])
                found[piece.turn] = min(start, places[0][0]), max(stop, places[0][1])
        return found

    @functools.cached_property
    def faults(self) -> list[Fault]:
        return self.said.faults(self.text, self.spans)


def rendering(
    tokenizer: Any,
    messages: Sequence[Message],
    source: str = "the prompt",
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    prompt_of: int = 0,
) -> Rendered:
    """The conversation as text, as `render` gives it, with the places of its pieces; raises as that does.

    `prompt_of`, if not 0, is the number of a turn whose prompt will be needed: it may be rendered on the way.
    """
    said = Said(messages, tools)
    asked = [(list(messages), add_generation_prompt, tools), (said.messages, add_generation_prompt, said.tools)]
    if prompt_of:
        asked.append((list(messages[:prompt_of]), True, tools))
    text, marked, prompt = (*_at_once(tokenizer, asked, source), None)[:3]
    if text is None:
        text = render(tokenizer, messages, source, add_generation_prompt=add_generation_prompt, tools=tools)
    if said.can_mark and marked is None:
        with contextlib.suppress(DataError):  # a template may refuse what has marks in it
            marked = render(
                tokenizer, said.messages, source, add_generation_prompt=add_generation_prompt, tools=said.tools
            )
    prompts = {} if prompt is None else {prompt_of: prompt}
    plain, spans = said.located(marked) if said.can_mark and marked is not None else ("", [])
    return Rendered(text, said, spans if plain == text and marked is not None else said.searched(text), prompts)


def _at_once(
    tokenizer: Any, asked: Sequence[tuple[list[Message], bool, Sequence[Mapping[str, Any]] | None]], source: str
) -> list[str | None]:
    """What `render` gives for each, rendered together; None where that has to be asked."""
    manners = _manners_of(tokenizer, source)
    if any(_arguments(message) for message in asked[0][0]):
        return [None] * len(asked)
    given = [
        ([_in_parts(message) for message in messages] if manners.parts else messages, source, add, tools)
        for messages, add, tools in asked
    ]
    prepared = [_prepared(tokenizer, *each) for each in given]
    template = prepared[0][0]
    texts = (
        [text for _, text in prepared] if template is None else rendered_all(template, [text for _, text in prepared])
    )
    endings = [manners.lost_newline if add else "" for _, add, _ in asked]
    return [None if text is None else text + end for text, end in zip(texts, endings, strict=True)]


def prompt_ids(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    *,
    raw: bool = False,
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> list[int]:
    """The tokens that a model is given before it answers: those that stood before the answer in training.

    **Arguments:**

    - `prompt`: what the user says, or a conversation that ends with it.
    - `raw`: the text as it is, without the chat template, as rows of `text` are trained on.
    - `system`: what the system says before it.
    - `tools`: the schemas of the functions that the model may call.

    **Raises:**

    - `ConfigError`: `raw` with messages, a system text or tools.
    - `DataError`: the prompt is not text, or the template refuses it, leaves a part of it out, or makes no token of it.
    """
    if raw:
        if not isinstance(prompt, str) or system or tools:
            raise ConfigError(
                explain(
                    "a raw prompt can't have messages, a system text or tools",
                    found=f"{str(prompt)[:80]!r}" + (f", system {system[:40]!r}" if system else ""),
                    do="one text, or the chat template",
                )
            )
        _check_text(prompt)
        return text_ids(tokenizer, prompt) or _no_tokens(prompt)
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    for message in messages:
        _check_text(message.get("content"))
    made = rendering(tokenizer, messages, add_generation_prompt=True, tools=tools)
    if not made.text:
        _no_tokens(prompt)
    for fault in made.faults:
        if fault.piece.role != "assistant":  # what it said before is rewritten by many, in training too
            raise refusal(fault, "the prompt", tokenizer.name_or_path)
    return encode_quoting(tokenizer, made.text, made.contents, added_tokens(tokenizer)) or _no_tokens(prompt)


def _check_text(text: Any) -> None:
    broken = [character for character in text or "" if "\ud800" <= character <= "\udfff"]
    if broken:
        raise DataError(explain("a prompt is not text", found=f"{broken[0]!a}, half a character", do="UTF-8 text"))


def _no_tokens(prompt: Any) -> NoReturn:
    raise DataError(
        explain(
            "the chat template of this model makes no text of the prompt",
            found=f"{str(prompt)[:80]!r}",
            do="a prompt that is not empty, or a template that is right in the model's chat_template.jinja",
        )
    )
