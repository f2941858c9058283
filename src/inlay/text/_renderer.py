"""The program that renders chat templates: a process of its own, because a template is code out of a download.

Requests come on stdin, so many at a time (8 bytes), answers go to stdout, until stdin ends; `bounded.py` is the other side:

    request    two lengths (8 bytes each), the template, its variables as a JSON object; a first length of `SAME` stands for the
               template of the request before
    answer     one letter, a length (8 bytes), a text: the rendered one, or what happened

The environment is that of `transformers`: jinja2's sandbox with its loop controls, `tojson` without escapes, `raise_exception`,
`strftime_now`, `{% generation %}`, `dict` and `namespace`. It imports jinja2 and the standard library, nothing of Inlay.
"""
# it is told where jinja2 is

import datetime
import functools
import json
import struct
import sys
from typing import Any

if __name__ == "__main__":
    sys.path += sys.argv[3:]  # where jinja2 is: an isolated process looks nowhere

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

TEXT, REFUSED, FAILED, SYNTAX, MEMORY, LONG = b"trfsml"
"""The letters of the answers: text, the template refuses the messages, it fails, it is no Jinja, memory, too long a text."""

SAME = (1 << 64) - 1
"""In place of a template's length: it is the one of the request before."""

OUTPUT_FACTOR, OUTPUT_EXTRA = 8, 1_000_000
"""A rendered text has at most `OUTPUT_FACTOR` characters for each byte of its variables, and these beside."""


def answer(template: str, variables: str) -> tuple[int, str]:
    """The letter and the text of one answer."""
    limit, pieces, size = OUTPUT_FACTOR * len(variables) + OUTPUT_EXTRA, [], 0
    try:
        for piece in _compiled(template).generate(json.loads(variables)):
            size += len(piece)
            if size > limit:
                return LONG, f"more than {limit:,} characters"
            pieces.append(piece)
        return TEXT, "".join(pieces)
    except MemoryError:
        return MEMORY, ""
    except TemplateSyntaxError as error:
        return SYNTAX, f"line {error.lineno}: {error.message}"
    except TemplateError as error:
        kind = "" if type(error) is TemplateError else f"{type(error).__name__}: "
        return REFUSED if not kind else FAILED, f"{kind}{error}"
    except Exception as error:  # whatever an expression of a template may raise
        return FAILED, f"{type(error).__name__}: {error}"


@functools.lru_cache(8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


class _Generation(Extension):
    """`{% generation %}` marks what an assistant writes; here it is its content, no more."""

    tags = {"generation"}  # noqa: RUF012  # as jinja2 wants it

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _content(self, context: Any, caller: Any) -> str:
        return caller()


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore, which lead to the inside of Python."""

    def __init__(*args: Any, **kwargs: Any):
        self, *rest = args
        for name in (values := dict(*rest, **kwargs)):
            _check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check(name)
        Namespace.__setitem__(self, name, value)


class _Dict:
    """The type `dict` without the way into Python that a type is."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


def _check(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no names with an underscore in front, such as {name!r}")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


@functools.cache
def _environment() -> Any:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now, "dict": _Dict(), "namespace": _Namespace}
    return made


def _limited(seconds: float) -> Any:
    """Functions that start and stop a clock which ends this process, whatever it is doing."""
    import faulthandler
    import os
    import signal

    if hasattr(signal, "setitimer"):  # counts time of the processor: a busy machine costs nobody a row
        return lambda: signal.setitimer(signal.ITIMER_PROF, seconds), lambda: signal.setitimer(signal.ITIMER_PROF, 0)
    nowhere = open(os.devnull, "w")  # noqa: SIM115  # for the life of the process
    start = functools.partial(faulthandler.dump_traceback_later, seconds, exit=True, file=nowhere)
    return start, faulthandler.cancel_dump_traceback_later


def serve(seconds: float, num_bytes: int) -> None:
    """Answer requests until there are no more."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not on every system
        pass
    start, stop = _limited(seconds)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    template = ""
    while len(head := requests.read(8)) == 8:
        for _ in range(struct.unpack(">Q", head)[0]):
            num_template, num_variables = struct.unpack(">QQ", requests.read(16))
            if num_template != SAME:
                template = requests.read(num_template).decode("utf-8", "surrogatepass")
            variables = requests.read(num_variables).decode("utf-8", "surrogatepass")
            start()
            letter, text = answer(template, variables)
            data = text.encode("utf-8", "surrogatepass")
            stop()
            answers.write(struct.pack(">BQ", letter, len(data)) + data)
        answers.flush()


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
