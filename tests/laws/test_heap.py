"""The heap that blocks reach: never below what is in use, no block over another, and holes where glibc leaves them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.planning import heap
from inlay.planning.heap import ALIGNMENT, TAKEN, reach

SIZES = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 30)), min_size=1, max_size=60)


def _events(sizes):
    """Blocks that come in turn, each of which goes after some others came."""
    events, due = [], {}
    for number, (size, stays) in enumerate(sizes):
        events += [(gone, None) for gone in due.pop(number, [])]
        events.append((number, size))
        due.setdefault(number + 1 + stays, []).append(number)
    return events


def _most_in_use(events):
    sizes, now, most = dict(e for e in events if e[1] is not None), 0, 0
    for number, size in events:
        now += size if size is not None else -sizes[number]
        most = max(most, now)
    return most


@given(SIZES)
def test_it_is_never_less_than_what_is_in_use(sizes):
    assert reach(_events(sizes)) >= _most_in_use(_events(sizes))


@given(SIZES)
def test_no_block_lies_over_another_and_each_is_aligned(sizes):
    made, there = heap._Heap(), {}
    for number, size in _events(sizes):
        made.pass_by()
        if size is None:
            made.free(number)
            there.pop(number)
            continue
        made.take(number, size)
        start, held = made._blocks[number]
        assert (start + heap.UNIT) % ALIGNMENT == 0
        assert held >= size + 8
        assert all(start + held <= other or other + more <= start for other, more in there.values())
        assert start + held <= made.most
        there[number] = start, held


def test_blocks_that_only_come_reach_little_further_than_they_are():
    sizes = [(1 << 20, 99)] * 8
    assert reach(_events(sizes)) == pytest.approx(8 << 20, rel=1e-3)


def test_a_hole_between_taken_ends_is_too_small_for_a_block_of_its_size():
    """Of two blocks of one size, the first of which goes, the place of the first is not the third's."""
    size = 1 << 20
    events = [(0, size), (1, size), (0, None), (2, size)]
    assert reach(events) == pytest.approx(3 * size, rel=1e-3)


def test_it_is_large_enough_again_once_the_ends_are_free():
    made, size = heap._Heap(), 1 << 20
    made.take(0, size)
    made.take(1, size)
    made.free(0)
    for _ in range(TAKEN):
        made.pass_by()
    made.take(2, size)
    assert made.most == pytest.approx(2 * size, rel=1e-3)
