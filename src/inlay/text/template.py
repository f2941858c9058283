"""Conversations as text: the tokenizer's own chat template, or one plain default where it has none."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from inlay.errors import ConfigError, DataError, explain
from inlay.text.bounded import Group, begun, ended
from inlay.text.pieces import MARK, NUM_MARKS, Fault, Message, Said, Span, refusal
from inlay.text.prepared import Prepared
from inlay.text.tokens import Added, added, encode_quoting, text_ids


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
    return Conversation(tokenizer, messages, source, tools).text(len(messages), add_generation_prompt)


def _are_as_python(text: str, objects: Sequence[Any]) -> bool:
    """A text has an object as Python writes it, where JSON would be another."""
    return any(str(value) in text and str(value) != json.dumps(value) for value in objects)


def _objects(messages: Iterable[Message]) -> list[Any]:
    """The arguments of messages' calls that are objects with something in them."""
    calls = [call for message in messages for call in message.get("tool_calls") or [] if isinstance(call, Mapping)]
    inner = (call.get("function", call) for call in calls)
    found = (call.get("arguments") for call in inner if isinstance(call, Mapping))
    return [value for value in found if isinstance(value, Mapping) and value]


def _with_arguments_as_text(message: Message) -> Message:
    if not _objects([message]):
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
        as_parts = _in_parts(PROBE[0])
        parts = _writes(tokenizer, PROBE[0], source) is False and bool(_writes(tokenizer, as_parts, source))
        probe = [_in_parts(message) for message in PROBE[:2]] if parts else PROBE[:2]
        found = (template, _Manners(parts, *_opening(tokenizer, probe)))
        _manners[tokenizer] = found
    return found[1]


def _opening(tokenizer: Any, probe: list[Message]) -> tuple[bool, str]:
    """`opens_always` and `lost_newline`."""
    try:
        prepared = Prepared(tokenizer, probe, "a trial", None)
        asked, unasked, whole = prepared.text(1, True), prepared.text(1, False), prepared.text(2, False)
    except DataError:
        return False, ""
    is_lost = asked == unasked and asked == asked.rstrip() and whole.startswith(f"{asked}\n{PROBE[1]['content']}")
    return asked == unasked, "\n" if is_lost else ""


def _writes(tokenizer: Any, message: Message, source: str) -> bool | None:
    """The template writes what the user says, and not a list that it is in; None where it refuses."""
    try:
        text = Prepared(tokenizer, [message], source, None).text(1, False)
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

    @functools.cached_property
    def contents(self) -> list[Span]:
        """The characters that come from the conversation, sorted, without overlap."""
        return sorted({span for spans in self.spans for span in spans})

    @functools.cached_property
    def extents(self) -> dict[int, Span]:
        """From where to where a message's pieces stand, by its number."""
        return self.said.extents(self.spans)

    @functools.cached_property
    def faults(self) -> list[Fault]:
        return self.said.faults(self.text, self.spans)


Asked = tuple[int, bool, bool]
"""A text of a conversation: how many of its messages, whether with a generation prompt, whether with marks."""


class Conversation:
    """A conversation, and the texts that a template makes of it and of its beginnings, each made once.

    Raises as `render` does, as soon as the whole can't be prepared, else when a text is asked for.
    """

    def __init__(
        self, tokenizer: Any, messages: Sequence[Message], source: str, tools: Sequence[Mapping[str, Any]] | None = None
    ):
        self._tokenizer, self._source, self._said = tokenizer, source, Said(messages, tools)
        self._manners = _manners_of(tokenizer, source)
        self._given = (list(messages), tools), (self._said.messages, self._said.tools)
        marked = self._as_read(*self._given[True])
        plain = marked.without(MARK, 2 * min(len(self._said.pieces), NUM_MARKS), self._given[False][0])
        self._prepared = plain or self._as_read(*self._given[False]), marked
        self._texts: dict[Asked, str | None] = {}
        self._under_way: list[tuple[Asked, ...]] = []
        self._groups: list[Group] = []

    def ahead(self, *asked: Asked) -> None:
        """Begin to make several texts together; `text` has them then sooner than if it was the first to ask."""
        known = {*self._texts, *(each for some in self._under_way for each in some)}
        new = tuple(each for each in dict.fromkeys(asked) if each not in known)
        if new and (template := self._prepared[0].template) is not None:
            variables = [self._prepared[is_marked].variables(stop, add) for stop, add, is_marked in new]
            self._under_way.append(new)
            self._groups += begun(template, variables)

    def text(self, stop: int, add: bool = False, is_marked: bool = False) -> str:
        """The text of the first `stop` messages, with a generation prompt, and with marks around what they say."""
        asked = stop, add, is_marked
        self.ahead(asked)
        if asked not in self._texts and self._groups:
            texts = (text for group in self._groups for text in ended(group))
            new = (each for some in self._under_way for each in some)
            self._texts |= {each: self._finished(text, *each) for each, text in zip(new, texts, strict=True)}
            self._under_way, self._groups = [], []
        text = self._texts.get(asked)
        if text is None:
            text = self._texts[asked] = self._alone(*asked) + self._manners.lost_newline * add
        return text

    def rendered(self, stop: int, add: bool = False) -> Rendered:
        """The same, and where each thing that these messages say stands."""
        said = self._said.until(stop)
        can_mark = said.can_mark
        self.ahead((stop, add, False), *[(stop, add, True)] * can_mark)
        text, marked = self.text(stop, add), None
        if can_mark:
            with contextlib.suppress(DataError):  # a template may refuse what has marks in it
                marked = self.text(stop, add, True)
        plain, spans = said.located(marked) if marked is not None else ("", [])
        return Rendered(text, said, spans if plain == text and marked is not None else said.searched(text))

    def _as_read(self, messages: list[Message], tools: Sequence[Mapping[str, Any]] | None) -> Prepared:
        """Messages as the template reads them."""
        as_read = [_in_parts(message) for message in messages] if self._manners.parts else messages
        return Prepared(self._tokenizer, as_read, self._source, tools)

    def _finished(self, text: str | None, stop: int, add: bool, is_marked: bool) -> str | None:
        """A text as `text` gives it; None where that has to be asked."""
        if text is None or _are_as_python(text, _objects(self._given[is_marked][0][:stop])):
            return None
        return text + self._manners.lost_newline if add else text

    def _alone(self, stop: int, add: bool, is_marked: bool) -> str:
        """What the template makes of messages, the arguments of calls as objects or, where that is wrong, as JSON."""
        messages, tools = self._given[is_marked]
        objects = _objects(messages[:stop])
        as_text = [_with_arguments_as_text(message) for message in messages[:stop]]
        try:
            text = self._prepared[is_marked].text(stop, add)
        except DataError:
            if objects:
                with contextlib.suppress(DataError):
                    return self._as_read(as_text, tools).text(stop, add)
            raise
        if _are_as_python(text, objects):
            with contextlib.suppress(DataError):
                return self._as_read(as_text, tools).text(stop, add)
        return text


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
        return _raw_ids(tokenizer, prompt, system, tools)
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system:
        messages = [{"role": "system", "content": system}, *messages]
    for message in messages:
        _check_text(message.get("content"))
    made = Conversation(tokenizer, messages, "the prompt", tools).rendered(len(messages), True)
    if not made.text:
        _no_tokens(prompt)
    for fault in made.faults:
        if fault.piece.role != "assistant":  # what it said before is rewritten by many, in training too
            raise refusal(fault, "the prompt", tokenizer.name_or_path)
    return encode_quoting(tokenizer, made.text, made.contents, added_tokens(tokenizer)) or _no_tokens(prompt)


def _raw_ids(tokenizer: Any, prompt: str | Sequence[Message], system: str | None, tools: Any) -> list[int]:
    if not isinstance(prompt, str) or system or tools:
        wrong = "a raw prompt can't have messages, a system text or tools"
        found = f"{str(prompt)[:80]!r}" + (f", system {system[:40]!r}" if system else "")
        raise ConfigError(explain(wrong, found=found, do="one text, or the chat template"))
    _check_text(prompt)
    return text_ids(tokenizer, prompt) or _no_tokens(prompt)


def _check_text(text: Any) -> None:
    broken = [character for character in text or "" if "\ud800" <= character <= "\udfff"]
    if broken:
        raise DataError(explain("a prompt is not text", found=f"{broken[0]!a}, half a character", do="UTF-8 text"))


def _no_tokens(prompt: Any) -> NoReturn:
    wrong = "the chat template of this model makes no text of the prompt"
    do = "a prompt that is not empty, or a template that is right in the model's chat_template.jinja"
    raise DataError(explain(wrong, found=f"{str(prompt)[:80]!r}", do=do))
