"""The checks of annotations are made for what is called while they are on, and not for every function that is defined.

`jaxtyping` has `beartype` write the check of a function where that is defined: of all of the package at the import, and of an
inner one each time that the outer one runs, which takes milliseconds. Here it is written at the first call that is to be
checked. What is checked, and how, is the same.
"""

import functools
from types import FunctionType

import beartype  # noqa: F401  # here, because the first check may be written anywhere
import jaxtyping
from jaxtyping import _decorator

_eager = jaxtyping.jaxtyped


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
        return _eager(function, typechecker=typechecker)
    checked = None

    @functools.wraps(function)
    def lazily(*args, **kwargs):
        __tracebackhide__ = True
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        checked = checked or _eager(function, typechecker=typechecker)
        return checked(*args, **kwargs)

    return lazily


def check_lazily():
    """From here on, whatever the import hook decorates, and nothing until a test turns the checks on."""
    jaxtyping.config.update("jaxtyping_disable", True)
    jaxtyping.jaxtyped = _decorator.jaxtyped = jaxtyped
