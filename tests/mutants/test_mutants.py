"""For each deliberate bug some test of the suite must fail: a suite that lets one live has a hole.

A mutant's tests run in a process of their own, in which the plugin has broken one function. They must fail by what they assert:
an exception that is nowhere expected would come of a mutant that is itself broken too, so it is no proof.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants.mutants import MUTANTS, PLANTED
from tests.mutants.plugin import VARIABLE, find, mutated

ROOT = Path(__file__).parents[2]
ASSERTED = re.compile(r"^FAILED .* - (?:assert |AssertionError|Failed: DID NOT RAISE)", re.MULTILINE)


def check_caught(name):
    """Run a mutant's tests, without the hook that checks annotations, and fail where they pass or fail by accident."""
    _, _, tests = (MUTANTS | PLANTED)[name]
    how = "-q -x -rf -p no:cacheprovider -p no:xdist -o addopts=--strict-markers -p tests.mutants.plugin"
    command = [sys.executable, "-m", "pytest", *how.split(), *shlex.split(tests)]
    environment = os.environ | {VARIABLE: name, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "300"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    said = f"\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
    assert done.returncode != 0, f"no test saw that {name}{said}"
    assert ASSERTED.search(done.stdout), f"no test failed by what it asserts: {name}{said}"


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_suite_catches(name):
    check_caught(name)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reported"), [*zip(PLANTED, ("no test saw", "no test failed by"), strict=True)])
def test_a_mutant_that_is_not_caught_is_reported(name, reported):
    with pytest.raises(AssertionError, match=f"^{reported}"):
        check_caught(name)


@pytest.mark.parametrize("name", MUTANTS | PLANTED)
def test_every_mutant_still_applies(name):
    function, mutation, tests = (MUTANTS | PLANTED)[name]
    mutated(find(function)[2], mutation)
    assert (ROOT / tests.split()[0]).exists()


@pytest.mark.parametrize("function", ["no_such_function", "LowRank.no_such_method", "core/routed:check", "check"])
def test_a_function_that_is_gone_is_named(function):
    with pytest.raises((LookupError, AttributeError), match=function.rpartition(".")[2]):
        find(function)
