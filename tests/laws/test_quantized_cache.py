"""Quantised bases in the cache: damage is found, two processes make one entry, and no descriptor is lost."""

import os
import subprocess

import pytest

import inlay
from inlay.base import cache as quantized_cache
from inlay.base.quantize import quantize
from inlay.errors import FormatError
from inlay.io import output, safetensors
from inlay.io.checkpoint import open_checkpoint
from tests.support import bases, forks, models


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A base whose layers nf4 takes, and a cache of its own."""
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(quantized_cache, "_in_use", {})
    built = models.model(
        "llama",
        sizes=dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4, head_dim=16),
    )
    built.save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def damage(directory):
    """Change one byte of the codes of one layer."""
    (file,) = directory.glob("*.safetensors")
    entry = next(
        entry for name, entry in safetensors.read_header(file).tensors.items() if name.endswith("up_proj.weight")
    )
    with file.open("r+b") as opened:
        opened.seek(entry.start)
        opened.write(bytes([255 - file.read_bytes()[entry.start]]))


def entries(tmp_path):
    return [path for path in (tmp_path / "cache" / "quantized").iterdir() if path.is_dir()]


def test_damaged_codes_in_the_cache_are_made_again(base, tmp_path, monkeypatch):
    before = inlay.load(base, quantize="nf4").fingerprint.weights
    (entry,) = entries(tmp_path)
    damage(entry)
    monkeypatch.setattr(quantized_cache, "_in_use", {})  # as another process
    assert inlay.load(base, quantize="nf4").fingerprint.weights == before


def test_damaged_codes_of_a_quantised_base_are_refused(base, tmp_path):
    quantize(open_checkpoint(base), tmp_path / "made")
    inlay.load(tmp_path / "made")
    damage(tmp_path / "made")
    with pytest.raises(FormatError, match="not those that were written"):
        inlay.load(tmp_path / "made")


WANTS = """
import sys, inlay
sys.stdin.readline()
print(inlay.load(sys.argv[1], quantize="nf4").fingerprint.weights)
"""


def test_two_processes_that_want_one_entry_both_get_it(base, tmp_path):
    pipe = subprocess.PIPE
    both = [forks.Process(WANTS, base, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(2)]
    for process in both:
        process.stdin.write("now\n")
        process.stdin.flush()
    found = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(found) == 1, found
    assert len(next(iter(found))) == 64, found
    assert len(entries(tmp_path)) == 1


def test_who_waits_for_a_lock_says_so_and_others_are_refused(tmp_path):
    pytest.importorskip("fcntl")
    (tmp_path / "lock").touch()
    with output.locked(tmp_path / "lock"), pytest.raises(output.OutputError, match="another process"):
        output.locked(tmp_path / "lock").__enter__()
    with output.locked(tmp_path / "lock", waiting="nobody is there"):
        pass


def test_loading_again_and_again_opens_no_more_files(base):
    inlay.load(base, quantize="nf4")
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        quantized_cache.cached(open_checkpoint(base), "nf4", lambda done, total: None)
    assert not before or len(os.listdir("/proc/self/fd")) <= before
