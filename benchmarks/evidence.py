"""What holds on a real model: python -m benchmarks.evidence MODEL DATA CLAIM ... [--seeds N] [--at-once N] [--results FILE]

MODEL is SmolLM2-135M-Instruct, DATA a folder with e2e, medquad, gsm8k and tinystories-sample. A claim is a number of runs,
each a process of its own, written as a line of FILE (docs/evidence/results.jsonl) when it is done: a claim that was stopped
goes on, and a run that two claims share is made once. A line has the run's settings, its losses per supervised token on rows
that nothing was chosen by and on other text, and what it took. `python -m benchmarks.evidence show CLAIM` prints the table of
a claim: the mean over the seeds, with the 95 % interval of Student's t; `show CLAIM other` that of the losses on other text;
`plot CLAIM FILE.png` draws it, `overview FILE.png` the figure of the README.

    rates     the rate that Inlay takes by itself, and six others
    family    LoRA, full fine-tuning and the rest of the family, each at the best of three or more rates, by the first seed
    schemes   a base in bfloat16, nf4 and int8, and an adapter that begins with what nf4 lost
    ranks     1 to 64, at the lora_alpha that Inlay takes by itself
    alphas    4 to 256, with the rates that Inlay then takes: B's alone makes up for it; and where A's does too
    layers    attention, MLP, queries and values, all; attention with as many weights as all
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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

STEPS, BATCH, LENGTH, VALID, TESTED, OTHER = 48, 4, 192, 24, 48, 16
"""Steps, rows of each, tokens of a row at most; rows that a rate is chosen by, that are tested on, and of other text."""

FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
METHODS = {
    "lora": 1.0, "dora": 1.0, "ia3": 10.0, "bottleneck": 5.0, "prefix": 10.0, "prompt": 10.0, "ln_tuning": 10.0, "full": 0.1,
}  # fmt: skip
"""Where the search for the rate of each begins, in rates that Inlay takes for LoRA."""

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LAYERS: dict[str, dict[str, Any]] = {
    "all": {},
    "attention": {"target_modules": ATTENTION},
    "attention, r=42": {"target_modules": ATTENTION, "r": 42},
    "mlp": {"target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "queries and values": {"target_modules": ["q_proj", "v_proj"]},
}
"""With r=42, attention alone has as many weights of LoRA as all layers have by themselves."""

RANKS, RANK = (1, 2, 4, 8, 16, 32, 64), 16
"""Ranks to compare, and the one that Inlay takes by itself."""

ALPHAS, ALPHA = (4, 16, 32, 64, 256), 32
"""Likewise."""

TAKEN = (("adapter_bytes", 1e6, "MB of the file"), ("peak_bytes", 1e9, "GB of memory"))
"""What a run takes: the field of its line, the unit, and what it is called in a figure."""

T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""By the number of seeds: so many standard errors is the interval wide to either side."""


class Run(NamedTuple):
    """One run: how it differs from what Inlay does by itself."""

    task: str
    method: str | None = "lora"
    fields: Mapping[str, Any] = MappingProxyType({})
    factor: float = 1.0
    """Its rate, in rates that Inlay takes for LoRA."""
    scheme: str | None = None
    seed: int = 0

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return json.dumps({**self._asdict(), "fields": dict(self.fields)}, sort_keys=True)


def runs(claim: str, seed: int, done: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Run]]:
    """The runs of a claim with one seed, each with its name in the table; `done` are the lines of those that are, by key."""
    for task in TASKS:
        match claim:
            case "rates":
                for factor in FACTORS:
                    yield f"x {factor:g}", Run(task, factor=factor, seed=seed)
            case "family":
                for method in METHODS:
                    tried, best = tuned(task, method, done)
                    if best:
                        yield method, best._replace(seed=seed)
                    else:
                        yield from ((f"{method} x {run.factor:g}", run) for run in tried)
            case "schemes":
                for scheme in (None, "nf4", "int8"):
                    if scheme:
                        yield f"{scheme}, before", Run(task, None, scheme=scheme)
                    yield scheme or "bfloat16", Run(task, scheme=scheme, seed=seed)
                    if scheme == "nf4":
                        yield "nf4, loftq", Run(task, fields={"initializer": "loftq"}, scheme=scheme, seed=seed)
            case "ranks":
                for rank in RANKS:
                    fields = {} if rank == RANK else {"r": rank}
                    yield f"r={rank}", Run(task, fields=fields, seed=seed)
            case "alphas":
                for alpha in ALPHAS:
                    up = ALPHA / alpha
                    fields = {} if alpha == ALPHA else {"lora_alpha": alpha, "loraplus_lr_ratio": up}
                    yield f"lora_alpha={alpha}", Run(task, fields=fields, seed=seed)
                    if alpha != ALPHA:
                        both = Run(task, fields={"lora_alpha": alpha}, factor=up, seed=seed)
                        yield f"lora_alpha={alpha}, A too", both
            case "layers":
                for name, fields in LAYERS.items():
                    yield name, Run(task, fields=fields, seed=seed)
            case _:
                sys.exit(f"there is no claim {claim}")


def tuned(task: str, method: str, done: Mapping[str, Mapping[str, Any]]) -> tuple[list[Run], Run | None]:
    """The runs of a method at all rates that are looked at, and the best of them, when it is known.

    Half the rate that the search begins with, it and twice it; and where the first or last of them is the best, the next one.
    """
    low, high = 2, 5
    while True:
        tried = [Run(task, method, factor=METHODS[method] * factor) for factor in FACTORS[low:high]]
        if any(each.key not in done for each in tried):
            return tried, None
        best = min(tried, key=lambda each: done[each.key]["valid"])
        if best == tried[0] and low:
            low -= 1
        elif best == tried[-1] and high < len(FACTORS):
            high += 1
        else:
            return tried, best


def main(model: str, data: str, *words: str) -> None:
    """Make the runs of some claims that are not there yet."""
    seeds, at_once, results, claims = 3, 1, RESULTS, []
    given = iter(words)
    for word in given:
        if word == "--seeds":
            seeds = int(next(given))
        elif word == "--at-once":
            at_once = int(next(given))
        elif word == "--results":
            results = Path(next(given))
        else:
            claims.append(word)
    results.parent.mkdir(parents=True, exist_ok=True)

    def made(run: Run) -> None:
        """Make one run, and write its line."""
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.evidence", "worker", model, data, run.key]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})
        if done.returncode:
            print(f"{run.key}: {done.stderr.splitlines()[-1:]}", flush=True)
            return
        line = done.stdout.splitlines()[-1]
        with results.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        found = json.loads(line)
        print(f"{run.key}: {found['test']:.4f}, {found['other']:.4f}, {found['seconds']:.0f} s", flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        for seed in range(seeds):
            for claim in claims:
                failed: set[str] = set()
                while True:  # a rate that was the best may want the next one
                    done = read(results)
                    asked = [Run(task, None) for task in TASKS] + [run for _, run in runs(claim, seed, done)]
                    missing = {run.key: run for run in asked if run.key not in done and run.key not in failed}
                    if not missing:
                        break
                    list(pool.map(made, missing.values()))
                    failed |= missing.keys() - read(results).keys()


def worker(model: str, data: str, key: str) -> None:
    """Make one run, and print its line."""
    import inlay

    run, start = Run(**json.loads(key)), time.perf_counter()
    base = inlay.load(model, quantize=run.scheme)
    found = {"key": run.key, **json.loads(run.key)}
    with tempfile.TemporaryDirectory() as folder:
        rows = splits(run.task, data, folder)
        if run.method is not None:
            rate, report = learn(run, base, rows["train"], f"{folder}/it")
            found |= {
                "rate": rate, "trainable": report.trainable_parameters, "adapter_bytes": report.adapter_bytes,
                "tokens": report.tokens, "train_seconds": report.seconds, "peak_bytes": report.peak_rss_bytes,
            }  # fmt: skip
        for name in ("valid", "test", "other"):
            adapter = None if run.method is None else "it"
            found[name] = held_out_loss(base, adapter, rows[name], LENGTH, too_long(run.task))
    print(json.dumps({**found, "seconds": time.perf_counter() - start, "version": inlay.__version__}))


def splits(task: str, data: str, folder: str) -> dict[str, str]:
    """Files in a folder with the rows of a task to train on, to choose by and to test on, and with other text."""
    return {name: first(Path(data) / path, number, Path(folder) / f"{name}.jsonl") for name, path, number in (
        ("train", TASKS[task]["train"], 2000), ("valid", TASKS[task]["valid"], VALID),
        ("test", TASKS[task]["test"], TESTED), ("other", TASKS[_other(task)]["test"], OTHER),
    )}  # fmt: skip


def learn(run: Run, base: Any, rows: str, output: str) -> tuple[float, Any]:
    """The rate of a run and the report of its adapter, trained on a file of rows; it stays attached, named after its folder."""
    import inlay
    from inlay import methods
    from inlay.training.settings import learning_rate

    assert run.method is not None
    method = methods.find(run.method)(**run.fields)
    rate = run.factor * learning_rate(base.model.config)[0]
    report = inlay.train(
        base, rows, method=method, output=output, eval_fraction=0.0, max_steps=STEPS, batch_size=BATCH, max_length=LENGTH,
        too_long=too_long(run.task), learning_rate=rate, seed=run.seed, check="off", progress=False,
    )  # fmt: skip
    return rate, report


def held_out_loss(base: Any, adapter: str | None, path: str, length: int, too_long: str = "drop") -> float:
    """Nats a supervised token of the rows of a file."""
    from inlay.evaluation.loss import evaluate

    return evaluate(
        base, adapter, base.spec.prepare(base.spec.read(path).rows, base, length, "completions", too_long).examples
    )


def too_long(task: str) -> str:
    """What becomes of longer rows: of stories there are too few to leave any out."""
    return "window" if task == "stories" else "drop"


def _other(task: str) -> str:
    """Text that has nothing to do with a task."""
    return "gsm8k" if task == "stories" else "stories"


def first(path: Path, number: int, target: Path) -> str:
    """A file of so many rows of another, spread evenly over it; of several answers that it has the first."""
    from inlay.data.split import spread

    rows = spread([json.loads(line) for line in path.read_text("utf-8").split("\n") if line], number)
    rows = [{"completion": row["references"][0], **row} if "references" in row else row for row in rows]
    rows = [{name: row[name] for name in ("prompt", "completion", "text") if name in row} for row in rows]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(target)


def read(results: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The lines of all runs that are done, by their keys."""
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def losses(claim: str, what: str = "test", results: Path = RESULTS) -> dict[str, list[list[float]]]:
    """Of each name in the table of a claim, for each task, the losses with the seeds that all names are done with there.

    A name of which nothing is done has none, and holds up no other.
    """
    done = read(results)
    keys = {("before", task): dict.fromkeys(range(max(T_95)), Run(task, None).key) for task in TASKS}
    for seed in range(max(T_95)):
        for name, run in runs(claim, seed, done):
            keys.setdefault((name, run.task), {})[seed] = run.key
    made = {place: {seed: key for seed, key in seeds.items() if key in done} for place, seeds in keys.items()}

    def found(name: str, task: str) -> list[float]:
        own = made.get((name, task), {})
        others = [seeds for (_, its), seeds in made.items() if its == task and seeds]
        common = [seed for seed in sorted(own) if all(seed in seeds for seeds in others)]
        return [done[key][what] for key in dict.fromkeys(own[seed] for seed in common)]

    return {name: [found(name, task) for task in TASKS] for name in dict.fromkeys(name for name, _ in keys)}


def show(claim: str, what: str = "test", results: str = str(RESULTS)) -> None:
    """Print the table of a claim: of what is learned (test), or of what becomes of other text (other).

    The last column has how far the losses lie above the lowest of their tasks, in %, on average.
    """
    print(f"| {claim} | {' | '.join(TASKS)} | above the best |\n|---|{'---|' * (len(TASKS) + 1)}")
    table = losses(claim, what, Path(results))
    best = [min(map(statistics.mean, filter(None, tasks)), default=0.0) for tasks in zip(*table.values(), strict=True)]
    for name, tasks in table.items():
        above = [statistics.mean(some) / least - 1 for some, least in zip(tasks, best, strict=True) if some]
        last = f"{statistics.mean(above):.1%}" if len(above) == len(TASKS) else ""
        print(f"| {name} | {' | '.join(map(interval, tasks))} | {last} |")


def plot(claim: str, file: str, results: str = str(RESULTS)) -> None:
    """Draw the table of a claim: a panel for each task."""
    from inlay import picture

    table = losses(claim, results=Path(results))
    before = table.pop("before")
    with picture.figure(2.6 * len(TASKS), 3.2) as (figure, png):
        for number, (task, axes) in enumerate(zip(TASKS, figure.subplots(1, len(TASKS)), strict=True)):
            found = [(place, tasks[number]) for place, tasks in enumerate(table.values()) if tasks[number]]
            for place, some in found:
                axes.errorbar(place, statistics.mean(some), half_width(some), fmt="o", color="C0", ms=4)
            if before[number]:
                axes.axhline(before[number][0], color="gray", linestyle=":")
            axes.set_xticks(range(len(table)), list(table), rotation=90, fontsize=8)
            axes.set_title(task, fontsize=10)
        figure.supylabel("nats a token, held out; dotted: before", fontsize=8)
    Path(file).write_bytes(png.getvalue())


def overview(file: str, results: str = str(RESULTS)) -> None:
    """Draw LoRA beside full fine-tuning: the losses of each task, and the file and the memory that they take."""
    from inlay import picture

    table, lines = losses("family", results=Path(results)), read(Path(results)).values()
    shown = {"before": ("the base", "0.75"), "full": ("full fine-tuning", "0.45"), "lora": ("LoRA", "C0")}
    with picture.figure(9, 3.2) as (figure, png):
        axes, *others = figure.subplots(1, 3, width_ratios=(5, 1.2, 1.2))
        for place, (name, (label, color)) in enumerate(shown.items()):
            heights = [statistics.mean(some) for some in table[name]]
            errors = [half_width(some) or float("nan") for some in table[name]]
            left = [task + 0.27 * (place - 1) for task in range(len(TASKS))]
            axes.bar(left, heights, 0.25, yerr=errors, label=label, color=color, capsize=2, error_kw={"lw": 1})
        axes.set_xticks(range(len(TASKS)), list(TASKS))
        axes.set_title("nats a token on held-out rows", fontsize=10)
        axes.legend(fontsize=8, frameon=False)
        for panel, (field, unit, title) in zip(others, TAKEN, strict=True):
            for name in ("full", "lora"):
                plain = [line for line in lines if line["method"] == name and not line["fields"] and not line["scheme"]]
                height = max(line[field] for line in plain) / unit
                bar = panel.bar(shown[name][0].split(" ")[0], height, 0.6, color=shown[name][1])
                panel.bar_label(bar, fmt="{:,.3g}", fontsize=9)
            panel.set_title(title, fontsize=10)
            panel.margins(y=0.15)
        for each in (axes, *others):
            each.spines[["top", "right"]].set_visible(False)
    Path(file).write_bytes(png.getvalue())


def interval(values: list[float]) -> str:
    """The mean of some runs, and how far the 95 % interval reaches to either side; nothing where there are none."""
    if len(values) < 2:
        return f"{values[0]:.4f}" if values else ""
    return f"{statistics.mean(values):.4f} ± {half_width(values):.4f}"


def half_width(values: list[float]) -> float:
    """How far the 95 % interval of a mean reaches to either side; 0 for one value, which says nothing of it."""
    return T_95.get(len(values), 2.0) * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", *rest]:
            worker(*rest)
        case ["show", *rest]:
            show(*rest)
        case ["plot", *rest]:
            plot(*rest)
        case ["overview", *rest]:
            overview(*rest)
        case rest:
            main(*rest)
