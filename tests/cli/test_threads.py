"""Threads that wait sleep beside other programs, unless the user said how they should."""

import os
import subprocess
import sys

import pytest
import torch  # noqa: F401  # so that it is too late in this process

from inlay import cli
from inlay.cli import WAITING, WAITING_OF_THE_USER
from tests.support import bases, forks

SCRIPT = """
import os, sys
from inlay import cli
cli._others_compute = lambda: sys.argv[1] == "busy"
seen = {}
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and not seen:
            seen.update({key: os.environ.get(key) for key in sys.argv[2:]})
            assert os.environ[cli.LOADING[0]] == "1"
            sys.exit()
sys.meta_path.insert(0, Finder())
try:
    cli.main(["plan", "nowhere"])
except SystemExit:
    pass
print(seen, file=sys.stderr)
"""


@pytest.mark.parametrize(("machine", "waiting"), [("busy", WAITING), ("quiet", {})])
def test_threads_sleep_beside_other_programs_where_nothing_was_said(machine, waiting):
    plain = {key: value for key, value in os.environ.items() if key not in WAITING_OF_THE_USER}
    command = [sys.executable, "-c", SCRIPT, machine, *WAITING_OF_THE_USER]
    done = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == str(dict.fromkeys(WAITING_OF_THE_USER) | waiting)


@pytest.mark.parametrize(
    ("minute", "now", "busy"),
    [
        (0.2, "0.20 0.1 0.1 3/120 99", False),  # a moment's work
        (1.7, "1.70 1.0 1.0 1/120 99", False),  # this process alone: the load is that of the command before it
        (1.7, "1.70 1.0 1.0 2/120 99", True),
        (4.0, None, True),  # a system that doesn't say who runs now
        (0.1, None, False),
        (None, None, False),
    ],
)
def test_others_compute_by_the_last_minute_and_now(monkeypatch, tmp_path, minute, now, busy):
    def load():
        if minute is None:
            raise OSError("no load here")
        return (minute, minute, minute)

    monkeypatch.setattr(os, "getloadavg", load)
    monkeypatch.setattr(cli, "_LOAD", tmp_path / "loadavg")
    if now is not None:
        (tmp_path / "loadavg").write_text(now)
    assert cli._others_compute() is busy


def test_no_thread_is_made_for_the_loading_of_weights(tmp_path):
    base = bases.directory(tmp_path / "base", "llama")
    script = "import concurrent.futures, sys; from inlay.cli import main; concurrent.futures.ThreadPoolExecutor.submit = None; "
    script += f"sys.exit(main(['generate', {str(base)!r}, '--prompt', 'a', '--max-new-tokens', '1']))"
    status, _, err = forks.run(script)
    assert status == 0, err


@pytest.mark.parametrize("name", WAITING_OF_THE_USER)
def test_what_the_user_set_stays(monkeypatch, name):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(cli, "_others_compute", lambda: True)
    monkeypatch.setattr(os, "environ", {name: "1"})
    cli._let_threads_sleep()
    assert os.environ == {name: "1"}


def test_nothing_is_set_too_late(monkeypatch):
    monkeypatch.setattr(cli, "_others_compute", lambda: True)
    monkeypatch.setattr(os, "environ", {})
    cli._let_threads_sleep()
    assert os.environ == {}
