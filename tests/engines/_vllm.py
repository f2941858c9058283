"""vLLM as `tests.engines.prove` asks it."""

import os

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams, TokensPrompt, __version__
from vllm.lora.request import LoRARequest

PACKAGES = f"vllm-cpu {__version__}"


def answers(base, adapters, prompts, new):
    """Adapter -> the likeliest new tokens to each prompt."""
    engine = LLM(
        base,
        dtype="float32",
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=8,
        enable_lora=True,
        max_loras=1,
        max_lora_rank=64,
    )
    how = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
    asked, found = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts], {}
    for number, (name, directory) in enumerate({"": None, **adapters}.items()):
        request = LoRARequest(name, number, directory) if directory else None
        made = engine.generate(asked, how, lora_request=request, use_tqdm=False)
        found[name] = [list(one.outputs[0].token_ids) for one in made]
    return found
