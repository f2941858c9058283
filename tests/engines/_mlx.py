"""mlx-lm as `tests.engines.prove` asks it.

It looks for rope_theta beside the rest of config.json, where transformers 5 has it in rope_parameters, and takes 10,000 where it
does not find it. So it is told.
"""

import importlib.metadata
import json
from pathlib import Path

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

PACKAGES = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mlx-lm", "mlx-cpu"))


def answers(base, adapters, prompts, new):
    """Adapter -> the likeliest new tokens to each prompt."""
    config = json.loads((Path(base) / "config.json").read_text())
    found, told = {}, {"rope_theta": config["rope_parameters"]["rope_theta"]}
    for name, directory in {"": None, **adapters}.items():
        model, _ = load_model(Path(base), model_config=told)
        model.set_dtype(mx.float32)
        if directory:
            load_adapters(model, directory)
            model.eval()
        found[name] = [
            [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=new)] for prompt in prompts
        ]
    return found
