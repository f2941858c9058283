"""GGUF files written byte by byte, right or wrong on purpose: what the reader is tried on. It imports nothing of ours."""

import struct

CODES = {"u8": (0, "B"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "B"), "u64": (10, "Q")}
STRING, ARRAY = 8, 9


def string(text):
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(key, kind, content):
    """An entry of the metadata: `kind` is a name of `CODES`, 'string', 'array of KIND', or (number, bytes) as they are."""
    if isinstance(kind, int):
        return string(key) + struct.pack("<I", kind) + content
    return string(key) + struct.pack("<I", _number(kind)) + _payload(kind, content)


def _number(kind):
    return STRING if kind == "string" else ARRAY if kind.startswith("array of ") else CODES[kind][0]


def _payload(kind, content):
    if kind == "string":
        return string(content)
    if kind.startswith("array of "):
        inner = kind.removeprefix("array of ")
        return struct.pack("<IQ", _number(inner), len(content)) + b"".join(_payload(inner, item) for item in content)
    return struct.pack(f"<{CODES[kind][1]}", content)


def tensor(name, lengths, kind, offset):
    """An entry of the list of tensors; `lengths` as the file has them, the fastest first."""
    return string(name) + struct.pack(f"<I{len(lengths)}QIQ", len(lengths), *lengths, kind, offset)


def file(values=(), tensors=(), data=b"", *, version=3, counts=None, alignment=32, magic=b"GGUF"):
    """The bytes of a file; `counts` says others than there are."""
    num_tensors, num_values = counts or (len(tensors), len(values))
    head = magic + struct.pack("<IQQ", version, num_tensors, num_values) + b"".join(values) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


def whole():
    """A good file with a value of most kinds and three tensors, and the length of its header."""
    values = [
        value("general.architecture", "string", "llama"),
        value("a.number", "u32", 7),
        value("a.flag", "bool", 1),
        value("a.real", "f32", 0.5),
        value("some.words", "array of string", ["eins", "zwei", ""]),
        value("some.numbers", "array of i32", [3, -1, 4]),
    ]
    tensors = [tensor("one", (5, 3), 0, 0), tensor("two", (64, 3), 8, 64), tensor("three", (7,), 1, 288)]
    data = bytes(range(60)) + bytes(4) + bytes(204) + bytes(20) + bytes(14)
    return file(values, tensors, data), len(file(values, tensors))
