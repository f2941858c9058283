"""A mapped base that becomes shorter, or another, while it is computed with: no SIGBUS, and nothing is taken for right."""

import json
import os
import sys

import pytest

import inlay
from inlay.errors import FormatError
from tests.support import forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the answer to SIGBUS knows Linux alone")


def in_process(code, *arguments):
    """(status, stdout, stderr) of a process of its own, which a signal may end."""
    return forks.run(code, *arguments)


READS = """
import os, sys, torch
from pathlib import Path
from inlay.io import shortened
file = Path(sys.argv[1])
file.write_bytes(b"\\1" * 1_000_000)
if sys.argv[2] == "guarded":
    shortened.guard([file])
data = torch.from_file(str(file), shared=False, size=1_000_000, dtype=torch.uint8)
os.truncate(file, 500_000)
print(int(data.sum(dtype=torch.int64)), int(data[-1]))
"""


def test_the_pages_that_a_file_has_lost_are_zeros(tmp_path):
    status, out, err = in_process(READS, tmp_path / "file", "guarded")
    assert status == 0, err
    total, last = map(int, out.split())
    assert last == 0
    assert 490_000 < total <= 500_000


def test_a_fault_in_other_files_ends_the_process_as_before(tmp_path):
    assert in_process(READS, tmp_path / "file", "not guarded")[0] < 0


TRAINS = """
import os, sys, inlay
base = inlay.load(sys.argv[1])
files = base.checkpoint.files
def on_step(progress):
    if progress.step == 3:
        os.truncate(files[-1], files[-1].stat().st_size // 3)
try:
    job = inlay.train(base, sys.argv[2], method=inlay.Lora(r=2), output=sys.argv[3], max_steps=6, on_step=on_step)
except inlay.errors.FormatError as error:
    print("refused", error)
"""


def test_logits_of_a_base_that_became_another_are_not_answers(place):
    base = inlay.load(place / "base")
    before = base.generate(["say 3"], max_new_tokens=2)
    assert base.generate(["say 3"], max_new_tokens=2) == before
    file = base.checkpoint.files[0]
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(FormatError, match="changed while they were in use"):
        base.generate(["say 3"], max_new_tokens=2)


def test_files_that_were_only_touched_are_no_reason_to_stop(place):
    base = inlay.load(place / "base")
    assert base.fingerprint
    for file in base.checkpoint.files:
        os.utime(file)
    assert base.generate(["say 3"], max_new_tokens=2)


def test_a_base_that_is_copied_over_in_training_is_noticed_and_what_was_learned_is_not_called_that_base(place):
    code = TRAINS.replace(
        "os.truncate(files[-1], files[-1].stat().st_size // 3)", "os.utime(files[-1]); damage(files[-1])"
    )
    code = "def damage(f):\n    b = f.read_bytes(); f.write_bytes(b[:-8] + bytes(8))\n" + code
    status, out, err = in_process(code, place / "base", place / "rows.jsonl", place / "new")
    assert status == 0, err
    assert "changed while they were in use" in out
    record = json.loads((place / "good" / "inlay.json").read_text())
    kept = json.loads((place / "new" / "inlay.json").read_text())
    assert kept["base"]["weights"] == record["base"]["weights"]
    assert kept["training"]["steps"] == 3


def test_a_base_that_is_cut_short_in_training_does_not_end_the_process(place):
    status, out, err = in_process(TRAINS, place / "base", place / "rows.jsonl", place / "new")
    assert status == 0, err
    assert "refused the files of the base changed while they were in use" in out
    assert json.loads((place / "new" / "inlay.json").read_text())["training"]["steps"] == 3
