"""GGUF's types on the processor: python -m benchmarks.gguf [SHAPE] [ROWS] [TOKENS]; without a shape, one weight of each type.

One weight of a 7b model: rows made in bfloat16, as a product's tiles are, and products of 1, 4 and 16 tokens; torch's with the
bfloat16 weight beside them. With a shape: a LoRA step over a file in Q4_K and in Q8_0, and over the same shape in bfloat16, as
`benchmarks.qlora` does it: processes that keep their models and step in turn. Blocks are random bytes with small factors, norms
ones: speed and memory do not depend on the values.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import shapes, step
from benchmarks.nf4 import show
from inlay import process
from inlay.core import ggml
from inlay.gguf.packed import open_matrix
from inlay.kernels import native

OUT, IN = 11008, 4096
KINDS = ("Q4_K", "Q8_0")
FACTORS = {"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
SIZES = {"Q8_0": 3e-4, "Q4_0": 4e-3, "Q4_1": 4e-3, "Q4_K": 1e-4, "Q5_K": 5e-5, "Q6_K": 2e-5}
"""Where a block has its factors, and what they are, so that weights have the spread of a fresh model's."""


def blocks(kind: str, rows: int, columns: int, generator: np.random.Generator) -> np.ndarray[Any, Any]:
    """Random rows of a type."""
    weights, size = ggml.BLOCKS[kind]
    data = generator.integers(0, 256, (rows * columns // weights, size), np.uint8)
    for place in FACTORS[kind]:
        data[:, place : place + 2] = np.array([SIZES[kind]], np.float16).view(np.uint8)
    return data.reshape(rows, -1)


def file(shape: str, kind: str, path: Path) -> Path:
    """A random model of this shape in one type; a tied head, and the demo's tokenizer as texts of one kind."""
    import gguf

    sizes, generator = shapes.SHAPES[shape], np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in kept] + [chr(256 + i) for i in range(256 - len(kept))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<end>", *letters, "ab"])
    writer.add_token_types([3] + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    for name, rows, columns in tensors(sizes):
        if rows is None:
            writer.add_tensor(name, np.ones(columns, np.float32))
        else:
            data = blocks(kind, rows, columns, generator)
            writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(sizes: dict[str, Any]) -> Iterator[tuple[str, int | None, int]]:
    """The tensors of a Llama with a tied head: name, rows (None: a norm), columns."""
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    narrow = width // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    yield "token_embd.weight", sizes["vocab_size"], width
    yield "output_norm.weight", None, width
    for i in range(sizes["num_hidden_layers"]):
        matrices = {"attn_q": (width, width), "attn_k": (narrow, width), "attn_v": (narrow, width)}
        matrices |= {"attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width)}
        for name, (rows, columns) in (matrices | {"ffn_down": (width, inner)}).items():
            yield f"blk.{i}.{name}.weight", rows, columns
        yield f"blk.{i}.attn_norm.weight", None, width
        yield f"blk.{i}.ffn_norm.weight", None, width


def one_weight() -> None:
    """Measure every type on one weight."""
    process.keep_freed_blocks()
    print(f"{OUT} x {IN}, {torch.get_num_threads()} threads, {native.variant()}; {native.why_not() or 'compiled'}")
    there, weight = torch.empty(OUT, IN, dtype=torch.bfloat16), torch.randn(OUT, IN).mul_(0.02).bfloat16()
    for kind in ggml.BLOCKS:
        data = torch.from_numpy(blocks(kind, OUT, IN, np.random.default_rng(0)))
        matrix = open_matrix(kind, {"": data})
        works = {"ours": lambda m=matrix: m.read(0, there), "a copy": lambda: there.copy_(weight)}
        show(f"{kind}: rows in bfloat16", works)
        for tokens in (1, 4, 16):
            x = torch.randn(tokens, IN).bfloat16()
            with torch.inference_mode():
                works = {
                    "ours": lambda m=matrix, x=x: m.product(x),
                    "torch": lambda x=x: torch.nn.functional.linear(x, weight),
                }
                show(f"{kind}: {tokens} tokens", works)


def steps(shape: str, rows: str = "2", tokens: str = "256") -> None:
    """Measure a step over each type and in bfloat16."""
    with tempfile.TemporaryDirectory() as folder:
        plain = shapes.directory(shape, Path(folder) / shape)
        places = {"bfloat16": plain, **{kind: file(shape, kind, Path(folder) / f"{kind}.gguf") for kind in KINDS}}
        workers = [step.start("benchmarks.gguf", str(place), rows, tokens) for place in places.values()]
        turns = step.turns(workers)
    theirs, least = median(turn[0]["seconds"] for turn in turns), turns[-1][0]["peak_bytes"]
    print(f"{shape}, {rows} x {tokens} tokens")
    for i, name in enumerate(places):
        times, peak = [turn[i]["seconds"] for turn in turns], turns[-1][i]["peak_bytes"]
        print(
            f"{name:10} {median(times):6.2f} s ({min(times):.2f} to {max(times):.2f}), {median(times) / theirs:.2f} of the "
            f"bfloat16 step, peak {peak / 1e9:.2f} GB ({peak / least:.2f})"
        )


def worker(place: str, rows: str, tokens: str) -> None:
    """A step for every line that comes in."""
    import inlay.training.loop  # noqa: F401

    start = time.perf_counter()
    made = step.of_inlay(place, "bfloat16")[0]
    step.answer("inlay", made, int(rows), int(tokens), loaded=time.perf_counter() - start)


if __name__ == "__main__":
    torch.set_num_threads(2)
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    elif sys.argv[1:]:
        steps(*sys.argv[1:])
    else:
        one_weight()
