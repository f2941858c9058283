"""docs/reference/engines.md: what `inlay.engines` says of each engine, and what `tests.engines.prove` found."""

import json
from pathlib import Path

from inlay import engines

ROOT = Path(__file__).parents[2]
FOUND, PAGE = Path(__file__).with_name("found.json"), ROOT / "docs" / "reference" / "engines.md"

ABOUT = """# Other engines

What `inlay export MODEL ADAPTER --for ENGINE` writes, and what it refuses. Both tables are generated: the first, from `inlay/engines.py`, is
what the engines' sources say; the second, by `scripts/test --engines`, is what the engines of its rows answered.

## What an adapter may have

*as it is*: by its source, the engine does what the files say. *export*: it passes over that or refuses it, and `inlay export` writes the same change
without it. *convert*, *merge*: it has no way to do that; `inlay convert` makes a LoRA of the adapter, `inlay merge` a model that needs none. *serve*:
no weight can hold it, and `inlay serve` answers with it.
"""
PROVED = """
## What was asked of them

SmolLM2-135M-Instruct in float32 (llama.cpp: a file of `inlay merge --gguf`'s writer in bfloat16) answers four questions, each with the
likeliest tokens, at most 32. Four adapters that change every answer: a plain LoRA; one with `use_rslora`; one with `rank_pattern` and
`alpha_pattern`; one that `inlay convert` made of a DoRA. Each as exported for the engine: vLLM and llama.cpp got a plain LoRA of every one, so
that this shows what `inlay export` writes, and not what they do with `use_rslora` or patterns. Equal answers to those of Inlay:
"""
NOTES = """
SGLang and Ollama have not been asked: the first needs a GPU, and no package index has the other. For SGLang its sources were read, for how it
scales and which layers it keeps together. For Ollama the file is the one that llama.cpp loads; the Modelfile beside it was tried with a small
interpreter of its templates in our tests, not with Ollama's.

- mlx-lm 0.32 looks for `rope_theta` at the top of `config.json`, where transformers 5 has it in `rope_parameters`, and takes 10,000
  where it does not find it: with a base that transformers 5 saved every answer is another one, with an adapter or without. Move it there.
- By its source vLLM 0.32 reads `use_rslora` and the patterns. It gets a plain LoRA all the same.
- By its source, SGLang 0.5.23 multiplies by lora_alpha / r whatever the other settings say. An adapter of `q_proj` without `v_proj` is an error there: it
  gets changes of zero for the layers that belong together.
- llama.cpp takes `alpha` 0 for a scaling of 1, and so does Inlay as it reads such a file.
"""


def text():
    """The page."""
    names = [name for name in engines.FORMS]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines.append(f"| form | {' | '.join(engines.FORMS.values())} |")
    for feature in engines.FEATURES:
        cells = [feature.cure if name in feature.keeps_out else "as it is" for name in names]
        lines.append(f"| {feature.name} | {' | '.join(cells)} |")
    found = json.loads(FOUND.read_text())
    kinds = list(dict.fromkeys(kind for about in found.values() for kind in about["equal"]))
    proved = [f"| engine | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for about in found.values():
        proved.append(f"| {about['packages']} | {' | '.join(about['equal'].get(kind, '') for kind in kinds)} |")
    return "\n".join([ABOUT, *lines, PROVED, *proved, NOTES])
