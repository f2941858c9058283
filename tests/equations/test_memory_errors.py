"""Memory that runs out is said to have run out, whatever was blamed; what only speaks of memory is not taken for that."""

import errno

import pytest

from inlay.errors import CapacityError, DataError, FormatError, within_memory


@within_memory()
def fail(error, blamed=None):
    try:
        raise error
    except type(error):
        if blamed is None:
            raise
        raise blamed from None


def raised(*given):
    with pytest.raises(BaseException) as found:  # which one is what is tested
        fail(*given)
    return found.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
@pytest.mark.parametrize("blamed", [None, FormatError("the file is broken"), ValueError("not a model")])
def test_memory_that_runs_out_is_said_to(error, blamed):
    found = raised(error, blamed)
    assert type(found) is CapacityError
    assert str(found).startswith("there is not enough memory for this\n  found: " + type(error).__name__)
    assert "  hint:  " in str(found)


@pytest.mark.parametrize(
    "error",
    [
        DataError("row 3 says: out of memory"),
        ValueError("Expecting value: out of memory"),
        KeyError("failed to allocate"),
        OSError(errno.ENOENT, "No such file or directory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_what_they_were(error):
    assert raised(error) is error
