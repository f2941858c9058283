"""vLLM as `benchmarks.engines` asks it."""

import os
from pathlib import Path
from typing import Any


class Asked:
    """An engine in this process; with form "lora" one that takes adapters, which it is not compiled for."""

    def __init__(self, directory: Path, form: str, adapters: list[Path], num_tokens: int):
        os.environ.setdefault(
            "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
        )  # processes that wait for each other take the cores
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{int(os.environ['OMP_NUM_THREADS']) - 1}")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        self.mixes = form == "lora" and bool(adapters)
        how: dict[str, Any] = dict(dtype="bfloat16", skip_tokenizer_init=True, max_model_len=1024, max_num_seqs=8)
        how |= dict(enable_lora=True, max_loras=len(adapters), max_lora_rank=16) if self.mixes else {}
        self.engine = LLM(str(directory), **how)
        self.adapters = {one.name: LoRARequest(one.name, number, str(one)) for number, one in enumerate(adapters, 1)}

    def answers(self, rows: list[list[int]], adapters: list[str | None], new: int) -> list[list[int]]:
        """So many new tokens to each row, each for its adapter, the likeliest ones."""
        from vllm import SamplingParams, TokensPrompt

        how = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=row) for row in rows]
        asked = [self.adapters[name] if name else None for name in adapters] if self.mixes else None
        made = self.engine.generate(prompts, how, lora_request=asked, use_tqdm=False)
        return [list(one.outputs[0].token_ids) for one in made]
