"""llama.cpp as `tests.engines.prove` asks it, through xllamacpp: its server in this process, without HTTP."""

import importlib.metadata
import os

import xllamacpp

PACKAGES = f"xllamacpp {importlib.metadata.version('xllamacpp')}"


def answers(base, adapters, prompts, new):
    """Adapter -> the text of the likeliest new tokens to each prompt."""
    how = xllamacpp.CommonParams()
    how.model.path, how.n_ctx, how.n_parallel, how.cache_ram_mib, how.verbosity = base, 512, 1, 0, 1
    how.cpuparams.n_threads = how.cpuparams_batch.n_threads = int(os.environ["OMP_NUM_THREADS"])
    how.lora_adapters = [adapter(path) for path in adapters.values()]
    server, found = xllamacpp.Server(how), {}
    for number, name in enumerate(["", *adapters], -1):
        scales = [{"id": other, "scale": float(other == number)} for other in range(len(adapters))]
        asked = {"n_predict": new, "temperature": 0, "samplers": ["temperature"], "lora": scales}
        found[name] = [
            server.handle_completions({"prompt": prompt, **asked})["choices"][0]["text"] for prompt in prompts
        ]
    return found


def adapter(path):
    """One that is off until a request asks for it."""
    made = xllamacpp.CommonAdapterLoraInfo()
    made.path, made.scale = path, 0.0
    return made
