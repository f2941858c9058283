"""`scripts/demo --real`: a real model learns rows that it did not know, from a package of the index."""

import re
import subprocess

import pytest

from tests.support.scripts import SCRIPTS


@pytest.mark.slow
def test_the_real_model_learns_the_rows_of_the_demo(tmp_path):
    done = subprocess.run(
        ["bash", SCRIPTS / "demo", "--real", tmp_path / "real"], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    if "the package index does not have" in done.stderr:
        pytest.skip("the package index does not have the model")
    base, learned = re.search(r"--- base: .*?\n(.*)--- smollm2-tell: .*?\n(.*)", done.stdout, re.DOTALL).groups()
    assert "Nora has five golden keys." in learned
    assert "Nora has five golden keys." not in base
    assert (tmp_path / "real" / "smollm2-tell" / "curve.svg").exists()
