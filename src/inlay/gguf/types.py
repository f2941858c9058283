"""How numbers lie in a GGUF file: the types of ggml, each a block of weights of one row in so many bytes.

All types are known by name and size, so that the header of any file can be checked; which of them are read as weights is for
`inlay.gguf.packed`. Source: `ggml.h` and `ggml-common.h` of llama.cpp; the tests compare with the `gguf` package.
"""

from typing import NamedTuple


class Kind(NamedTuple):
    """A type of tensors: `weights` of them take `num_bytes`."""

    name: str
    weights: int
    num_bytes: int


_SUPER = 256
"""Weights in a block of the K, IQ and TQ types."""

KINDS = {
    0: Kind("F32", 1, 4),
    1: Kind("F16", 1, 2),
    2: Kind("Q4_0", 32, 18),
    3: Kind("Q4_1", 32, 20),
    6: Kind("Q5_0", 32, 22),
    7: Kind("Q5_1", 32, 24),
    8: Kind("Q8_0", 32, 34),
    9: Kind("Q8_1", 32, 40),
    10: Kind("Q2_K", _SUPER, 84),
    11: Kind("Q3_K", _SUPER, 110),
    12: Kind("Q4_K", _SUPER, 144),
    13: Kind("Q5_K", _SUPER, 176),
    14: Kind("Q6_K", _SUPER, 210),
    15: Kind("Q8_K", _SUPER, 292),
    16: Kind("IQ2_XXS", _SUPER, 66),
    17: Kind("IQ2_XS", _SUPER, 74),
    18: Kind("IQ3_XXS", _SUPER, 98),
    19: Kind("IQ1_S", _SUPER, 50),
    20: Kind("IQ4_NL", 32, 18),
    21: Kind("IQ3_S", _SUPER, 110),
    22: Kind("IQ2_S", _SUPER, 82),
    23: Kind("IQ4_XS", _SUPER, 136),
    24: Kind("I8", 1, 1),
    25: Kind("I16", 1, 2),
    26: Kind("I32", 1, 4),
    27: Kind("I64", 1, 8),
    28: Kind("F64", 1, 8),
    29: Kind("IQ1_M", _SUPER, 56),
    30: Kind("BF16", 1, 2),
    34: Kind("TQ1_0", _SUPER, 54),
    35: Kind("TQ2_0", _SUPER, 66),
    39: Kind("MXFP4", 32, 17),
    40: Kind("NVFP4", 64, 36),
    41: Kind("Q1_0", 128, 18),
}
"""The types by the numbers that a file has for them."""

KIND = {kind.name: kind for kind in KINDS.values()}
"""The same by name."""
