"""What adapters cost beside tiny maps, and what attaching one costs: python -m benchmarks.routing [ROUNDS]

A Llama of 30 layers, 64 wide, with 210 linear maps: 8 rows of one token, without gradients, on one thread, as in decoding,
where hardly anything is computed and what is left is Python. The plain base, one adapter for all rows, and eight adapters for
eight rows, in turn; medians. Then attaching an adapter of r = 4, whose tensors exist, to all maps.
"""

import statistics
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inlay
from inlay.model.adapter_set import AdapterSet

ROWS = 8
CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 30,
    "num_attention_heads": 4,
    "vocab_size": 64,
}


def main(rounds: str = "40") -> None:
    """Print the milliseconds of a pass and of attaching."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    attached = AdapterSet(LlamaForCausalLM(LlamaConfig(**CONFIG)).eval())
    attaching = []
    for number in range(ROWS):
        adapter = attached.create(inlay.Lora(r=4), f"a{number}")
        for tensor in adapter.tensors():
            tensor.normal_(std=0.02)
        attached.detach(adapter.name)
        start = time.perf_counter()
        attached.put(adapter)
        attaching.append(time.perf_counter() - start)
    ids = torch.arange(ROWS)[:, None]
    ways = {"base": None, "one adapter": "a0", "eight adapters": [f"a{number}" for number in range(ROWS)]}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    with torch.no_grad():
        for _ in range(int(rounds)):
            for way, rows in ways.items():
                attached.active = rows
                attached.module(input_ids=ids, use_cache=False)
                start = time.perf_counter()
                attached.module(input_ids=ids, use_cache=False)
                taken[way].append(time.perf_counter() - start)
    for way, seconds in taken.items():
        print(f"{way:15} {1000 * statistics.median(seconds):6.1f} ms")
    print(f"attach          {1000 * statistics.median(attaching):6.1f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
