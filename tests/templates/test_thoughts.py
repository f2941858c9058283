"""A thought is trained on once: the row's own takes the place of an empty one that a template writes, or the row is refused."""

import pytest

from inlay.errors import DataError
from inlay.text import mask
from tests.support import bases, templates

TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
EMPTY_FIRST = (
    TURNS
    + "{% if m['role'] == 'assistant' %}<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    + OPENS
)
"""Every answer has an empty thought; the generation prompt opens one."""

EMPTY_LAST = (
    TURNS
    + "{% if loop.last and m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The last answer has an empty thought; the generation prompt opens none."""

OWN = "<think>\nhm\n</think>\n\nnine"
NONE = "<think>\n\n</think>\n\nnine"


def shown(template, content, thought=None):
    tok = bases.tokenizer(template=template)
    tok.add_special_tokens({"additional_special_tokens": templates.SPECIAL})
    said = {"reasoning_content": thought} if thought else {}
    messages = [{"role": "user", "content": "when?"}, {"role": "assistant", "content": content, **said}]
    (row,) = mask.conversation(tok, messages, "x:1")
    return mask.show(tok, row).partition("assistant⏎")[2]


@pytest.mark.parametrize(
    ("content", "thought", "expected"),
    [
        ("nine", None, "<think>⏎[[</think>nine<|im_end|>]]"),
        ("nine", "so", "<think>⏎[[so⏎</think>⏎⏎nine<|im_end|>]]"),
        (OWN, None, "<think>⏎[[hm⏎</think>⏎⏎nine<|im_end|>]]"),
        (NONE, None, "<think>⏎[[</think>⏎⏎nine<|im_end|>]]"),
    ],
)
def test_the_own_thought_takes_the_place_of_an_empty_one(content, thought, expected):
    assert shown(EMPTY_FIRST, content, thought) == expected


@pytest.mark.parametrize(
    ("template", "content", "thought", "headline"),
    [
        (EMPTY_FIRST, OWN, "so", "leaves a thought out"),
        (EMPTY_FIRST, NONE, "so", "leaves a thought out"),
        (EMPTY_LAST, OWN, None, "an empty thought before the row's own"),
        (EMPTY_LAST, NONE, None, "an empty thought before the row's own"),
        (EMPTY_LAST, "nine", "so", "leaves a thought out"),
    ],
)
def test_two_thoughts_are_refused(template, content, thought, headline):
    with pytest.raises(DataError, match=headline) as caught:
        shown(template, content, thought)
    assert "x:1" in str(caught.value)


def test_an_empty_thought_of_the_template_alone_is_what_generation_writes():
    assert shown(EMPTY_LAST, "nine") == "[[<think>⏎⏎</think>⏎⏎nine<|im_end|>]]⏎"
