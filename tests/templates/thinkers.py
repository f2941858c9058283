"""Families whose answers have thoughts, and those whose turns end in unusual ways; see `families`."""

from tests.templates.families import CHATML_TOKENS, GEN, Family

R1 = (
    "<|User|>", "<|Assistant|>", "<|calls|>", "<|call|>", "<|sep|>", "<|end_call|>", "<|end_calls|>", "<|outputs|>", "<|end_outputs|>",
)  # fmt: skip
R1_CALLS = (  # arguments are put in as text
    "{% for c in m.tool_calls %}{{ '<|calls|><|call|>' + c.type + '<|sep|>' + c.function.name + '\n```json\n' + c.function.arguments"
    " + '\n```<|end_call|>' }}{% endfor %}<|end_calls|>{{ eos_token }}"
)
QWEN3 = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "# Tools\n<tools>{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}{{ '\n</tools>' }}<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(seeking=true, last=messages | length - 1) %}"
    "{% for m in messages[::-1] %}{% set index = messages | length - 1 - loop.index0 %}"
    "{% if ns.seeking and m.role == 'user' and not (m.content.startswith('<tool_response>')"
    " and m.content.endswith('</tool_response>')) %}{% set ns.seeking = false %}{% set ns.last = index %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}{% set content = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{% else %}{{ content }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ ('\n' if content or not loop.first else '') + '<tool_call>\n' }}"
    "{{ '{\"name\": \"' + c.function.name + '\", \"arguments\": ' + (c.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}{% endif %}{% endfor %}"
    ""
    + GEN
    + "<|im_start|>assistant\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)

FAMILIES = {
    "qwen-3": Family(
        QWEN3,
        (*CHATML_TOKENS, "<think>", "</think>", "<tool_call>", "</tool_call>"),
        bos="<|endoftext|>",
        eos="<|im_end|>",
    ),
    "qwq": Family(  # always asks for a thought; earlier ones are cut from the contents
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{{ m.content if loop.last else m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "" + GEN + "<|im_start|>assistant\n<think>\n{% endif %}",
        (*CHATML_TOKENS, "<think>", "</think>"),
        bos="<|endoftext|>",
        eos="<|im_end|>",
    ),
    "deepseek-v3": Family(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
        "<|User|>{{ m.content }}{% elif m.role == 'assistant' and m.tool_calls %}<|Assistant|>" + R1_CALLS + ""
        "{% elif m.role == 'assistant' %}{% if loop.previtem.role != 'tool' %}<|Assistant|>{% endif %}{{ m.content }}{{ eos_token }}"
        "{% else %}<|outputs|>{{ m.content }}<|end_outputs|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt and messages[-1].role != 'tool' %}<|Assistant|>{% endif %}",
        R1,
        bos="<|begin|>",
        eos="<|end|>",
    ),
    "deepseek-r1": Family(  # drops every thought, asks for one
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
        "<|User|>{{ m.content }}{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
        "{% endif %}{% endfor %}" + GEN + "<|Assistant|><think>\n{% endif %}",
        (*R1, "<think>", "</think>"),
        bos="<|begin|>",
        eos="<|end|>",
    ),
    "smollm3": Family(  # the system's text says whether it thinks
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
        "{% set mode = '/no_think' if '/no_think' in system else '/think' %}"
        "<|im_start|>system\n## Metadata\n\nReasoning Mode: {{ mode }}\n\n## Custom Instructions\n\n"
        "{{ system.replace('/no_think', '').replace('/think', '') | trim or 'You are SmolLM.' }}"
        "{% if tools %}\n\n### Tools\n<tools>{% for t in tools %}{{ '\n' + (t | string) }}{% endfor %}{{ '\n</tools>' }}{% endif %}<|im_end|>\n"
        "{% for m in rest %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{{ m.content.lstrip('\n') if mode == '/think' else '<think>\n\n</think>\n' + m.content.lstrip('\n') }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        ""
        + GEN
        + "{{ '<|im_start|>assistant\n' + ('<think>\n\n</think>\n' if mode == '/no_think' else '') }}{% endif %}",
        (*CHATML_TOKENS, "<think>", "</think>"),
        bos="<|begin_of_text|>",
        eos="<|im_end|>",
    ),
    "glm-4": Family(  # no token ends an answer
        "[gMASK]<sop>{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>\n{{ m.content }}{% endfor %}"
        "" + GEN + "<|assistant|>{% endif %}",
        ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        stops=("<|user|>",),
    ),
    "glm-4.5": Family(  # the next header ends an answer; thoughts of earlier questions are dropped
        "[gMASK]<sop>{% if tools %}<|system|>\n# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}"
        "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}"
        "{% elif m.role == 'assistant' %}<|assistant|>{% set thought = m.reasoning_content or '' %}{% set content = m.content or '' %}"
        "{% if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set content = content.split('</think>')[-1].strip('\n') %}{% endif %}"
        "{% if loop.index0 > ns.last and thought %}{{ '\n<think>' + thought.strip() + '</think>' }}{% else %}{{ '\n<think></think>' }}{% endif %}"
        "{% if content.strip() %}{{ '\n' + content.strip() }}{% endif %}"
        "{% for c in m.tool_calls or [] %}{{ '\n<tool_call>' + c.function.name }}"
        "{% for k, v in c.function.arguments.items() %}{{ '\n<arg_key>' + k + '</arg_key>\n<arg_value>' }}{{ v if v is string else v | tojson }}</arg_value>"
        "{% endfor %}{{ '\n</tool_call>' }}{% endfor %}"
        "{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|observation|>{% endif %}"
        "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}{% else %}<|system|>\n{{ m.content }}{% endif %}{% endfor %}"
        "" + GEN + "<|assistant|>{% endif %}",
        (
            "[gMASK]",
            "<sop>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
        ),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        stops=("<|user|>", "<|observation|>"),
    ),
    "gpt-oss": Family(  # another token ends the last answer than an earlier one
        "<|start|>system<|message|>You are ChatGPT.{% if tools %}{{ '\n' }}Calls go to functions.{% endif %}<|end|>"
        "{% if messages[0].role in ('system', 'developer') %}{% set said = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
        "{% if said or tools %}<|start|>developer<|message|>{% if said %}# Instructions\n\n{{ said }}\n\n{% endif %}"
        "{% if tools %}# Tools\n\nnamespace functions {\n{% for t in tools %}// {{ t.function.description }}\n"
        "type {{ t.function.name }} = (_: {{ '{' }}{% for k, v in t.function.parameters.properties.items() %}{{ '\n' + k }}?: "
        "{{ 'number' if v.type == 'integer' else v.type }},{% endfor %}{{ '\n' }}}) => any;\n{% endfor %}}{% endif %}<|end|>{% endif %}"
        "{% set ns = namespace(name='', final=-1) %}"
        "{% for m in rest %}{% if m.role == 'assistant' and not m.tool_calls %}{% set ns.final = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in rest %}{% if m.role == 'assistant' and m.tool_calls %}{% set f = m.tool_calls[0].function %}{% set ns.name = f.name %}"
        "{% if m.thinking and ns.final < loop.index0 %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|start|>assistant to=functions.{{ f.name }}<|channel|>commentary json<|message|>{{ f.arguments | tojson }}<|call|>"
        "{% elif m.role == 'assistant' and loop.last and not add_generation_prompt %}"
        "{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>"
        "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
        "{% elif m.role == 'tool' %}<|start|>functions.{{ ns.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>"
        "{% else %}<|start|>user<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "" + GEN + "<|start|>assistant{% endif %}",
        ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"),
        bos="<|startoftext|>",
        eos="<|return|>",
        stops=("<|return|>", "<|call|>"),
    ),
    "command-r7b": Family(  # two tokens end an answer
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|>"
        "{% if m.role == 'assistant' %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>"
        "{% else %}<|{{ m.role | upper }}_TOKEN|>{{ m.content }}{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}"
        "" + GEN + "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        (
            "<|START_OF_TURN_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "<|USER_TOKEN|>",
            "<|CHATBOT_TOKEN|>",
            "<|SYSTEM_TOKEN|>",
            "<|START_RESPONSE|>",
            "<|END_RESPONSE|>",
        ),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    "phi-3": Family(  # ends the whole text with another token than a turn
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        bos="<s>",
        eos="<|endoftext|>",
        stops=("<|end|>",),
    ),
    "nemotron": Family(  # the next header ends an answer, behind a newline
        "<extra_id_0>System\n{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}"
        "{% endif %}{{ '\n' }}{% for m in rest %}<extra_id_1>{{ 'User' if m.role == 'user' else 'Assistant' }}\n{{ m.content | trim }}\n{% endfor %}"
        "" + GEN + "<extra_id_1>Assistant\n{% endif %}",
        ("<extra_id_0>", "<extra_id_1>"),
        stops=("<extra_id_1>",),
    ),
    "magistral": Family(  # thoughts between tokens of its own
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
        "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.role == 'assistant' %}"
        "{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]{% endif %}{{ m.content }}{{ eos_token }}"
        "{% else %}{{ raise_exception('Only user, system and assistant roles are supported!') }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]"),
    ),
}
