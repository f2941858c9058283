"""A Modelfile for Ollama: the base, the adapter, and the base's chat template in the language of Ollama.

    FROM /path/to/the/base
    ADAPTER ./adapter.gguf
    TEMPLATE ...      each message's text between fixed texts, by its role
    SYSTEM ...        what the chat template says where nobody says a system message
    PARAMETER stop    what ends an answer

Ollama has its own language of templates, and Jinja can't be translated into it. But most chat templates do no more than put
fixed texts around what is said. Those texts are found by trial: conversations of marks are rendered and cut at the marks. Then
conversations are put together of the texts, and where one is another than the chat template's, the adapter is refused.
"""

import json
from typing import Any, NamedTuple

from inlay.errors import CompatibilityError, DataError, explain
from inlay.gguf.opening import METHOD
from inlay.io.checkpoint import Checkpoint
from inlay.text.pieces import Message
from inlay.text.template import render

MODELFILE = "Modelfile"

SAID = {"system": "Mark one", "user": "Mark two", "assistant": "Mark three"}
"""What the trials say."""

TRIALS = (
    "user",
    "system user",
    "user assistant user",
    "system user assistant user",
    "user assistant user assistant user",
)
"""The conversations that are tried, by their roles."""

_INSTEAD = "inlay export --for llama.cpp: its server reads the base's own template"


class Turns(NamedTuple):
    """A chat template that puts fixed texts around messages."""

    start: str
    """In front of everything."""
    around: dict[str, tuple[str, str]]
    """What stands before and behind a message, by its role."""
    default: str
    """The system message of a conversation that has none."""

    def text(self, messages: list[Message]) -> str:
        """A conversation as text, up to where an answer starts."""
        roles = [message["role"] for message in messages]
        if self.default and "system" not in roles:
            messages = [{"role": "system", "content": self.default}, *messages]
        parts = [self.around[m["role"]][0] + m["content"] + self.around[m["role"]][1] for m in messages]
        return self.start + "".join(parts) + self.around["assistant"][0]

    def go(self) -> str:
        """The same in the language of Ollama."""
        last = "{{- $last := eq (len (slice $.Messages $i)) 1 }}"
        roles = [
            f'{{{{- {word} eq .Role "{role}" }}}}{_go(self.around[role][0])}{{{{ .Content }}}}{_go(self.around[role][1])}'
            for word, role in (("if", "system"), ("else if", "user"), ("else if", "assistant"))
        ]
        answer = f'{{{{- if and $last (ne .Role "assistant") }}}}{_go(self.around["assistant"][0])}{{{{- end }}}}'
        each = f"{{{{- range $i, $_ := .Messages }}}}{last}{''.join(roles)}{{{{- end }}}}{answer}{{{{- end }}}}"
        return _go(self.start) + each


def modelfile(base: Checkpoint, tokenizer: Any, adapter: str) -> str:
    """The Modelfile of a base with the adapter in the file `adapter` beside it.

    **Raises:**

    - `CompatibilityError`: the chat template does more than put fixed texts around messages, or there is none; no token ends an
      answer; the base's weights are not there.
    """
    is_file = base.config.get("quantization_config", {}).get("quant_method") == METHOD
    if not is_file and not any(base.directory.glob("*.safetensors")):
        wrong, do = "a Modelfile names the weights of its base", "a directory or a .gguf file with its weights"
        raise CompatibilityError(explain(wrong, found=f"{base.reference}: none are there", do=do))
    if tokenizer.eos_token is None:
        raise _refused("no token ends an answer of this base", "a tokenizer without eos_token")
    begins = _begins(tokenizer)
    turns = _turns(tokenizer, begins)
    if not turns.start.startswith(begins):
        found = f"{begins!r}, which the chat template does not write"
        raise _refused("Ollama puts a token in front of every prompt of this base", found)
    turns = turns._replace(start=turns.start.removeprefix(begins))
    lines = [
        f"FROM {base.reference if is_file else base.directory}",
        f"ADAPTER ./{adapter}",
        f'TEMPLATE """{turns.go()}"""',
        *([f'SYSTEM """{turns.default}"""'] if turns.default else []),
        f"PARAMETER stop {json.dumps(tokenizer.eos_token, ensure_ascii=False)}",
    ]
    if '"""' in turns.go() + turns.default:
        raise _refused("this chat template can't stand in a Modelfile", "three quotation marks")
    return "\n".join(lines) + "\n"


def _turns(tokenizer: Any, begins: str) -> Turns:
    """The texts around messages, found by trial; `begins`: the token that stands in front of every text."""
    if not tokenizer.chat_template:
        raise _refused("this base has no chat template for the Modelfile", "a tokenizer without one")
    head, after_system, after_user, after_answer, tail = _cut(tokenizer, "system user assistant user")
    front, end = _cut(tokenizer, "user")[0], tokenizer.eos_token
    user = _behind(_common_end(_common_end(after_system, after_answer), front), end)
    answer = _behind(after_user, end)
    start, default, closed = front.removesuffix(user), "", after_system.removesuffix(user)
    if start.startswith(head) and start.endswith(closed) and len(start) > len(head) + len(closed):
        start, default = begins, start[len(head) : len(start) - len(closed)]
    around = {
        "system": (head.removeprefix(start), closed),
        "user": (user, after_user.removesuffix(answer)),
        "assistant": (answer, after_answer.removesuffix(user)),
    }
    turns = Turns(start, around, default)
    for roles in TRIALS:
        messages = _messages(roles)
        wanted, found = _rendered(tokenizer, messages, roles), turns.text(messages)
        if wanted != found or tail != after_user:
            raise _refused(
                "this base's chat template does more than put fixed texts around messages", f"a conversation of {roles}"
            )
    return turns


def _messages(roles: str) -> list[Message]:
    return [{"role": role, "content": f"{SAID[role]} {number}."} for number, role in enumerate(roles.split())]


def _cut(tokenizer: Any, roles: str) -> list[str]:
    """What the template writes around the messages of a trial."""
    messages = _messages(roles)
    left, parts = _rendered(tokenizer, messages, roles), []
    for message in messages:
        part, mark, left = left.partition(message["content"])
        if not mark:
            raise _refused("this base's chat template does not write every message", f"a conversation of {roles}")
        parts.append(part)
    return [*parts, left]


def _rendered(tokenizer: Any, messages: list[Message], roles: str) -> str:
    try:
        return render(tokenizer, messages, "a trial", add_generation_prompt=True)
    except DataError as error:
        raise _refused(
            "this base's chat template refuses what Ollama may ask", f"a conversation of {roles}: {error.wrong}"
        ) from None


def _common_end(one: str, other: str) -> str:
    """The longest end that both have."""
    same = next((n for n in range(min(len(one), len(other)), 0, -1) if one[-n:] == other[-n:]), 0)
    return one[len(one) - same :]


def _behind(text: str, end: str) -> str:
    """What of a text stands behind the token that ends an answer, and the lines after it."""
    return text.rpartition(end)[2].lstrip("\n") if end in text else text


def _begins(tokenizer: Any) -> str:
    """The token that is put in front of every text; empty where there is none."""
    whole, number = tokenizer("a")["input_ids"], tokenizer.bos_token_id
    return tokenizer.bos_token if number is not None and whole and whole[0] == number and len(whole) > 1 else ""


def _go(text: str) -> str:
    """A text as Ollama's templates have it, with its spaces and lines, which would be cut off beside an expression."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _refused(wrong: str, found: str) -> CompatibilityError:
    return CompatibilityError(explain(wrong, found=found, do=_INSTEAD))
