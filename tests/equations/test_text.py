"""Which tokens a row has, and which of them are trained on: exactly the answers, with the token that ends them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from inlay.errors import ConfigError, DataError
from inlay.tasks._encode import check_tokenizer
from inlay.tasks._lengths import fit
from inlay.text import mask
from inlay.text.answers import FORGOTTEN, SPLIT, THOUGHT, drafts
from inlay.text.mask import Example
from inlay.text.template import Conversation, prompt_ids, render
from tests.support import bases, templates
from tests.support.paths import DATA

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


def conversation(tok, turns, source, **options):
    """A conversation that is one row."""
    (example,) = mask.conversation(tok, turns, source, **options)
    return example


def answers(tok, prompt, completion, source):
    (example,) = mask.encoded(tok, drafts(tok, prompt, completion, source))
    return example


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
    examples = mask.conversation(tok, TURNS, "x:1")
    texts = [text.strip() for example in examples for text in trained_texts(tok, example)]
    thought = "</think>\n\n" if name == "forgetful" else ""  # its generation prompt opens a thought
    assert texts == [f"{thought}Ida is nine.{end}", f"{thought}Tom is ten, I think.{end}"]
    assert len(examples) == (2 if name in templates.A_ROW_FOR_EACH_ANSWER else 1)
    assert {tok.decode([token]) for example in examples for token in example.ends} == {end}


@pytest.mark.parametrize("name", templates.ALL)
def test_generation_starts_from_the_tokens_that_stood_before_the_answer(name):
    tok = tokenizer(name)
    example = conversation(tok, TURNS[:2], "x:1")
    start = example.trained.index(True)
    assert list(example.input_ids[:start]) == prompt_ids(tok, TURNS[:1])


def test_a_template_that_rewrites_earlier_answers_is_followed():
    tok = tokenizer("forgetful")
    turns = [dict(turn) for turn in TURNS]
    turns[1]["content"] = "Ida is nine."
    turns[3]["content"] = "<think>\nhm</think>Tom is ten."
    first, second = mask.conversation(tok, turns, "x:1")
    assert trained_texts(tok, first) == ["\n</think>\n\nIda is nine.<|im_end|>"]
    assert trained_texts(tok, second) == ["hm</think>Tom is ten.<|im_end|>"]
    assert "assistant\nIda is nine.<|im_end|>" in tok.decode(second.input_ids)  # as generation is given it


def test_a_thought_that_later_turns_hide_is_trained_on_in_a_row_of_its_own():
    tok = tokenizer("forgetful")
    turns = [dict(turn) for turn in TURNS]
    turns[1]["content"] = "<think>\nso</think>Ida is nine."
    turns[3]["content"] = "<think>\nhm</think>Tom is ten."
    rows = mask.conversation(tok, turns, "x:1")
    assert [trained_texts(tok, row) for row in rows] == [
        ["so</think>Ida is nine.<|im_end|>"],
        ["hm</think>Tom is ten.<|im_end|>"],
    ]
    assert list(rows[1].input_ids[: rows[1].trained.index(True)]) == prompt_ids(tok, turns[:3])
    assert SPLIT in rows[0].notes


def test_an_answer_that_the_template_leaves_out_is_refused():
    tok = tokenizer("chatml")
    tok.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content[:5] }}\n{% endfor %}"
    with pytest.raises(DataError, match="leaves what the user says out"):
        mask.conversation(tok, TURNS, "x:1")
    tok.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"leaves an answer out[^$]*x:1: message 1[^$]*a row for each answer"):
        mask.conversation(tok, TURNS, "x:1")


def test_a_prompt_with_answers_in_it_trains_on_the_completion_alone():
    tok = tokenizer("chatml")
    example = answers(tok, TURNS[:3], TURNS[3:], "x:1")
    assert trained_texts(tok, example) == ["Tom is ten, I think.<|im_end|>"]


def test_the_plain_template_is_prompt_newline_completion_end():
    tok = tokenizer("plain")
    example = answers(tok, TURNS[:1], TURNS[1:2], "x:1")
    assert tok.decode(example.input_ids) == "<s>How old is Ida?\nIda is nine.</s>"
    assert trained_texts(tok, example) == ["Ida is nine.</s>"]


def test_training_on_all_leaves_out_the_first_token_alone():
    example = conversation(tokenizer("plain"), TURNS, "x:1", train_on_all=True)
    assert not example.trained[0]
    assert all(example.trained[1:])
    assert len(example.trained) == len(example.input_ids)


def test_the_end_token_is_trained_on_where_it_is_the_padding_too():
    tok = tokenizer("plain")
    tok.pad_token = tok.eos_token
    example = answers(tok, TURNS[:1], TURNS[1:2], "x:1")
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
        conversation(tokenizer("chatml"), turns, "x.jsonl:12")


def test_a_tokenizer_without_an_end_is_refused():
    with pytest.raises(ConfigError, match="no end token"):
        check_tokenizer(bases.tokenizer(eos=False))


@pytest.mark.parametrize("kind", ["byte_fallback", "byte_level"])
@pytest.mark.parametrize(
    "text", ["There is a pub.", " leading space", "Ünïcode £ 30 – ok", "1 2 3", "\nnew line", "🙂 yes"]
)
def test_on_real_tokenizers_prompt_and_answer_meet_at_a_token(kind, text):
    tok = AutoTokenizer.from_pretrained(DATA / kind)
    messages = [{"role": "user", "content": "name : Café | x"}, {"role": "assistant", "content": text}]
    example = conversation(tok, messages, "x:1")
    start = example.trained.index(True)
    assert list(example.input_ids[:start]) == prompt_ids(tok, messages[:1])
    answer = tok.decode(example.input_ids[start:])
    assert answer.lstrip() == (text + tok.eos_token).lstrip()


def real_tokenizer(kind, template):
    tok = AutoTokenizer.from_pretrained(DATA / kind)
    tok.add_special_tokens({"additional_special_tokens": templates.SPECIAL})
    tok.chat_template = template
    return tok


@pytest.mark.parametrize("kind", ["byte_fallback", "byte_level"])
@pytest.mark.parametrize("name", templates.ALL)
@pytest.mark.parametrize("answer", ["Ida is nine.", "\n\nNine", "  nine", "🙂"])
def test_on_real_tokenizers_every_template_starts_an_answer_where_generation_does(kind, name, answer):
    tok = real_tokenizer(kind, templates.ALL[name])
    messages = [{"role": "user", "content": "How old?  "}, {"role": "assistant", "content": answer}]
    example = conversation(tok, messages, "x:1")
    start = example.trained.index(True)
    assert list(example.input_ids[:start]) == prompt_ids(tok, messages[:1])
    assert all(example.trained[start : start + 2])


@pytest.mark.parametrize("kind", ["byte_fallback", "byte_level"])
@pytest.mark.parametrize("name", ["chatml", "brackets", "plain"])
def test_on_real_tokenizers_every_turn_starts_where_generation_does(kind, name):
    tok = real_tokenizer(kind, templates.ALL[name])
    example = conversation(tok, TURNS, "x:1")
    starts = [i for i in range(1, len(example.trained)) if example.trained[i] and not example.trained[i - 1]]
    assert [list(example.input_ids[:start]) for start in starts] == [prompt_ids(tok, TURNS[:i]) for i in (1, 3)]


def test_an_answer_that_the_user_said_before_is_told_from_it():
    turns = [{"role": "user", "content": "Say: Ida is nine."}, *TURNS[1:]]
    for template, answer in (
        (templates.FORGETFUL, "⏎</think>⏎⏎Ida is nine."),
        (templates.EMPTY_THOUGHT, "Ida is nine."),
    ):
        tok = tokenizer("chatml")
        tok.chat_template = template
        text = mask.show(tok, mask.conversation(tok, turns, "x:1")[0])
        assert "Say: Ida is nine.<|im_end|>" in text
        assert f"[[{answer}<|im_end|>]]" in text


def test_an_answer_of_one_letter_is_found_behind_words_that_have_it():
    tok = tokenizer("forgetful")
    turns = [TURNS[0], {"role": "assistant", "content": "a"}, *TURNS[2:]]
    assert trained_texts(tok, mask.conversation(tok, turns, "x:1")[0]) == ["\n</think>\n\na<|im_end|>"]


def test_what_the_template_puts_before_an_answer_is_trained_on_where_generation_has_to_write_it():
    tok = tokenizer("chatml")
    tok.chat_template = templates.EMPTY_THOUGHT
    texts = trained_texts(tok, conversation(tok, TURNS, "x:1"))
    assert texts == ["Ida is nine.<|im_end|>", "<think>\n\n</think>\n\nTom is ten, I think.<|im_end|>"]


def test_rewritten_answers_in_the_prompt_do_no_harm():
    tok = tokenizer("forgetful")
    history = [TURNS[0], {"role": "assistant", "content": "<think>\nso</think>Ida is nine."}, TURNS[2]]
    row = answers(tok, history, TURNS[3:], "x:1")
    assert trained_texts(tok, row) == ["\n</think>\n\nTom is ten, I think.<|im_end|>"]
    assert set(row.notes) == {FORGOTTEN, THOUGHT}
    assert list(row.input_ids[: row.trained.index(True)]) == prompt_ids(tok, history)


def test_a_template_that_refuses_a_role_refuses_the_row_by_name():
    tok = tokenizer("chatml")
    tok.chat_template = templates.NO_SYSTEM
    with pytest.raises(DataError, match=r"x\.jsonl:12: no system role"):
        conversation(tok, [{"role": "system", "content": "Be brief."}, *TURNS], "x.jsonl:12")
    with pytest.raises(DataError, match="no system role"):
        prompt_ids(tok, [{"role": "system", "content": "Be brief."}, TURNS[0]])
    assert len(trained_texts(tok, conversation(tok, TURNS, "x:1"))) == 2


def test_a_system_message_is_read_and_not_learned():
    tok = tokenizer("chatml")
    example = conversation(tok, [{"role": "system", "content": "Be brief."}, *TURNS[:2]], "x:1")
    assert trained_texts(tok, example) == ["Ida is nine.<|im_end|>"]
    assert "Be brief." in tok.decode(example.input_ids)


def test_a_conversation_may_start_with_an_answer():
    tok = tokenizer("chatml")
    texts = trained_texts(tok, conversation(tok, TURNS[1:], "x:1"))
    assert texts == ["Ida is nine.<|im_end|>", "Tom is ten, I think.<|im_end|>"]


def test_training_on_all_needs_no_answer():
    tok = tokenizer("chatml")
    for turns in (TURNS[:1], [TURNS[0], {"role": "assistant", "content": ""}]):
        example = conversation(tok, turns, "x:1", train_on_all=True)
        assert all(example.trained[1:])


@pytest.mark.parametrize("name", templates.ALL)
def test_many_rows_at_a_time_are_the_rows_one_by_one(name):
    tok = tokenizer(name)
    rows = [TURNS[:2], TURNS, [*TURNS[:2], TURNS[2]], [{"role": "user", "content": "Who?"}, TURNS[3]]]
    made = [draft for i, row in enumerate(rows) for draft in drafts(tok, [], row, f"x:{i}")]
    assert mask.encoded(tok, made) == [
        row for i, turns in enumerate(rows) for row in mask.conversation(tok, turns, f"x:{i}")
    ]


@pytest.mark.parametrize("name", templates.ALL)
def test_a_tokenizer_without_offsets_gives_the_same_tokens(name):
    class Slow:
        """A tokenizer that does not tell where its tokens stand."""

        is_fast = False

        def __init__(self, tok):
            self.tok = tok

        def __call__(self, *arguments, **options):
            return {"input_ids": self.tok(*arguments, **options)["input_ids"]}

        def __getattr__(self, key):
            return getattr(self.tok, key)

    tok = tokenizer(name)
    assert mask.conversation(Slow(tok), TURNS, "x:1") == mask.conversation(tok, TURNS, "x:1")


def test_what_is_shown_has_the_trained_tokens_between_marks():
    tok = tokenizer("chatml")
    shown = mask.show(tok, conversation(tok, TURNS[:2], "x:1"))
    assert shown == "<|im_start|>user⏎How old is Ida?<|im_end|>⏎<|im_start|>assistant⏎[[Ida is nine.<|im_end|>]]⏎"


def test_a_window_of_one_token_has_no_target():
    assert fit(Example((1, 2, 3), (False, True, True), "x:1"), 1, "window") == []


@given(length=st.integers(2, 60), maximum=st.integers(2, 20), start=st.integers(1, 59))
def test_windows_lose_no_target_and_are_never_too_long(length, maximum, start):
    ids = tuple(range(100, 100 + length))
    example = Example(ids, tuple(i >= start for i in range(length)), "x:1")
    windows = fit(example, maximum, "window")
    assert all(type(part) is int for part in (example.input_ids[0], example.trained[0]))
    targets = [(w.input_ids[i - 1], w.input_ids[i]) for w in windows for i in range(len(w.input_ids)) if w.trained[i]]
    assert all(len(window.input_ids) <= maximum for window in windows)
    assert all(not window.trained[0] for window in windows)
    if length > maximum:
        assert targets == [(ids[i - 1], ids[i]) for i in range(max(1, start), length)]
        assert fit(example, maximum, "drop") == []
    else:
        assert windows == [example]


def test_a_character_that_marks_pieces_is_kept_where_a_row_has_it_itself():
    tok = tokenizer("chatml")
    tok.chat_template = "{% for m in messages %}{{ m.name }}: {{ m.content }}\n{% endfor %}"
    turns = [{**turn, "name": f"{turn['role']} \U000f0000\U00100001"} for turn in TURNS]
    text = "".join(f"{turn['name']}: {turn['content']}\n" for turn in turns)
    assert render(tok, turns) == text
    assert Conversation(tok, turns, "x:1").rendered(len(turns)).text == text
