"""Processes for tests, made ready: a server has imported the package and what it stands on, and forks for each one.

What comes of it is a process as `python -c CODE ARGUMENTS` is one, with its own input, output, environment, session, signals,
exit handlers and status, but for the seconds of imports. It is not for tests of the imports, nor of what is read at an import:
`OMP_NUM_THREADS`, `HF_HUB_OFFLINE`; nor of a KeyboardInterrupt that nobody catches, whose status is 1.
"""

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

INLAY = "import sys; from inlay.cli import main; sys.exit(main())"
"""The command, as the installed script runs it."""

ANEW = "import sys\nfor name in [n for n in sys.modules if n.partition('.')[0] == 'inlay']: del sys.modules[name]\n"
"""Before other code: what it imports of the package is imported then, from the first folder of the path that has it."""

_LIBRARIES = (
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.bert.modeling_bert",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation",
    "matplotlib.backends.backend_agg",
    "rich.live",
)
_SERVER = "from tests.support import forks; forks.end(forks.serve(), globals())"


class Process:
    """A running process: what tests need of `subprocess.Popen`, with text for pipes."""

    def __init__(self, code, *arguments, stdin=None, stdout=None, stderr=None, env=None, start_new_session=False):
        """`stdin`, `stdout` and `stderr` are descriptors, files or `subprocess.PIPE`; nothing is an empty input, a lost output."""
        self.stdin = self.stdout = self.stderr = self.returncode = None
        with contextlib.ExitStack() as theirs:
            descriptors = []
            for name, given in (("stdin", stdin), ("stdout", stdout), ("stderr", stderr)):
                if given == subprocess.PIPE:
                    read, write = os.pipe()
                    own, other = (write, read) if name == "stdin" else (read, write)
                    setattr(self, name, open(own, "w" if name == "stdin" else "r", encoding="utf-8"))
                    theirs.callback(os.close, other)
                elif given is None:
                    other = os.open(os.devnull, os.O_RDWR)
                    theirs.callback(os.close, other)
                else:
                    other = given if isinstance(given, int) else given.fileno()
                descriptors.append(other)
            ended, end = os.pipe()
            theirs.callback(os.close, end)
            self._ended = open(ended, encoding="ascii")
            environment = dict(os.environ if env is None else env)
            asked = [code, [str(argument) for argument in arguments], environment, os.getcwd(), start_new_session]
            self.pid = _server()(asked, [*descriptors, end])

    def poll(self):
        """The status; None while it runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout=120):
        """The status, which is that of a signal with a minus; `TimeoutError` where there is none in time."""
        if self.returncode is None:
            if not select.select([self._ended], [], [], timeout)[0]:
                raise TimeoutError(f"it did not end within {timeout} s")
            self.returncode = int(self._ended.readline())
            self._ended.close()
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def communicate(self, given=None, timeout=120):
        """(what is left of standard output, of standard error) when it has ended, after this input."""
        texts = {}

        def read(name):
            with getattr(self, name) as file:
                texts[name] = file.read()

        readers = [threading.Thread(target=read, args=(name,)) for name in ("stdout", "stderr") if getattr(self, name)]
        for reader in readers:
            reader.start()
        if self.stdin:
            with contextlib.suppress(BrokenPipeError), self.stdin as file:
                file.buffer.write(given or b"")
        try:
            self.wait(timeout)
        except TimeoutError:
            self.kill()
            raise
        finally:
            for reader in readers:
                reader.join()
        return texts.get("stdout"), texts.get("stderr")


def run(code, *arguments, given=b"", env=None, timeout=120):
    """(status, standard output, standard error) of a process to its end."""
    process = Process(code, *arguments, stdin=-1, stdout=-1, stderr=-1, env=env)
    out, err = process.communicate(given, timeout)
    return process.returncode, out, err


@functools.cache
def _server():
    """What asks the server of this process for another one: (what, descriptors) -> its number."""
    ours, theirs = socket.socketpair()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command, root = [sys.executable, "-c", _SERVER, str(theirs.fileno())], Path(__file__).parents[2]
    server = subprocess.Popen(
        command, pass_fds=[theirs.fileno()], cwd=root, env=environment, start_new_session=True, stdin=subprocess.DEVNULL
    )
    theirs.close()

    def ask(what, descriptors):
        data = json.dumps(what).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        ours.sendmsg([len(data).to_bytes(8, "big")], rights)
        ours.sendall(data)
        number = ours.recv(8)
        assert number, "the server of processes has ended"
        return int.from_bytes(number, "big")

    @atexit.register
    def end():
        ours.close()
        server.wait()

    return ask


def serve():
    """In the server: fork whenever that is asked for. This returns in each of the children, with the code to run."""
    _import_all()
    gc.collect()
    gc.freeze()  # what all of them share is not looked through again at the end of each
    asked = socket.socket(fileno=int(sys.argv[1]))
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker)
    ends = {}
    while True:
        ready, _, _ = select.select([asked, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(ends)
        if asked in ready:
            head, rights, _, _ = asked.recvmsg(8, socket.CMSG_SPACE(4 * 4))
            if not head:
                os._exit(0)
            descriptors = list(array.array("i", rights[0][2]))
            data = b""
            while len(data) < int.from_bytes(head, "big"):
                data += asked.recv(65536)
            if not (child := os.fork()):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                asked.close()
                for number in (woken, waker, *ends.values()):
                    os.close(number)
                return _become(descriptors, *json.loads(data))
            *standard, ends[child] = descriptors
            for number in standard:
                os.close(number)
            asked.sendall(child.to_bytes(8, "big"))


def end(code, names):
    """In a child: run the code to its end, and end as an interpreter does, but take nothing apart, which takes half a second."""
    status = 0
    try:
        exec(compile(code, "<string>", "exec"), names)
    except SystemExit as ended:
        status = ended.code
        if not isinstance(status, int | None):
            print(status, file=sys.stderr)
            status = 1
    except BaseException as error:
        error.__traceback__ = error.__traceback__.tb_next
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = 120
    os._exit((status or 0) & 0xFF)


def _import_all():
    import inlay

    for name in _LIBRARIES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(inlay.__path__, "inlay."):
        if module.name.rpartition(".")[2] not in ("__main__", "_kernels", "_renderer", "nf4_triton"):
            importlib.import_module(module.name)


def _reap(ends):
    """Tell those who wait of the children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            end = ends.pop(ended[0])
            with contextlib.suppress(BrokenPipeError):  # nobody waits any more
                os.write(end, f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())
            os.close(end)


def _become(descriptors, code, arguments, environment, folder, start_new_session):
    """In a child: be what was asked for; the code that it is to run."""
    if start_new_session:
        os.setsid()
    for number, given in enumerate(descriptors[:3]):
        os.dup2(given, number)
    for given in descriptors:
        os.close(given)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    sys.argv = ["-c", *arguments]
    sys.path[0] = ""
    is_seen = os.isatty(1)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1 if is_seen else -1, encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    return code
