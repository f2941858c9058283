"""More families without thoughts; see `families`."""

from tests.templates.families import ALTERNATE, CHATML, CHATML_TOKENS, FOLDED, GEN, JSON_CALL, REFUSE_SYSTEM, Family

FAMILIES = {
    "gemma": Family(
        "{{ bos_token }}"
        + REFUSE_SYSTEM
        + ALTERNATE
        + "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}" + GEN + "<start_of_turn>model\n{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        stops=("<end_of_turn>",),
    ),
    "gemma-3": Family(  # contents as texts or parts; the system's text in the first question
        "{{ bos_token }}"
        + FOLDED
        + "{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ said if loop.first }}{% if m.content is string %}{{ m.content | trim }}{% else %}{% for p in m.content %}{{ p.text | trim }}{% endfor %}"
        "{% endif %}<end_of_turn>\n{% endfor %}" + GEN + "<start_of_turn>model\n{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        stops=("<end_of_turn>",),
    ),
    "phi-4": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
        "" + GEN + "<|im_start|>assistant<|im_sep|>{% endif %}",
        (*CHATML_TOKENS, "<|im_sep|>"),
        eos="<|endoftext|>",
        stops=("<|im_end|>",),
    ),
    "smollm2": Family(
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are SmolLM.<|im_end|>\n{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        + GEN
        + "<|im_start|>assistant\n{% endif %}",
        CHATML_TOKENS,
        eos="<|im_end|>",
    ),
    "zephyr": Family(  # headers are plain text
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
        + GEN
        + "<|assistant|>\n{% endif %}",
    ),
    "vicuna": Family(
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set rest = messages[1:] %}"
        "{% else %}A chat between a curious user and an assistant.{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}{{ ' USER: ' + m.content }}"
        "{% else %}{{ ' ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
        + GEN
        + " ASSISTANT:{% endif %}",
    ),
    "alpaca": Family(
        "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}{% for m in messages %}"
        "{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
        "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}{{ eos_token }}\n\n{% endif %}{% endfor %}"
        "" + GEN + "### Response:\n{% endif %}",
    ),
    "command-r": Family(
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|><|{{ 'CHATBOT' if m.role == 'assistant' else m.role | upper }}_TOKEN|>"
        "{{ m.content | trim }}<|END_OF_TURN_TOKEN|>{% endfor %}"
        + GEN
        + "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    "olmo-2": Family(  # a newline behind every answer but the last
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n{{ m.content }}{{ eos_token }}"
        "{% if not loop.last %}{{ '\n' }}{% endif %}{% else %}<|{{ m.role }}|>\n{{ m.content }}\n{% endif %}"
        "{% if loop.last and add_generation_prompt %}<|assistant|>\n{% endif %}{% endfor %}",
        bos="<|endoftext|>",
        eos="<|endoftext|>",
    ),
    "granite-3": Family(
        "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
        "{% else %}{% set system = 'You are Granite.' %}{% set rest = messages %}{% endif %}"
        "<|start_of_role|>system<|end_of_role|>{{ system }}<|end_of_text|>\n"
        "{% if tools %}<|start_of_role|>available_tools<|end_of_role|>{{ tools | tojson(indent=4) }}<|end_of_text|>\n{% endif %}"
        "{% for m in rest %}<|start_of_role|>{{ 'tool_response' if m.role == 'tool' else m.role }}<|end_of_role|>"
        "{% if m.tool_calls %}<|tool_call|>{{ m.tool_calls | map(attribute='function') | list | tojson }}{% else %}{{ m.content }}{% endif %}"
        "<|end_of_text|>\n{% endfor %}" + GEN + "<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
    ),
    "falcon": Family(  # no end, and headers of plain text
        "{% for m in messages %}{{ '\n' if not loop.first }}{{ {'user': 'User', 'assistant': 'Falcon', 'system': 'System'}[m.role] }}: {{ m.content }}"
        "{% endfor %}" + GEN + "{{ '\nFalcon:' }}{% endif %}",
        bos="<|endoftext|>",
        eos="<|endoftext|>",
    ),
    "yi": Family(CHATML, CHATML_TOKENS, bos="<|startoftext|>", eos="<|im_end|>"),
    "internlm-2": Family("{{ bos_token }}" + CHATML, CHATML_TOKENS, stops=("<|im_end|>",)),
    "minicpm": Family(  # the answer follows its header's last letter; nothing ends it
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<U>' + m.content.strip() + '<AI>' }}{% else %}{{ m.content.strip() }}{% endif %}{% endfor %}",
    ),
    "hermes": Family(
        "{{ bos_token }}{% if tools %}<|im_start|>system\nYou call functions: <tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>"
        "<|im_end|>\n{% endif %}{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>tool\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
        "{% elif m.tool_calls %}<|im_start|>assistant" + JSON_CALL + "<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        + GEN
        + "<|im_start|>assistant\n{% endif %}",
        CHATML_TOKENS,
        bos="<|begin_of_text|>",
        eos="<|im_end|>",
    ),
    "parts": Family(  # a model that sees pictures: contents are lists of parts
        "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:{% for p in m.content %}{% if p.type == 'image' %}<image>{% elif p.type == 'text' %} {{ p.text }}"
        "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}" + GEN + "Assistant:{% endif %}",
        ("<|im_start|>", "<end_of_utterance>", "<image>"),
        stops=("<end_of_utterance>",),
    ),
    "parts, header of its own": Family(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "" + GEN + "<|im_start|>assistant\n{% endif %}",
        CHATML_TOKENS,
        stops=("<|im_end|>",),
    ),
    "openchat": Family(
        "{{ bos_token }}{% for m in messages %}GPT4 Correct {{ m.role | title }}: {{ m.content }}<|end_of_turn|>{% endfor %}"
        "" + GEN + "GPT4 Correct Assistant:{% endif %}",
        ("<|end_of_turn|>",),
        eos="<|end_of_turn|>",
    ),
    "exaone": Family(
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}[|system|][|endofturn|]\n{% endif %}"
        "[|{{ m.role }}|]{{ m.content }}{{ '[|endofturn|]' if m.role != 'user' }}\n{% endfor %}"
        + GEN
        + "[|assistant|]{% endif %}",
        ("[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]"),
        bos="[BOS]",
        eos="[|endofturn|]",
    ),
    "kimi": Family(
        "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}<|im_end|>{% endfor %}"
        "" + GEN + "<|im_assistant|>assistant<|im_middle|>{% endif %}",
        ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>"),
        bos="[BOS]",
        eos="[EOS]",
        stops=("<|im_end|>",),
    ),
    "deaf to all but two": Family(
        "{% for m in messages if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "" + GEN + "<|im_start|>assistant\n{% endif %}",
        CHATML_TOKENS,
        stops=("<|im_end|>",),
    ),
}
