"""Threads that wait sleep, unless the user said how they should."""

import os
import subprocess
import sys

import pytest
import torch  # noqa: F401  # so that it is too late in this process

from inlay import cli
from inlay.cli import WAITING, WAITING_OF_THE_USER

SCRIPT = """
import os, sys
from inlay.cli import main
seen = {}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and not seen:
            seen.update({key: os.environ.get(key) for key in sys.argv[1:]})
sys.meta_path.insert(0, Finder())
try:
    main(["plan", "--help"])
except SystemExit:
    pass
print(seen, file=sys.stderr)
"""


def test_threads_sleep_where_nothing_was_said():
    plain = {key: value for key, value in os.environ.items() if key not in WAITING_OF_THE_USER}
    command = [sys.executable, "-c", SCRIPT, *WAITING_OF_THE_USER]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == str(dict.fromkeys(WAITING_OF_THE_USER) | WAITING)


@pytest.mark.parametrize("name", WAITING_OF_THE_USER)
def test_what_the_user_set_stays(monkeypatch, name):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "environ", {name: "1"})
    cli._let_threads_sleep()
    assert os.environ == {name: "1"}


def test_nothing_is_set_too_late(monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    cli._let_threads_sleep()
    assert os.environ == {}
