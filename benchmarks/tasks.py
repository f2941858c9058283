"""Every figure of docs/guides/tasks.md: python -m benchmarks.tasks [FOLDER] [TASK ...]

Rows are made of the E2E data set, in three sets of other facts each: those that are trained on, those that choose the
learning rate and the best step, and those that are scored once, at the end, with the adapter that was chosen. The base is the
one that ships with the package; `seq2seq` has a T5 of random weights with the same tokenizer. Every rate of `RATES` is tried;
printed are the run with the lowest loss on the choosing rows, as the guide shows it, and the losses of all. One thread, one
seed, seven minutes on an idle core.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inlay.cli.demo import BASE

E2E = Path(__file__).parents[2] / "shared" / "data" / "e2e"
RATES = ("1e-3", "3e-3")
TRAINED, CHOOSING, SCORED, ANSWERS = 2000, 200, 200, 50
SHOWN = ("data", "task", "held-out", "scores", "note", "merged", "checked", " ")
"""First words of the lines that the guide shows; the others say how the run went on this machine."""

Row = dict[str, Any]


def area(facts: dict[str, str], text: str) -> Row | None:
    """Where the restaurant lies, told from the sentence."""
    return {"text": text, "label": facts["area"]} if "area" in facts else None


def names(facts: dict[str, str], text: str) -> Row | None:
    """Which words of the sentence are the restaurant's name."""
    words, name = text.split(), facts.get("name", "").split()
    for start in range(len(words) - len(name) + 1):
        if name and words[start : start + len(name)] == name:
            inside = range(start, start + len(name))
            return {"tokens": words, "tags": ["NAME" if i in inside else "O" for i in range(len(words))]}
    return None


def answers(facts: dict[str, str], text: str) -> Row | None:
    """Three facts as a sentence that is always built in the same way."""
    if not {"name", "food", "area"} <= set(facts):
        return None
    prompt = f"name : {facts['name']} | food : {facts['food']} | area : {facts['area']}"
    return {"prompt": prompt, "completion": f"{facts['name']} has {facts['food']} food , in the {facts['area']} ."}


def pairs(facts: dict[str, str], text: str) -> Row | None:
    """Facts beside the sentence about them."""
    return {"anchor": " | ".join(f"{key} : {value}" for key, value in facts.items()), "positive": text}


TASKS: dict[str, tuple[Callable[[dict[str, str], str], Row | None], int, list[str]]] = {
    "sequence-classification": (area, 240, []),
    "token-classification": (names, 120, []),
    "seq2seq": (answers, 200, ["--method", "full"]),
    "embedding": (pairs, 120, []),
}
"""Task -> how a row is made, how many steps it is trained, other flags."""


def rows_of(file: str, make: Callable[[dict[str, str], str], Row | None]) -> Iterator[tuple[str, Row]]:
    """(what no two sets may share, the row) for the rows of a file, in an order drawn from one seed."""
    lines = [json.loads(line) for line in (E2E / file).read_text("utf-8").splitlines()]
    random.Random(0).shuffle(lines)
    for line in lines:
        facts = dict(fact.split(" : ", 1) for fact in line["prompt"].strip().split(" | "))
        row = make(facts, line["completion"])
        if row is not None:
            yield row.get("prompt") or line["prompt"], row


def write(make: Callable[[dict[str, str], str], Row | None], stem: str) -> dict[str, int]:
    """Write the three sets, and say how large they are."""
    sets = answer_sets() if make is answers else sets_of(make)
    for name, rows in sets.items():
        Path(f"{stem}-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {name: len(rows) for name, rows in sets.items()}


def sets_of(make: Callable[[dict[str, str], str], Row | None]) -> dict[str, list[Row]]:
    """Half of the validation set's cards for choosing, half for the test; what is trained on has none of them."""
    held_out: dict[str, list[Row]] = {}
    for key, row in rows_of("valid.jsonl", make):
        held_out.setdefault(key, []).append(row)
    keys = sorted(held_out)
    random.Random(1).shuffle(keys)
    half = len(keys) // 2
    trained = [row for key, row in rows_of("train-1.jsonl", make) if key not in held_out][:TRAINED]
    sets = {"choosing": spread(held_out, keys[:half], CHOOSING), "test": spread(held_out, keys[half:], SCORED)}
    return {"train": trained} | sets


def answer_sets() -> dict[str, list[Row]]:
    """Every prompt that the data make, once: the answer depends on nothing else."""
    files = ("train-1.jsonl", "train-2.jsonl", "valid.jsonl")
    rows = [row for _, row in sorted(dict(pair for file in files for pair in rows_of(file, answers)).items())]
    random.Random(1).shuffle(rows)
    return {"train": rows[2 * ANSWERS :], "choosing": rows[:ANSWERS], "test": rows[ANSWERS : 2 * ANSWERS]}


def spread(rows: dict[str, list[Row]], keys: list[str], number: int) -> list[Row]:
    """`number` rows, one of every key before the second of any."""
    turns = max(len(rows[key]) for key in keys)
    return [rows[key][turn] for turn in range(turns) for key in keys if turn < len(rows[key])][:number]


def inlay(*arguments: str) -> tuple[str, dict[str, Any]]:
    """(what a command said, its object of JSON)."""
    done = subprocess.run(
        [sys.executable, "-m", "inlay", *arguments, "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    *said, found = done.stdout.splitlines()
    lines = [line for line in done.stderr.splitlines() if line.startswith(SHOWN)]
    return "\n".join(["$ inlay " + " ".join(arguments), *lines, *said]), json.loads(found)


def run(task: str) -> None:
    """Train at every rate, choose, score once; print what the guide shows."""
    make, steps, more = TASKS[task]
    stem = make.__name__
    base = "t5-random" if task == "seq2seq" else "demo"
    sizes = write(make, stem)
    tried = {}
    for rate in RATES:
        flags = ["--task", task, *more, "--learning-rate", rate, "--eval-data", f"{stem}-choosing.jsonl"]
        flags += ["--max-steps", str(steps), "--output", stem]
        tried[rate] = inlay("train", base, f"{stem}-train.jsonl", *flags)
        Path(stem).rename(f"{stem}-{rate}")
    chosen = min(RATES, key=lambda rate: tried[rate][1]["eval_loss"])
    Path(f"{stem}-{chosen}").rename(stem)
    print(f"\n## {task}: {sizes}\n\n{tried[chosen][0]}")
    print(inlay("eval", base, f"{stem}-test.jsonl", "--task", task, "--adapter", stem)[0])
    print(inlay("merge", base, stem, "--output", f"{stem}-merged")[0])
    print(inlay("eval", f"{stem}-merged", f"{stem}-test.jsonl", "--task", task)[0])
    print("choosing rows, loss by rate:", {rate: round(tried[rate][1]["eval_loss"], 4) for rate in RATES}, flush=True)


def t5_random(directory: Path) -> None:
    """A small T5 of random weights with the base's tokenizer."""
    import torch
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main(folder: str = "", *tasks: str) -> None:
    """Run some tasks, or all."""
    os.chdir(folder or tempfile.mkdtemp())
    shutil.copytree(BASE, "demo")
    t5_random(Path("t5-random"))
    for task in tasks or TASKS:
        run(task)


if __name__ == "__main__":
    main(*sys.argv[1:])
