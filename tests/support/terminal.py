"""A command in a terminal of its own: what a person would type goes in, what they would see comes out."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import time

from tests.support import forks

LAUNCHER = """
import fcntl, json, sys, termios, time
if sys.stdin.isatty():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
log, *arguments = sys.argv[1:]
from inlay.cli import main
from inlay.base.base import Base
own = Base.generate
def generate(self, prompts, adapters=None, **how):
    pause = 0.3 if "slow" in str(prompts[-1][-1]) else 0.0
    with open(log, "a") as file:
        file.write(json.dumps({"prompts": prompts, "adapters": adapters}) + "\\n")
    slow = self.model.get_input_embeddings().register_forward_pre_hook(lambda *given: time.sleep(pause))
    try:
        return own(self, prompts, adapters, **how)
    finally:
        slow.remove()
Base.generate = generate
sys.exit(main(arguments))
"""
"""Runs a command as it is, but for two things: what is asked is logged, and the tokens of an answer to something slow take 0.3 s each."""

WAIT = 120
"""Seconds after which something that should happen will not."""

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A running command; use it in a `with` block."""

    def __init__(self, log, *arguments, stdout=None):
        self.log = log
        self._master, slave = pty.openpty()
        own = {"TERM": "xterm", "COLUMNS": "100", "LINES": "30", "INPUTRC": os.devnull}
        self.process = forks.Process(
            LAUNCHER,
            log,
            *arguments,
            stdin=slave,
            stdout=stdout or slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, **own},
        )
        os.close(slave)
        self.screen = ""
        self._seen = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def type(self, text):
        """Press keys; the terminal takes them as fast as the command does."""
        data = text.encode()
        while data:
            self._look(0)
            data = data[os.write(self._master, data[:512]) :]

    def until(self, text):
        """What has come onto the screen up to `text`, since the last call."""
        end = time.monotonic() + WAIT
        while text not in self.screen[self._seen :]:
            assert time.monotonic() < end, f"{text!r} did not come; the screen:\n{self.screen}"
            if not self._look(0.1) and self.process.poll() is not None:
                assert text in self.screen[self._seen :], f"ended before {text!r}; the screen:\n{self.screen}"
        start, self._seen = self._seen, self.screen.index(text, self._seen) + len(text)
        return self.screen[start : self._seen]

    def ended(self):
        """The exit status."""
        end = time.monotonic() + WAIT
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it did not end; the screen:\n{self.screen}"
            self._look(0.1)
        return self.process.returncode

    def interrupt(self):
        """Press Ctrl-C."""
        self._rest()
        self.type("\x03")

    def terminate(self):
        """What `kill` sends."""
        self._rest()
        self.process.send_signal(signal.SIGTERM)

    def asked(self):
        """What the model has been asked."""
        return asked(self.log)

    def _rest(self):
        """Wait until the command sleeps. Between the prompt and its sleep Python notes a signal and acts on it at the next key."""
        end, asleep = time.monotonic() + WAIT, 0
        while asleep < 3 and time.monotonic() < end:
            state = subprocess.run(
                ["ps", "-o", "state=", "-p", str(self.process.pid)], capture_output=True, check=False
            )
            asleep = asleep + 1 if state.stdout.strip()[:1] in (b"S", b"I") else 0
            self._look(0.01)

    def _look(self, seconds):
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        with contextlib.suppress(OSError):  # the other side is closed
            data = os.read(self._master, 65536)
            self.screen += _ESCAPES.sub("", data.decode("utf-8", "replace"))
            return bool(data)
        return False


def asked(log):
    """The conversations in a log of `LAUNCHER`, each with its adapter."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(call["prompts"][0], call["adapters"]) for call in map(json.loads, lines)]


def piped(log, text, *arguments):
    """(exit status, stdout, stderr) of a command that reads `text` from a pipe."""
    return forks.run(LAUNCHER, log, *arguments, given=text, timeout=WAIT)
