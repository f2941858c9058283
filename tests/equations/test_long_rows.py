"""Rows of any length and tokenizers of any size: what preparing them costs."""

import sys
import time
from pathlib import Path

import pytest

from inlay.text import mask, template
from inlay.text.answers import drafts
from tests.support import bases, forks, templates

ROOT = Path(__file__).parents[2]
NUM_ADDED = 6_384
"""As many as Gemma's tokenizer adds to its vocabulary."""


def tokenizer(num_added=0, name="chatml"):
    tok = bases.tokenizer(template=templates.ALL[name])
    tok.add_special_tokens({"additional_special_tokens": templates.SPECIAL})
    tok.add_tokens([f"<unused{i}>" for i in range(num_added)])
    return tok


def turns(number):
    said = [[f"How old is Ida in year {i}?", f"Ida is {i}, I think."] for i in range(number // 2)]
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in said for role, text in zip(roles, pair, strict=True)]


def cost(work, repeats=3):
    """The processor's seconds for some work, the best of several."""
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("name", ["chatml", "headers", "brackets", "plain"])
def test_a_row_of_400_turns_is_rendered_a_handful_of_times(name, monkeypatch):
    tok, messages, rendered = tokenizer(name=name), turns(400), []
    mask.conversation(tok, turns(4), "x:0")  # what is looked up once for a template
    begun, alone = template.begun, template.Prepared.text
    monkeypatch.setattr(template, "begun", lambda what, texts: rendered.extend(texts) or begun(what, texts))
    monkeypatch.setattr(template.Prepared, "text", lambda *args: rendered.append(args) or alone(*args))
    (row,) = mask.conversation(tok, messages, "x:1")
    assert 0 < len(rendered) <= 10
    ends = [i for i in range(len(row.trained)) if row.trained[i] and not row.trained[i + 1 : i + 2].count(1)]
    assert len(ends) == 200
    assert cost(lambda: mask.conversation(tok, messages, "x:1")) < 0.2


def test_a_token_takes_at_most_10_bytes():
    (row,) = mask.conversation(tokenizer(), turns(400), "x:1")
    taken = sys.getsizeof(row) + sys.getsizeof(row.input_ids) + sys.getsizeof(row.trained)
    assert len(row.input_ids) > 5_000
    assert taken / len(row.input_ids) <= 10


def prepare_100(tok):
    made = [draft for _ in range(100) for draft in drafts(tok, [], turns(2), "x:1")]
    assert len(mask.encoded(tok, made)) == 100


def test_a_row_costs_at_most_a_millisecond_with_any_tokenizer(monkeypatch):
    """In a process of its own, where nothing checks the shapes of every call."""
    script = (
        "from tests.equations.test_long_rows import *\n"
        "few, many = tokenizer(), tokenizer(NUM_ADDED)\n"
        "prepare_100(few), prepare_100(many)  # what is looked up once for a tokenizer\n"
        "print(cost(lambda: prepare_100(few)) / 100, cost(lambda: prepare_100(many)) / 100)\n"
    )
    monkeypatch.chdir(ROOT)
    status, out, err = forks.run(script, timeout=300)
    assert status == 0, err
    few, many = map(float, out.split())
    assert many < 1e-3
    assert many < 2 * few
