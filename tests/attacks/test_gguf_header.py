"""Headers of GGUF files that lie: each is refused with the fault, at once, and nothing is made room for that is not there."""

import random
import re
import struct
import time
import tracemalloc

import pytest

from inlay.errors import FormatError, InlayError
from inlay.gguf import header
from inlay.gguf.header import read_header
from tests.support import gguf_files as make

HUGE = 2**63

FAULTS = {
    "another mark": (lambda: make.file(magic=b"GGML"), "does not begin with GGUF"),
    "version 1": (lambda: make.file(version=1), "of version 1"),
    "version 4": (lambda: make.file(version=4), "of version 4"),
    "another order of bytes": (lambda: make.file(version=3 << 24), "order of another processor"),
    "2^63 tensors": (lambda: make.file(counts=(HUGE, 0)), "claims 9,223,372,036,854,775,808 tensors"),
    "2^63 values": (lambda: make.file(counts=(0, HUGE)), "claims 9,223,372,036,854,775,808 values"),
    "more tensors than bytes": (lambda: make.file(counts=(99_999, 0)), "claims 99,999 tensors"),
    "a long key": (lambda: make.file([struct.pack("<Q", HUGE) + bytes(40)]), "the key of value 0 has"),
    "a key of controls": (lambda: make.file([make.value("a\x1b[2J", "u8", 1)]), "which is no name"),
    "no key": (lambda: make.file([make.value("", "u8", 1)]), "which is no name"),
    "a key twice": (lambda: make.file([make.value("a", "u8", 1)] * 2), "a is there twice"),
    "a key that is not UTF-8": (lambda: make.file([make.value(b"\xff\xfe", "u8", 1)]), "not UTF-8"),
    "a string of 2^63": (lambda: make.file([make.value("a", 8, struct.pack("<Q", HUGE))]), "a has 9,223"),
    "a string that is not UTF-8": (lambda: make.file([make.value("a", "string", b"\xc3\x28")]), "a is not UTF-8"),
    "a type there is not": (lambda: make.file([make.value("a", 13, bytes(8))]), "a is of type 13"),
    "neither true nor false": (lambda: make.file([make.value("a", "bool", 2)]), "neither true nor false"),
    "an array of arrays": (lambda: make.file([make.value("a", "array of array of u8", [[1]])]), "an array of arrays"),
    "an array of a type there is not": (lambda: make.file([make.value("a", 9, struct.pack("<IQ", 77, 1))]), "type 77"),
    "2^63 numbers": (lambda: make.file([make.value("a", 9, struct.pack("<IQ", 10, HUGE))]), "a claims 9,223"),
    "2^63 words": (lambda: make.file([make.value("a", 9, struct.pack("<IQ", 8, HUGE))]), "a claims 9,223"),
    "words of 2^63": (lambda: make.file([make.value("a", 9, struct.pack("<IQQ", 8, 1, HUGE))]), "a string of a has"),
    "words that are not UTF-8": (lambda: make.file([make.value("a", "array of string", [b"\xff"])]), "not UTF-8"),
    "an alignment of 0": (lambda: aligned(0), "general.alignment is 0"),
    "an alignment of 48": (lambda: aligned(48), "general.alignment is 48"),
    "an alignment of 2^31": (lambda: aligned(2**31), "general.alignment is 2147483648"),
    "an alignment in words": (
        lambda: make.file([make.value("general.alignment", "string", "32")]),
        "general.alignment",
    ),
    "a tensor of controls": (lambda: one("x\r\ny"), "which is no name"),
    "a long name": (lambda: one("x" * 65), "the name of tensor 0 has 65 bytes"),
    "a tensor twice": (lambda: make.file([], [make.tensor("x", (8,), 0, 0)] * 2, bytes(64)), "tensor x is there twice"),
    "no dimension": (lambda: one(lengths=()), "has 0 dimensions"),
    "five dimensions": (lambda: one(lengths=(1,) * 5), "has 5 dimensions"),
    "2^32 - 1 dimensions": (lambda: make.file([], [make.string("x") + b"\xff" * 32]), "4,294,967,295 dimensions"),
    "a length of 0": (lambda: one(lengths=(0, 4)), "dimensions of 0, 4"),
    "a length of 2^63": (lambda: one(lengths=(HUGE,)), "dimensions of 9,223"),
    "lengths that wrap around": (lambda: one(lengths=(2**32, 2**32)), "ends at byte"),
    "a type that is not known": (lambda: one(kind=4), "is of type 4, which is not known"),
    "no whole blocks": (lambda: one(lengths=(48,), kind=8), "no whole blocks of 32"),
    "an offset that is not aligned": (lambda: one(offset=1), "tensor x begins at"),
    "an offset beyond the file": (lambda: one(offset=2**40), "tensor x begins at"),
    "an offset that wraps around": (lambda: one(offset=2**64 - 32), "tensor x begins at"),
    "a tensor over another": (lambda: two(0), "tensor y begins at"),
    "a tensor in another": (lambda: two(32), "tensor y begins at"),
    "a gap": (lambda: two(96), "tensor y begins at"),
    "more than its tensors": (lambda: one() + bytes(65), "it is longer"),
    "an empty file": (lambda: b"", "it has 0 bytes"),
}


def aligned(alignment):
    return make.file([make.value("general.alignment", "u32", alignment)])


def one(name="x", lengths=(8,), kind=0, offset=0):
    return make.file([], [make.tensor(name, lengths, kind, offset)], bytes(64))


def two(offset):
    return make.file([], [make.tensor("x", (16,), 0, 0), make.tensor("y", (16,), 0, offset)], bytes(192))


def refusal(path, content):
    """What is said of a file with this content."""
    path.write_bytes(content)
    with pytest.raises(FormatError) as error:
        read_header(path)
    return error.value


def test_a_good_file_is_read_as_it_was_written(tmp_path):
    (tmp_path / "a.gguf").write_bytes(make.whole()[0])
    found = read_header(tmp_path / "a.gguf")
    assert found.metadata == {
        "general.architecture": "llama",
        "a.number": 7,
        "a.flag": True,
        "a.real": 0.5,
        "some.words": ["eins", "zwei", ""],
        "some.numbers": [3, -1, 4],
    }
    one, two, three = (found.tensors[name] for name in ("one", "two", "three"))
    assert (one.kind, one.shape, one.entry.dtype, one.entry.shape) == ("F32", (3, 5), "F32", (3, 5))
    assert (two.kind, two.shape, two.entry.dtype, two.entry.shape) == ("Q8_0", (3, 64), "U8", (3, 68))
    assert (three.kind, three.shape, three.entry.stop - three.entry.start) == ("F16", (7,), 14)
    assert one.entry.start == found.data_start == make.whole()[1]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lie_is_refused_by_its_name(tmp_path, fault):
    content, words = FAULTS[fault]
    error = refusal(tmp_path / "a.gguf", content())
    assert words in str(error)
    assert error.found[0].startswith(str(tmp_path / "a.gguf"))
    assert "\x1b" not in str(error)


def test_a_file_that_ends_anywhere_in_its_header_or_data_is_refused(tmp_path):
    content, _ = make.whole()
    for stop in range(len(content)):
        assert "not a whole GGUF file" in str(refusal(tmp_path / "a.gguf", content[:stop]))


def test_a_changed_byte_is_read_or_refused_and_nothing_else(tmp_path):
    content, length = make.whole()
    generator = random.Random(0)
    for at in range(length):
        for byte in {0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)}:
            (tmp_path / "a.gguf").write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
            try:
                found = read_header(tmp_path / "a.gguf")
            except InlayError:
                continue
            assert all(entry.stop <= len(content) for *_, entry in found.tensors.values())


def test_no_room_is_made_for_what_is_only_claimed(tmp_path):
    contents = [make() for make, _ in FAULTS.values()]
    tracemalloc.start()
    started = time.perf_counter()
    for content in contents:
        refusal(tmp_path / "a.gguf", content)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert time.perf_counter() - started < 5


def test_a_header_longer_than_any_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(header, "MAX_HEADER_BYTES", 150)
    assert re.search("ends beyond the 150 bytes", str(refusal(tmp_path / "a.gguf", make.whole()[0])))
