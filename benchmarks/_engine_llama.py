"""llama.cpp as `benchmarks.engines` asks it, through xllamacpp: the server's slots in this process, without HTTP."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xllamacpp

from benchmarks import _gguf_files


class Asked:
    """A server with 8 slots; rows of different adapters are computed one after the other, as it does."""

    def __init__(self, directory: Path, form: str, adapters: list[Path], num_tokens: int):
        self.mixes = bool(adapters)
        path = directory.with_name(f"{directory.name}-{form}.gguf")
        if not path.exists():
            _gguf_files.write_model(directory, path, form)
        how = xllamacpp.CommonParams()
        how.model.path, how.n_ctx, how.n_parallel, how.cache_ram_mib, how.verbosity = str(path), num_tokens, 8, 0, 1
        how.cpuparams.n_threads = how.cpuparams_batch.n_threads = int(os.environ["OMP_NUM_THREADS"])
        how.lora_adapters = [_adapter(one, directory) for one in adapters]
        self.server, self.pool = xllamacpp.Server(how), ThreadPoolExecutor(8)
        self.numbers = {one.name: number for number, one in enumerate(adapters)}

    def answers(self, rows: list[list[int]], adapters: list[str | None], new: int) -> list[list[int]]:
        """So many new tokens to each row, each for its adapter, the likeliest ones."""
        return list(self.pool.map(lambda row, name: self._answer(row, name, new), rows, adapters))

    def _answer(self, row: list[int], name: str | None, new: int) -> list[int]:
        scales = [dict(id=number, scale=float(one == name)) for one, number in self.numbers.items()]
        how = dict(n_predict=new, temperature=0, samplers=["temperature"], ignore_eos=True, lora=scales)
        text = self.server.handle_completions(dict(prompt=row, **how))["choices"][0]["text"]
        return [int(token) for token in re.findall(r"t(\d+)", text)]


def _adapter(adapter: Path, base: Path) -> xllamacpp.CommonAdapterLoraInfo:
    """An adapter that is off until a request asks for it."""
    path, made = adapter.with_suffix(".gguf"), xllamacpp.CommonAdapterLoraInfo()
    if not path.exists():
        _gguf_files.write_adapter(adapter, base, path)
    made.path, made.scale = str(path), 0.0
    return made
