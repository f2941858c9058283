"""Which tokens a row has, and which of them are trained on: exactly the answers, with the token that ends them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from inlay.errors import ConfigError, DataError
from inlay.text import mask
from inlay.text.mask import Example, fit
from inlay.text.template import prompt_ids
from tests.support import bases, templates
from tests.support.paths import GPT2_TOKENIZER, STORIES, needs_shared

TURNS = [
    {"role": "user", "content": "How old is Ida?"},
    {"role": "assistant", "content": "Ida is nine."},
    {"role": "user", "content": "And Tom?"},
    {"role": "assistant", "content": "Tom is ten, I think."},
]


def tokenizer(name):
    built = bases.tokenizer(template=templates.ALL[name])
    built.add_special_tokens({"additional_special_tokens": templates.SPECIAL})
    return built


def trained_texts(tokenizer, example):
    """The decoded runs of trained tokens."""
    runs, ids = [], []
    for token, trained in [*zip(example.input_ids, example.trained, strict=True), (None, False)]:
        if trained:
            ids.append(token)
        elif ids:
            runs.append(tokenizer.decode(ids))
            ids = []
    return runs


@pytest.mark.parametrize("name", templates.ALL)
def test_all_answers_are_trained_on_with_their_end_and_nothing_else(name):
    tok = tokenizer(name)
    end = templates.END.get(name, "</s>")
    example = mask.conversation(tok, TURNS, "x:1")
    texts = [text.strip() for text in trained_texts(tok, example)]
    if name == "endless":  # only the last turn can be told to end
        assert texts == ["Ida is nine.", "Tom is ten, I think.</s>"]
    else:
        assert texts == [f"Ida is nine.{end}", f"Tom is ten, I think.{end}"]


@pytest.mark.parametrize("name", templates.ALL)
def test_generation_starts_from_the_tokens_that_stood_before_the_answer(name):
    tok = tokenizer(name)
    example = mask.conversation(tok, TURNS[:2], "x:1")
    start = example.trained.index(True)
    prompt = prompt_ids(tok, TURNS[:1])
    if name == "forgetful":  # its generation prompt opens a thought, which this answer does not have
        assert tok.decode(prompt).startswith(tok.decode(example.input_ids[:start]))
    else:
        assert list(example.input_ids[:start]) == prompt


def test_a_template_that_rewrites_earlier_answers_is_followed():
    tok = tokenizer("forgetful")
    turns = [dict(turn) for turn in TURNS]
    turns[1]["content"] = "Ida is nine."
    turns[3]["content"] = "<think>\nhm</think>Tom is ten."
    example = mask.conversation(tok, turns, "x:1")
    assert [t.strip() for t in trained_texts(tok, example)] == [
        "Ida is nine.<|im_end|>",
        "hm</think>Tom is ten.<|im_end|>",
    ]


def test_an_answer_that_the_template_hides_is_refused():
    tok = tokenizer("forgetful")
    turns = [dict(turn) for turn in TURNS]
    turns[1]["content"] = "<think>\nso</think>Ida is nine."
    with pytest.raises(DataError, match="leaves an answer out"):
        mask.conversation(tok, turns, "x:1")


def test_a_prompt_with_answers_in_it_trains_on_the_completion_alone():
    tok = tokenizer("chatml")
    example = mask.answers(tok, TURNS[:3], TURNS[3:], "x:1")
    assert trained_texts(tok, example) == ["Tom is ten, I think.<|im_end|>"]


def test_the_plain_template_is_prompt_newline_completion_end():
    tok = tokenizer("plain")
    example = mask.answers(tok, TURNS[:1], TURNS[1:2], "x:1")
    assert tok.decode(example.input_ids) == "<s>How old is Ida?\nIda is nine.</s>"
    assert trained_texts(tok, example) == ["Ida is nine.</s>"]


def test_training_on_all_leaves_out_the_first_token_alone():
    example = mask.conversation(tokenizer("plain"), TURNS, "x:1", train_on_all=True)
    assert example.trained == (False,) + (True,) * (len(example.input_ids) - 1)


def test_the_end_token_is_trained_on_where_it_is_the_padding_too():
    tok = tokenizer("plain")
    tok.pad_token = tok.eos_token
    example = mask.answers(tok, TURNS[:1], TURNS[1:2], "x:1")
    assert example.input_ids[-1] == tok.eos_token_id
    assert example.trained[-1]


def test_a_document_is_all_trained_on_and_ends():
    tok = tokenizer("plain")
    example = mask.document(tok, "Ida is nine.", "x:1")
    assert example.input_ids[-1] == tok.eos_token_id
    assert all(example.trained[1:])


@pytest.mark.parametrize("turns", [TURNS[:1], [TURNS[0], {"role": "assistant", "content": " \n"}]])
def test_a_row_without_an_answer_is_refused_by_name(turns):
    with pytest.raises(DataError, match=r"x\.jsonl:12"):
        mask.conversation(tokenizer("chatml"), turns, "x.jsonl:12")


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="no end token"):
        mask.check_tokenizer(bases.tokenizer(eos=False))


@needs_shared
@pytest.mark.parametrize("path", [STORIES, GPT2_TOKENIZER], ids=["byte-fallback", "byte-level"])
@pytest.mark.parametrize(
    "text", ["There is a pub.", " leading space", "Ünïcode £ 30 – ok", "1 2 3", "\nnew line", "🙂 yes"]
)
def test_on_real_tokenizers_prompt_and_answer_meet_at_a_token(path, text):
    tok = AutoTokenizer.from_pretrained(path)
    messages = [{"role": "user", "content": "name : Café | x"}, {"role": "assistant", "content": text}]
    example = mask.conversation(tok, messages, "x:1")
    start = example.trained.index(True)
    assert list(example.input_ids[:start]) == prompt_ids(tok, messages[:1])
    answer = tok.decode(example.input_ids[start:])
    assert answer.lstrip() == (text + tok.eos_token).lstrip()


@given(length=st.integers(2, 60), maximum=st.integers(2, 20), start=st.integers(1, 59))
def test_windows_lose_no_target_and_are_never_too_long(length, maximum, start):
    ids = tuple(range(100, 100 + length))
    example = Example(ids, tuple(i >= start for i in range(length)), "x:1")
    windows = fit(example, maximum, "window")
    targets = [(w.input_ids[i - 1], w.input_ids[i]) for w in windows for i in range(len(w.input_ids)) if w.trained[i]]
    assert all(len(window.input_ids) <= maximum for window in windows)
    assert all(not window.trained[0] for window in windows)
    if length > maximum:
        assert targets == [(ids[i - 1], ids[i]) for i in range(max(1, start), length)]
        assert fit(example, maximum, "drop") == []
    else:
        assert windows == [example]
