"""The checks of annotations are made for what is called while they are on, and not for every function that is defined.

`jaxtyping` has `beartype` write the check of a function where that is defined: of all of the package at the import, and of an
inner one each time that the outer one runs, which takes milliseconds. Here it is written at the first call that is to be
checked. At each call `jaxtyping` then checks the arguments twice, which takes a tenth of a millisecond. Here `beartype` checks
them once, and without axes where no annotation has a shape. What is checked, and by what, is the same.
"""

import functools
import inspect
import math
from types import FunctionType
from typing import get_args

import beartype
import jaxtyping
from jaxtyping import _decorator

_eager = jaxtyping.jaxtyped
_check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))
"""The tower: an int will do for a float."""

ENOUGH = (30, 3)
"""The first calls of a function in a test, which are checked: those of a pass through a small model. Of an inner function, whose
check is written each time that the outer one runs, a few."""
EVERY = 17
"""Of later calls every one of this number is checked: it divides no number of layers and maps, so that none is passed over."""
ALL = (math.inf, math.inf)

_calls, _most = {}, ENOUGH


def begin(checks, most=ENOUGH):
    """A test begins, in which annotations are checked or not, at the first calls of each function."""
    global _most
    _calls.clear()
    _most = most
    jaxtyping.config.update("jaxtyping_disable", not checks)


def jaxtyped(function=_decorator._sentinel, *, typechecker=_decorator._sentinel):
    """What the import hook decorates with: `jaxtyping.jaxtyped`, later."""
    if function is _decorator._sentinel:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not isinstance(function, FunctionType) or not callable(typechecker):
        return _eager(
            function, typechecker=typechecker
        )  # a class or a property, of whose functions it comes back with each
    if function.__globals__ is globals():
        return function  # inherited: it is checked already
    if function.__name__ == "__del__":  # which may run while the check of another one is written
        return _eager(function, typechecker=_check)
    checked, code = None, function.__code__
    is_inner = "<locals>" in function.__qualname__

    @functools.wraps(function)
    def lazily(*args, **kwargs):
        __tracebackhide__ = True
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        calls = _calls[code] = _calls.get(code, 0) + 1
        if calls > _most[is_inner] and calls % EVERY:
            return function(*args, **kwargs)
        checked = checked or _checking(function)
        return checked(*args, **kwargs)

    return lazily


def _checking(function):
    """The function, which checks its arguments and its answer."""
    hints = {
        name: _decorator._destring_annotation(hint, function.__globals__)
        for name, hint in function.__annotations__.items()
    }
    shapes = [shape for hint in hints.values() for shape in _shapes(hint)]
    if shapes and (inspect.isgeneratorfunction(function) or any("{" in shape for shape in shapes)):
        return _eager(function, typechecker=_check)  # an axis is named by an argument, or what is yielded has shapes
    same = FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    functools.update_wrapper(same, function).__annotations__ = hints
    del same.__wrapped__
    same.__defaults__, same.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    checked = _check(same)
    if not shapes:
        return checked

    @functools.wraps(function)
    def with_axes_of_its_own(*args, **kwargs):
        __tracebackhide__ = True
        with _eager("context"):
            return checked(*args, **kwargs)

    return with_axes_of_its_own


def _shapes(hint):
    """The shapes in an annotation."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        yield hint.dim_str
    for part in get_args(hint):
        yield from _shapes(part)


def check_lazily():
    """From here on, whatever the import hook decorates, and nothing until a test turns the checks on."""
    jaxtyping.config.update("jaxtyping_disable", True)
    jaxtyping.jaxtyped = _decorator.jaxtyped = jaxtyped
