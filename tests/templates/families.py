"""Chat templates in the manners of real families, each written here from what is known of the family, none copied.

What is trained on in some conversations stands in `marked.txt`, marked by hand: each row with the trained part between `[[`
and `]]`, or the words of the refusal behind a `!`.
"""

import dataclasses
import functools

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

GEN = "{% if add_generation_prompt %}"
REFUSE_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
FOLDED = (  # the system's text opens the first question
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
)


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A template, the tokens that it writes, and what ends its answers."""

    template: str
    tokens: tuple[str, ...] = ()
    bos: str = "<s>"
    eos: str = "</s>"
    stops: tuple[str, ...] = ()
    """What ends an answer; the end token unless said."""


@functools.cache
def tokenizer(family):
    """A byte-level tokenizer without merges, with the family's tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(token_models.BPE(vocab={text: i for i, text in enumerate(alphabet)}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=built, bos_token=family.bos, eos_token=family.eos)
    made.add_special_tokens({"additional_special_tokens": [text for text in family.tokens if not _is_plain(text)]})
    made.add_tokens([text for text in family.tokens if _is_plain(text)])
    made.chat_template = family.template
    return made


def _is_plain(text):
    """A token that is added to the vocabulary, but not special, as thoughts and calls often are."""
    return "think" in text.lower() or "tool_call" in text


USER, ANSWER = {"role": "user", "content": "Boil an egg?"}, {"role": "assistant", "content": "Nine minutes."}
SOFT, SIX = {"role": "user", "content": "Soft?"}, {"role": "assistant", "content": "Six."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"id": "call12345", "type": "function", "function": {"name": "tide", "arguments": {"at": "Brest", "day": 3}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "height of the tide",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}, "day": {"type": "integer"}}},
        },
    }
]
CALLING = [
    {"role": "user", "content": "The tide at Brest?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2.1 m", "tool_call_id": "call12345", "name": "tide"},
    {"role": "assistant", "content": "It is 2.1 m."},
]
THINKING = [USER, {**ANSWER, "reasoning_content": "so"}]
IN_CONTENT = [USER, {"role": "assistant", "content": "<think>\nso\n</think>\n\nNine minutes."}]
CONVERSATIONS = {
    "one": ([USER, ANSWER], None),
    "two": ([USER, ANSWER, SOFT, SIX], None),
    "system": ([SYSTEM, USER, ANSWER], None),
    "tools": (CALLING, TOOLS),
    "calls": (CALLING, None),
    "thought": (THINKING, None),
    "thoughts": ([*THINKING, SOFT, {**SIX, "reasoning_content": "hm"}], None),
    "in content": (IN_CONTENT, None),
    "two in content": ([*IN_CONTENT, SOFT, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSix."}], None),
}

JSON_CALL = (
    "{% for c in m.tool_calls %}{{ '\n<tool_call>\n' }}"
    "{{ '{\"name\": \"' + c.function.name + '\", \"arguments\": ' + (c.function.arguments | tojson) + '}' }}\n</tool_call>"
    "{% endfor %}"
)
FAMILIES = {
    "chatml": Family(
        CHATML,
        CHATML_TOKENS,
        eos="<|endoftext|>",
        stops=("<|im_end|>",),
    ),
    "llama-2": Family(
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = false %}{% set rest = messages %}{% endif %}{% for m in rest %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content if loop.first and system else m.content %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + text | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + text | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    ),
    "llama-3": Family(
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
        "<|eot_id|>{% endfor %}" + GEN + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        stops=("<|eot_id|>",),
    ),
    "llama-3 as it first was": Family(  # opens the next answer whether asked to or not
        "{% for m in messages %}{% set text = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' %}"
        "{{ bos_token + text if loop.first else text }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        stops=("<|eot_id|>",),
    ),
    "always open, with a newline at its end": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
        CHATML_TOKENS,
        eos="<|endoftext|>",
        stops=("<|im_end|>",),
    ),
    "llama-3.1": Family(  # schemas in the first question, one call a turn as name and parameters, results as ipython
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "<|start_header_id|>system<|end_header_id|>\n\n{% if tools %}Environment: ipython\n{% endif %}"
        "Cutting Knowledge Date: December 2023\n\n{{ system }}<|eot_id|>"
        "{% if tools %}{% set first = rest[0].content | trim %}{% set rest = rest[1:] %}"
        "<|start_header_id|>user<|end_header_id|>\n\nAnswer with a call of one of these functions.\n\n"
        "{% for t in tools %}{{ t | tojson(indent=4) }}\n\n{% endfor %}{{ first }}<|eot_id|>{% endif %}"
        "{% for m in rest %}{% if m.tool_calls %}"
        "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
        "{% set f = m.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}<|eot_id|>'
        "{% elif m.role in ('tool', 'ipython') %}<|start_header_id|>ipython<|end_header_id|>\n\n"
        "{{ m.content | tojson if m.content is mapping else m.content }}<|eot_id|>"
        "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endif %}"
        "{% endfor %}" + GEN + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
    "mistral v1": Family(
        "{{ bos_token }}" + ALTERNATE + "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    ),
    "mixtral": Family(
        "{{ bos_token }}" + FOLDED + "{% for m in rest %}{% if m.role == 'user' %}"
        "{{ ' [INST] ' + (said if loop.first else '') + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    ),
    "mistral v3": Family(  # schemas and the system's text before the last question; calls with ids of nine characters
        "{{ bos_token }}" + FOLDED + "{% set ns = namespace(last=-1) %}"
        "{% for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in rest %}{% if m.role == 'user' %}{% if tools and loop.index0 == ns.last %}[AVAILABLE_TOOLS] "
        "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ said if loop.index0 == ns.last }}{{ m.content }}[/INST]"
        "{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
        "{% if c.id | length != 9 %}{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
        "{{ (c.function | tojson)[:-1] + ', \"id\": \"' + c.id + '\"}' }}{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}"
        "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ {'content': m.content, 'call_id': m.tool_call_id} | tojson }}[/TOOL_RESULTS]"
        "{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}{% endfor %}",
        (
            "[INST]",
            "[/INST]",
            "[TOOL_CALLS]",
            "[AVAILABLE_TOOLS]",
            "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        ),
    ),
    "mistral tekken": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
        "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
        "{% else %}{{ raise_exception('Only user, system and assistant roles are supported!') }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    ),
    "qwen-2.5": Family(  # a system text of its own; schemas in it; results of tools as the user's
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = 'You are Qwen.' %}{% set rest = messages %}{% endif %}"
        "<|im_start|>system\n{{ system }}{% if tools %}\n\n# Tools\n<tools>{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}{{ '\n</tools>' }}"
        "{% endif %}<|im_end|>\n{% for m in rest %}{% if m.role == 'tool' %}"
        "{% if loop.first or rest[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
        "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
        "{% if loop.last or rest[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}"
        "{% else %}<|im_start|>{{ m.role }}{{ '\n' + m.content if m.content }}"
        "{% if m.tool_calls %}" + JSON_CALL + "{% endif %}<|im_end|>\n{% endif %}{% endfor %}"
        "" + GEN + "<|im_start|>assistant\n{% endif %}",
        (*CHATML_TOKENS, "<tool_call>", "</tool_call>"),
        bos="<|endoftext|>",
        eos="<|im_end|>",
    ),
}
