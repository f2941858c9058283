"""What holds on a real model: python -m benchmarks.evidence MODEL DATA CLAIM ... [--seeds N] [--results FILE]

MODEL is SmolLM2-135M-Instruct, DATA a folder with e2e, medquad, gsm8k and tinystories-sample. A claim is runs that are made
once each, every one a process of its own, and written as a line of FILE (docs/evidence/results.jsonl) when it is done: a claim
that was stopped goes on. A line has the run's settings, the losses per supervised token, before and after, of rows that nothing
was chosen by and of other text, and what it took. `python -m benchmarks.evidence show CLAIM` prints the table of a claim: the
mean over the seeds, with the 95 % interval of Student's t.

    rates     the rate that Inlay takes by itself, and six others
    family    LoRA, full fine-tuning and the rest of the family, each at the best of three rates
    schemes   a base in bfloat16, nf4 and int8
    ranks     1 to 64
    layers    attention, MLP, queries and values, all
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "evidence" / "results.jsonl"

TASKS = {
    "e2e": dict(train="e2e/train-1.jsonl", valid="e2e/valid.jsonl", test="e2e/test.jsonl"),
    "medquad": dict(train="medquad/train.jsonl", valid="medquad/valid.jsonl", test="medquad/test.jsonl"),
    "gsm8k": dict(train="gsm8k/train.jsonl", valid="gsm8k/valid.jsonl", test="gsm8k/test.jsonl"),
    "stories": {split: f"tinystories-sample/{split}.jsonl" for split in ("train", "valid", "test")},
}
"""Facts of a restaurant into a sentence, questions of health, school mathematics, and the style of stories for children."""

STEPS, BATCH, LENGTH, HELD_OUT, TESTED = 60, 8, 512, 60, 120
"""Steps, rows of each, tokens of a row at most, rows that the best state is chosen by, and rows that it is tested on."""

FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
METHODS = ("lora", "dora", "vera", "ia3", "loha", "oft", "bottleneck", "prefix", "prompt", "bitfit", "full")
LAYERS = {
    "all": None,
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "queries and values": ("q_proj", "v_proj"),
}
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""By the number of seeds: so many standard errors is the interval wide to either side."""


class Run(NamedTuple):
    """One run of a claim: what it is called in the table, and how it differs from what Inlay does by itself."""

    claim: str
    task: str
    name: str
    method: str = "lora"
    fields: Mapping[str, Any] = MappingProxyType({})
    factor: float = 1.0
    scheme: str | None = None
    seed: int = 0

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return json.dumps({**self._asdict(), "fields": dict(self.fields)}, sort_keys=True)


def runs(claim: str, seeds: int) -> Iterator[Run]:
    """The runs of a claim."""
    for seed in range(seeds):
        for task in TASKS:
            match claim:
                case "rates":
                    for factor in FACTORS:
                        yield Run(claim, task, f"x {factor:g}", factor=factor, seed=seed)
                case "family":
                    for method in METHODS:
                        for factor in (0.5, 1.0, 2.0):
                            yield Run(claim, task, f"{method} x {factor:g}", method, factor=factor, seed=seed)
                case "schemes":
                    for scheme in (None, "nf4", "int8"):
                        yield Run(claim, task, scheme or "bfloat16", scheme=scheme, seed=seed)
                case "ranks":
                    for rank in (1, 2, 4, 8, 16, 32, 64):
                        yield Run(claim, task, f"r={rank}", fields={"r": rank, "lora_alpha": 2 * rank}, seed=seed)
                case "layers":
                    for name, modules in LAYERS.items():
                        fields = {} if modules is None else {"target_modules": list(modules)}
                        yield Run(claim, task, name, fields=fields, seed=seed)
                case _:
                    sys.exit(f"there is no claim {claim}")


def main(model: str, data: str, *words: str) -> None:
    """Make the runs of some claims that are not there yet."""
    seeds, results, claims = 3, RESULTS, []
    given = iter(words)
    for word in given:
        if word == "--seeds":
            seeds = int(next(given))
        elif word == "--results":
            results = Path(next(given))
        else:
            claims.append(word)
    results.parent.mkdir(parents=True, exist_ok=True)
    done = {line["key"] for line in read(results)}
    for run in (run for claim in claims for run in runs(claim, seeds) if run.key not in done):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.evidence", "worker", model, data, run.key]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            print(f"{run.claim} {run.task} {run.name}: {made.stderr.splitlines()[-1:]}", flush=True)
            continue
        line = made.stdout.splitlines()[-1]
        with results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        found = json.loads(line)
        print(
            f"{run.claim:8} {run.task:8} {run.name:20} seed {run.seed}: {found['before']:.4f} -> {found['test']:.4f}, "
            f"other text {found['other_before']:.4f} -> {found['other']:.4f}, {found['seconds']:.0f} s",
            flush=True,
        )


def worker(model: str, data: str, key: str) -> None:
    """Make one run, and print its line."""
    import torch

    import inlay
    from inlay import methods
    from inlay.evaluation.loss import evaluate
    from inlay.training.settings import learning_rate

    torch.set_num_threads(2)
    run, start = Run(**json.loads(key)), time.perf_counter()
    base = inlay.load(model, quantize=run.scheme)
    method = methods.find(run.method)(**run.fields)
    rate = run.factor * learning_rate(base.model.config)[0] * method.learning_rate_scale
    with tempfile.TemporaryDirectory() as folder:
        splits = {name: _first(Path(data) / path, number, Path(folder) / f"{name}.jsonl") for name, path, number in (
            ("train", TASKS[run.task]["train"], 2000), ("valid", TASKS[run.task]["valid"], HELD_OUT),
            ("test", TASKS[run.task]["test"], TESTED), ("other", TASKS[_other(run.task)]["test"], 24),
        )}  # fmt: skip
        report = inlay.train(
            base, splits["train"], method=method, output=f"{folder}/it", eval_data=splits["valid"], max_steps=STEPS,
            batch_size=BATCH, max_length=LENGTH, too_long="drop", learning_rate=rate, seed=run.seed, check="off",
            progress=False,
        )  # fmt: skip

        def loss(name: str, adapter: str | None) -> float:
            read = base.spec.read(splits[name])
            rows = base.spec.prepare(read.rows, base, LENGTH, "completions", "drop").examples
            return evaluate(base, adapter, rows)

        found = {
            "key": run.key, **json.loads(run.key), "rate": rate, "before": loss("test", None), "test": loss("test", "it"),
            "valid": report.eval_loss, "other_before": loss("other", None), "other": loss("other", "it"),
            "trainable": report.trainable_parameters, "adapter_bytes": report.adapter_bytes,
            "tokens": report.tokens, "train_seconds": report.seconds, "peak_bytes": report.peak_rss_bytes,
            "seconds": time.perf_counter() - start, "version": inlay.__version__,
        }  # fmt: skip
    print(json.dumps(found))


def _other(task: str) -> str:
    """Text that has nothing to do with a task."""
    return "gsm8k" if task == "stories" else "stories"


def _first(path: Path, number: int, target: Path) -> str:
    """A file of so many rows of another, spread evenly over it; of several answers that it has the first."""
    from inlay.data.split import spread

    rows = spread([json.loads(line) for line in path.read_text("utf-8").splitlines()], number)
    rows = [{"completion": row["references"][0], **row} if "references" in row else row for row in rows]
    rows = [{name: row[name] for name in ("prompt", "completion", "text") if name in row} for row in rows]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(target)


def read(results: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines of all runs that are done."""
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()] if results.exists() else []


def show(claim: str, results: str = str(RESULTS)) -> None:
    """Print the table of a claim."""
    lines = [line for line in read(Path(results)) if line["claim"] == claim]
    print(f"| {claim} | {' | '.join(TASKS)} |\n|---|{'---|' * len(TASKS)}")
    for name in dict.fromkeys(line["name"] for line in lines):
        cells = [
            interval([line["test"] for line in lines if line["name"] == name and line["task"] == task])
            for task in TASKS
        ]
        print(f"| {name} | {' | '.join(cells)} |")


def interval(values: list[float]) -> str:
    """The mean of some runs, and how far the 95 % interval reaches to either side; nothing where there are none."""
    if len(values) < 2:
        return f"{values[0]:.4f}" if values else ""
    half = T_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", *rest]:
            worker(*rest)
        case ["show", *rest]:
            show(*rest)
        case rest:
            main(*rest)
