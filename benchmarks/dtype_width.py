"""At which hidden size bfloat16 starts to be faster than float32 for a LoRA step: python -m benchmarks.dtype_width

Four Llama layers, 2,048 tokens in rows of 128, r=16 on all linear layers; both dtypes in turn, medians of five steps.
"""

import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inlay


def step_seconds(
    width: int, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
) -> dict[torch.dtype, float]:
    """Median seconds of forward and backward per dtype."""
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=4, num_attention_heads=max(2, width // 64),
        num_key_value_heads=max(1, width // 128), vocab_size=2048,
    )  # fmt: skip
    ids = torch.randint(0, 2048, (16, 128))
    runs = {}
    for dtype in dtypes:
        attached = inlay.attach(LlamaForCausalLM(config).to(dtype), inlay.Lora(r=16))
        runs[dtype] = (attached, attached.parameters(), [])
    for _ in range(6):
        for attached, _, seconds in runs.values():
            start = time.perf_counter()
            attached.module(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            seconds.append(time.perf_counter() - start)
    return {dtype: statistics.median(seconds[1:]) for dtype, (_, _, seconds) in runs.items()}


if __name__ == "__main__":
    for width in (64, 128, 256, 384, 512, 1024):
        seconds = step_seconds(width)
        ratio = seconds[torch.float32] / seconds[torch.bfloat16]
        print(
            f"hidden {width:5}: float32 {seconds[torch.float32]:.3f} s, "
            f"bfloat16 {seconds[torch.bfloat16]:.3f} s, ratio {ratio:.2f}"
        )
