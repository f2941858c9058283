"""Importing the package, and asking the command for help, needs neither torch nor transformers."""

import statistics
import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "transformers", "numpy", "rich", "jaxtyping")
MAX_HELP_SECONDS = 0.2


def heavy_after(code):
    """Which heavy modules are loaded after `code` in a fresh interpreter, where every warning is an error."""
    script = f"{code}\nimport sys\nprint(*[m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    return done.stderr.split()


def test_importing_the_package_is_light():
    assert heavy_after("import inlay") == []


def test_help_is_light():
    assert heavy_after("import inlay.cli; assert inlay.cli.main(['--help']) == 0") == []


def test_a_heavy_import_would_be_seen():
    assert "numpy" in heavy_after("import numpy")


def test_a_warning_would_be_seen():
    with pytest.raises(subprocess.CalledProcessError):
        heavy_after("import warnings; warnings.warn('planted')")


def test_help_takes_less_than_a_fifth_of_a_second():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "inlay", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < MAX_HELP_SECONDS
