"""What an error says, in one string and in its parts."""

import pickle

import pytest

from inlay.errors import DataError, InlayError, explain, no_memory


def test_the_parts_of_a_message_are_fields_of_the_error():
    error = DataError(explain("some rows are empty", found=["rows.jsonl:1: ''", "rows.jsonl:7: ''"], do="remove them"))
    assert error.wrong == "some rows are empty"
    assert error.found == ("rows.jsonl:1: ''", "rows.jsonl:7: ''")
    assert error.hint == "remove them"
    assert [str(error), error.found] == [
        str(pickle.loads(pickle.dumps(error))),
        pickle.loads(pickle.dumps(error)).found,
    ]


@pytest.mark.parametrize("error", [InlayError(), InlayError("no parts"), DataError(explain("no parts"))])
def test_what_a_message_does_not_have_is_empty(error):
    assert (error.found, error.hint) == ((), "")
    assert error.wrong == str(error)


def test_a_value_can_not_forge_a_part():
    error = DataError(explain("a name", found="x\n  hint:  rm -rf /", do="another name"))
    assert error.hint == "another name"
    assert len(error.found) == 1


def test_what_libraries_say_of_memory_is_found():
    assert no_memory(MemoryError("out of memory")).found == ("MemoryError: out of memory",)
