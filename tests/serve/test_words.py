"""The text of answers as tokens come: whole characters, all of them, and no part of a string that ends it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from inlay.http.tools import Calls, form_of
from inlay.serve.words import HALF, Detokenizer, Stops
from tests.support import bases

DATA = Path(__file__).parents[1] / "data"
TOKENIZERS = {name: AutoTokenizer.from_pretrained(DATA / name) for name in ("byte_level", "byte_fallback")}

texts = st.text(st.characters(codec="utf-8", exclude_characters=HALF), max_size=40)


def _parts(tokenizer, ids):
    words = Detokenizer(tokenizer)
    return [*map(words.add, ids), words.end()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.one_of(texts, st.sampled_from(["añb", "日本語 text", "👩‍👩‍👧", " a  b ", "\n\n\t", "naïve café 👍🏽!"])))
def test_the_parts_of_a_text_are_the_text_and_none_is_half_a_character(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = _parts(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert not any(HALF in part for part in parts)


@given(ids=st.lists(st.integers(0, 700), max_size=30))
def test_tokens_that_are_no_text_are_shown_as_the_tokenizer_shows_them(ids):
    tokenizer = TOKENIZERS["byte_level"]
    wanted = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert "".join(_parts(tokenizer, ids)).replace(HALF, "") == wanted.replace(HALF, "")


def test_a_run_of_bytes_that_are_no_text_is_not_held_back_for_ever():
    tokenizer = TOKENIZERS["byte_level"]
    (token,) = {i for text, i in tokenizer.get_vocab().items() if text == "ÿ"}
    words = Detokenizer(tokenizer)
    assert any(words.add(token) for _ in range(20))


def _shown(strings, parts):
    stops = Stops(strings)
    shown = []
    for part in parts:
        shown.append(stops.add(part))
        if stops.found is not None:
            break
    return [*shown, "" if stops.found is not None else stops.end()], stops.found


@given(
    parts=st.lists(st.text("ab<", max_size=4), max_size=12),
    strings=st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3),
)
def test_a_text_ends_before_the_first_string_that_ends_it_however_it_comes(parts, strings):
    shown, found = _shown(strings, parts)
    text = "".join(parts)
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(s) for s in strings)]
    if not ends:
        assert ("".join(shown), found) == (text, None)
    else:  # as in the engine, where the text ends as soon as a string is whole
        assert found in strings
        at = len("".join(shown))
        assert text[at:].startswith(found)
        assert all(text.find(s) == -1 or text.find(s) >= at for s in strings if s in "".join(shown) + found)
    for count in range(len(shown)):  # nothing is taken back
        assert text.startswith("".join(shown[:count]))


def test_what_is_held_back_is_no_more_than_it_has_to_be():
    assert _shown(["END"], ["a E", "N", "x", "EN", "D tail"]) == (["a ", "", "ENx", "", "", ""], "END")
    assert _shown(["ab"], ["xa", "a", "c"]) == (["x", "a", "ac", ""], None)
    assert _shown([], ["x", "y"]) == (["x", "y", ""], None)


HERMES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %};{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}a: {% endif %}"
)
JSON_ALONE = HERMES.replace("<tool_call>", "").replace("</tool_call>", "")


@pytest.mark.parametrize(("template", "wanted"), [(HERMES, True), (JSON_ALONE, False), (None, False)])
def test_calls_are_read_where_the_template_leaves_no_doubt(template, wanted):
    assert (form_of(bases.tokenizer(template=template)) is not None) == wanted


CALL = '<tool_call>\n{"name": "tide", "arguments": {"harbour": "Brest", "list": ["</b>", {"x": 1}]}}\n</tool_call>'
OTHER = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "shown", "names"),
    [
        ("no call", "no call", []),
        (f"let me see {CALL}", "let me see ", ["tide"]),
        (f"{CALL}\n{OTHER}", "", ["tide", "f"]),
        (f"x{CALL} and more", f"x{CALL} and more", []),
        ("<tool_call>{broken", "<tool_call>{broken", []),
        (
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
            [],
        ),
        ("a <tool", "a <tool", []),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_told_from_text(text, shown, names, size):
    calls = Calls()
    early = "".join(calls.add(text[i : i + size]) for i in range(0, len(text), size))
    late, found = calls.end()
    assert early + late == shown
    assert [call["function"]["name"] for call in found] == names
    assert len({call["id"] for call in found}) == len(names)
