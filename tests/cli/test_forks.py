"""The processes that other tests start, of `tests/support/forks.py`: as those of an interpreter of their own."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support import forks


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("import sys; sys.exit(3)", 3),
        ("1 / 0", 1),
        ("import sys; sys.exit('why')", 1),
        ("import os; os.close(1); print('lost')", 120),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_its_status_is_that_of_an_interpreter(code, status):
    found, out, err = forks.run(code)
    assert (found, out) == (status, "")
    assert ("ZeroDivisionError" in err) == (code == "1 / 0")
    assert (err == "why\n") == ("why" in code)


def test_it_waits_for_its_threads_and_tells_of_a_fault_as_an_interpreter_does():
    code = "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()\n1 / 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert forks.run(code) == (done.returncode, done.stdout, done.stderr) == (1, "late\n", done.stderr)


def test_it_has_its_own_input_output_arguments_environment_and_exit_handlers():
    code = """
import atexit, os, sys
atexit.register(print, "the end")
print(sys.argv[1:], os.environ["ASKED"], os.getcwd(), sys.stdin.read())
"""
    status, out, _ = forks.run(code, "a", 3, given="ö".encode(), env=os.environ | {"ASKED": "yes"})
    assert (status, out) == (0, f"['a', '3'] yes {os.getcwd()} ö\nthe end\n")
    assert forks.run("import os; print('ASKED' in os.environ)")[1] == "False\n"


def test_one_that_does_not_end_is_ended():
    process = forks.Process("print('there', flush=True); import time; time.sleep(100)", stdout=subprocess.PIPE)
    assert process.stdout.readline() == "there\n"
    assert process.poll() is None
    with pytest.raises(TimeoutError):
        process.communicate(timeout=0.1)
    assert process.wait() == -signal.SIGKILL
