"""What the allocator is told: freed blocks stay with the process, on glibc, and nothing happens elsewhere."""

import platform
import subprocess
import sys
import types

import pytest
import torch

from inlay import process
from inlay.base.load import load
from inlay.tasks import _memory as memory
from tests.support import bases, forks

FAULTS = """
import resource, torch
from inlay import process
def faults():
    for _ in range(6):
        torch.empty(9 << 20).fill_(1)  # 36 MiB: blocks of up to 32 glibc keeps by itself after a while
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
faults()
first = -faults() + faults()
assert process.keep_freed_blocks()
faults()
print(first, -faults() + faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told")
def test_a_block_that_was_freed_is_not_asked_for_again():
    status, out, err = forks.run(FAULTS)
    assert status == 0, err
    before, after = map(int, out.split())
    assert after < before / 10


def test_nothing_happens_without_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: pytest.fail("another library was called"))
    assert not process.keep_freed_blocks.__wrapped__()


def test_a_model_takes_as_many_tokens_at_a_time_as_its_width_allows(tmp_path, monkeypatch):
    base = load(bases.directory(tmp_path / "base"), dtype="float32")
    one = memory.activation_bytes(base, 1)
    assert memory.micro_batch_tokens(base) == memory.MOST_TOKENS
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", 997 * one)
    assert memory.micro_batch_tokens(base) == 997
    monkeypatch.setattr(memory, "ACTIVATION_BYTES", one)
    assert memory.micro_batch_tokens(base) == memory.FEWEST_TOKENS


def test_a_gpu_takes_as_many_tokens_at_a_time_as_fill_an_eighth_of_its_memory(tmp_path, monkeypatch):
    base = load(bases.directory(tmp_path / "base"), dtype="float32")
    one = memory.activation_bytes(base, 1)
    card = types.SimpleNamespace(total_memory=8 * 5000 * one)
    monkeypatch.setattr(memory.targets, "device_of", lambda model: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert memory.micro_batch_tokens(base) == 5000
    card.total_memory //= 5
    assert memory.micro_batch_tokens(base) == memory.MOST_TOKENS


def test_the_peak_is_that_of_this_process_and_not_of_the_one_that_started_it():
    """A process of a few megabytes, started by one that has held far more."""
    held = bytearray(b"1") * (600 << 20)  # touched, so that it is resident
    script = "import psutil; from inlay.process import peak_rss_bytes as peak; print(peak(), psutil.Process().memory_info().rss)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    peak, now = map(int, done.stdout.split())
    assert now * 0.9 <= peak <= now + (300 << 20)
    assert len(held) < process.peak_rss_bytes()
