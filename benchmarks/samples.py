"""What adapters say: python -m benchmarks.samples MODEL DATA

For each task of `benchmarks.evidence`, LoRA as Inlay trains it by itself, in a run as those are; then two rows of the task's
test split, taken by their place: the prompt, and the likeliest answer of the base and of the adapter beside the row's own.
"""

import json
import sys
import tempfile
from pathlib import Path

import inlay
from benchmarks import evidence

PLACES = (0, evidence.TESTED // 2)
"""Which of the rows that a run is tested on."""

NEW_TOKENS, WORDS = 64, 12
"""Longest answer; and of a story, which has no prompt, so many words are given."""


def main(model: str, data: str) -> None:
    """Print a table for each task."""
    base = inlay.load(model)
    for task in evidence.TASKS:
        with tempfile.TemporaryDirectory() as folder:
            rows = evidence.splits(task, data, folder)
            evidence.learn(evidence.Run(task), base, rows["train"], f"{folder}/{task}")
            asked = [json.loads(line) for line in Path(rows["test"]).read_text("utf-8").splitlines()]
        prompts, answers = zip(*(parts(asked[place]) for place in PLACES), strict=True)
        raw = "text" in asked[0]
        plain, tuned = (base.generate(prompts, name, max_new_tokens=NEW_TOKENS, raw=raw) for name in (None, task))
        print(f"\n{task}\n\n| prompt | the base | with the adapter | the row |\n|---|---|---|---|")
        for row in zip(prompts, plain, tuned, answers, strict=True):
            print(f"| {' | '.join(map(cell, row))} |", flush=True)
        base.detach(task)


def parts(row: dict[str, str]) -> tuple[str, str]:
    """A prompt, and how its row goes on."""
    if "text" not in row:
        return row["prompt"], row["completion"]
    words = row["text"].split(" ")
    return " ".join(words[:WORDS]), " ".join(words[WORDS:])


def cell(text: str) -> str:
    """A text in a table; a long one is cut."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 280 else f"{text[:280].rsplit(' ', 1)[0]} …"


if __name__ == "__main__":
    main(*sys.argv[1:])
