"""peft as `tests.engines.prove` asks it."""

import torch
from peft import PeftModel, __version__
from transformers import AutoModelForCausalLM

PACKAGES = f"peft {__version__}"


def answers(base, adapters, prompts, new):
    """Adapter -> the likeliest new tokens to each prompt."""
    model, found = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), {}
    found[""] = [generated(model, prompt, new) for prompt in prompts]
    for name, directory in adapters.items():
        model = PeftModel.from_pretrained(model, directory)
        found[name] = [generated(model, prompt, new) for prompt in prompts]
        model = model.unload()
    return found


def generated(model, prompt, new):
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        use_cache=True,
    )
    return out[0, len(prompt) :].tolist()
