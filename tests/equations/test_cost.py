"""What a step of many processes takes, against the turns of a ring played out one by one."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inlay.distributed.cost import Link, Step, ring_seconds
from inlay.errors import ConfigError

LINK = Link(bytes_per_second=3e8, latency_seconds=2e-4)


def played(num_bytes, processes, link):
    """Seconds of an all-reduce, turn by turn: each process sends one of n pieces to the next, until all have all sums."""
    pieces = [[{rank} for _ in range(processes)] for rank in range(processes)]  # whose numbers are in each piece
    seconds = 0.0
    for turn in range(2 * (processes - 1)):
        sent = [(rank, (rank - turn) % processes) for rank in range(processes)]
        moved = [(pieces[rank][piece], (rank + 1) % processes, piece) for rank, piece in sent]
        for held, to, piece in moved:
            pieces[to][piece] = pieces[to][piece] | held
        seconds += num_bytes / processes / link.bytes_per_second + link.latency_seconds
    assert all(held == set(range(processes)) for piece in pieces for held in piece)
    return seconds


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_a_ring_takes_as_long_as_its_turns(processes):
    assert ring_seconds(8_888_888, processes, LINK) == pytest.approx(played(8_888_888, processes, LINK))


def test_one_process_takes_what_was_measured():
    step = Step(seconds=0.7, fixed_seconds=0.2, rows=9, num_weights=1000, sharded_bytes=77)
    cost = step.shared(1, LINK)
    assert (cost.step_seconds, cost.reduce_seconds, cost.gather_seconds, cost.efficiency) == (0.7, 0, 0, 1)


@given(st.integers(1, 64), st.floats(0, 0.5), st.integers(0, 10**9))
def test_no_process_does_more_than_its_part(processes, fixed, num_bytes):
    step = Step(seconds=1.0, rows=64, num_weights=12345, fixed_seconds=fixed, sharded_bytes=num_bytes)
    cost = step.shared(processes, LINK)
    assert 0 < cost.efficiency <= 1 + 1e-9
    least = fixed + (1 - fixed) * math.ceil(64 / processes) / 64
    assert cost.step_seconds == pytest.approx(least + cost.reduce_seconds + cost.gather_seconds)


def test_rows_that_can_not_be_shared_evenly_are_waited_for():
    free = Link(bytes_per_second=1e30, latency_seconds=0)
    step = Step(seconds=1.2, rows=6, num_weights=5)
    of = {n: step.shared(n, free).step_seconds for n in (2, 3, 4, 5, 6)}
    assert of == pytest.approx({2: 0.6, 3: 0.4, 4: 0.4, 5: 0.4, 6: 0.2})


def test_a_sharded_base_travels_twice_in_its_pieces():
    cost = Step(seconds=1.0, rows=6, num_weights=5, sharded_bytes=10**8, sharded_weights=40).shared(3, LINK)
    assert cost.gather_seconds == pytest.approx(4 / 3 * 10**8 / 3e8 + 40 * 4 * 2e-4)


@pytest.mark.parametrize("processes", [4, 0])
def test_what_can_not_be_is_refused(processes):
    with pytest.raises(ConfigError, match="at least one row for each"):
        Step(seconds=1.0, rows=3, num_weights=5).shared(processes, LINK)
    with pytest.raises(ConfigError, match="longer than the step"):
        Step(seconds=1.0, rows=3, num_weights=5, fixed_seconds=2.0)
    with pytest.raises(ConfigError, match="a bandwidth above 0"):
        Link(bytes_per_second=0, latency_seconds=0)


PAGE = Path(__file__).parents[2] / "docs" / "concepts" / "scale.md"
ROW = re.compile(r"\| (\d+) \| (\d+) Gbit/s \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|")


def test_the_page_says_what_the_formulas_say():
    found = ROW.findall(PAGE.read_text("utf-8"))
    assert len(found) == 5
    for processes, gigabits, *said in found:
        link = Link(bytes_per_second=float(gigabits) * 1e9 / 8, latency_seconds=1e-4)
        cost = Step(seconds=8 * 7.28, rows=16, num_weights=45_000_000 // 4).shared(int(processes), link)
        values = (f"{cost.reduce_seconds:.3f}", f"{cost.step_seconds:.1f}", f"{cost.efficiency:.3f}")
        assert values == tuple(said), processes
    link = Link(bytes_per_second=1.25e9, latency_seconds=0)
    assert f"{ring_seconds(4_500_000_000, 4, link):.1f} s for every micro-batch" in PAGE.read_text("utf-8")
    link = Link(bytes_per_second=1e11, latency_seconds=0)
    assert f"{1000 * ring_seconds(4_500_000_000, 4, link):.0f} ms" in PAGE.read_text("utf-8")
    link = Link(bytes_per_second=1.25e9, latency_seconds=1e-4)
    cost = Step(seconds=0.58, rows=16, num_weights=45_000_000 // 4).shared(4, link)
    assert f"0.145 s of work and, at 10 Gbit/s,\n{cost.reduce_seconds:.3f} s of ring: {cost.efficiency:.2f}" in PAGE.read_text("utf-8")  # fmt: skip
