"""Holding rows out: the part that was asked for, whatever the rows look like, and the same rows whatever their order."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given

from inlay.data.rows import Row
from inlay.data.split import MIN_ROWS_TO_HOLD_OUT, hold_out


def rows_of(prompts):
    return [Row("prompt+completion", f"x:{i}", prompt=prompt, completion=f"c{i}") for i, prompt in enumerate(prompts)]


def sources(rows):
    return sorted(row.source for row in rows)


@pytest.mark.parametrize(
    "prompts",
    [
        ["Summarise."] * 190 + [f"Translate {i}" for i in range(10)],
        ["Write a story."] * 200,
        [f"p{i % 3}" for i in range(200)],
        [f"p{i % 40}" for i in range(200)],
        [f"p{i}" for i in range(200)],
        [f"p{i // 15}" for i in range(200)],
    ],
)
@pytest.mark.parametrize("fraction", [0.05, 0.2])
def test_as_many_rows_are_held_out_as_were_asked_for(prompts, fraction):
    train, held = hold_out(rows_of(prompts), fraction)
    assert len(train) + len(held) == 200
    assert 0.3 * fraction * 200 <= len(held) <= 2 * fraction * 200


@given(
    st.lists(st.integers(0, 5), min_size=MIN_ROWS_TO_HOLD_OUT, max_size=60),
    st.sampled_from([0.01, 0.05, 0.3, 0.5, 0.9]),
    st.randoms(use_true_random=False),
)
def test_never_none_never_more_than_twice_and_whatever_the_order(numbers, fraction, shuffler):
    rows = rows_of([f"p{number}" for number in numbers])
    train, held = hold_out(rows, fraction)
    assert sources([*train, *held]) == sources(rows)
    assert 1 <= len(held) <= min(max(2, 2 * fraction * len(rows)), len(rows) - 1)
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert sources(hold_out(shuffled, fraction)[1]) == sources(held)


def test_answers_to_one_prompt_stay_together_where_they_can():
    rows = rows_of([f"p{i % 60}" for i in range(300)])
    train, held = hold_out(rows, 0.1)
    assert held
    assert not {row.prompt for row in train} & {row.prompt for row in held}


def test_rows_that_all_say_the_same_are_not_told_apart():
    rows = [Row("text", f"x:{i}", text="a") for i in range(100)]
    assert hold_out(rows, 0.1) == (rows, [])


def test_what_was_held_out_before_still_is():
    """The hash alone decides where it keeps to the part: the rows of a data set that was split earlier stay on their side."""
    rows = rows_of([f"p{i}" for i in range(100)])
    random.Random(1).shuffle(rows)
    assert sources(hold_out(rows, 0.05)[1]) == ["x:10", "x:12", "x:28", "x:37", "x:54", "x:67"]


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_rows_of_one_prompt_are_divided_whatever_the_part(fraction):
    train, held = hold_out(rows_of(["Write a story."] * 20), fraction)
    assert train
    assert held
