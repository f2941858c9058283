"""Fine-tuning on real rows, from the command to the end: python -m benchmarks.fine_tune DATA TOKENIZER [ROWS] [DTYPE] [WAY ...]

DATA has lines with `prompt` and `completion`; TOKENIZER is a directory. A model of 135m's shape with random weights learns ROWS
of them once, in batches of 8, r=16 on all linear layers, on two threads, by TRL as it comes, by TRL with `packing`, and by
Inlay; each way is a process of its own, one after the other. Printed are real tokens per second over the training, the seconds
from the command to the end of the first optimiser step, the peak of resident memory, and the loss per supervised token of the
untrained model on these rows, with their number: the same for all that train on the same tokens. TRL has to be installed.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("trl", "trl, packing", "inlay")


def main(data: str, tokenizer: str, rows: str = "32", dtype: str = "float32", *ways: str) -> None:
    """Run the ways one after the other, and print a line for each."""
    import torch
    from transformers import AutoTokenizer

    from benchmarks import shapes
    from inlay.text.template import render

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        vocabulary = len(json.loads((Path(tokenizer) / "tokenizer.json").read_text())["model"]["vocab"])
        shapes.build("135m", getattr(torch, dtype), vocab_size=vocabulary).save_pretrained(model)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(tokenizer) / name, model / name)
        lines = [json.loads(line) for line in Path(data).read_text().splitlines()[: int(rows)]]
        _write(Path(folder) / "inlay.jsonl", lines)
        # TRL joins prompt and completion as they are: it is given the prompts as Inlay renders them
        as_text = AutoTokenizer.from_pretrained(model)
        for row in lines:
            row["prompt"] = render(as_text, [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True)
        _write(Path(folder) / "trl.jsonl", lines)
        print(f"135m, {rows} rows, {dtype}")
        for way in ways or WAYS:
            rows_of = Path(folder) / f"{way.split(',')[0]}.jsonl"
            given = [way, str(model), str(rows_of), dtype, str(time.time())]
            command = [sys.executable, "-m", "benchmarks.fine_tune", "worker", *given]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            r = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{way:13} {r['tokens'] / r['seconds']:7.1f} tokens/s, first step after {r['first_step']:6.1f} s, "
                f"peak {r['peak_bytes'] / 1e9:.2f} GB, loss {r['loss']:.4f} on {r['supervised']} tokens",
                flush=True,
            )


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps({key: row[key] for key in ("prompt", "completion")}) + "\n" for row in rows))


def worker(way: str, model: str, data: str, dtype: str, start: str) -> None:
    """One way: its figures as a line of JSON."""
    import torch

    from inlay.process import peak_rss_bytes

    torch.set_num_threads(2)
    result = (_inlay if way == "inlay" else _trl)(way, model, data, dtype, float(start))
    result["peak_bytes"] = peak_rss_bytes()
    print(json.dumps(result))


def _trl(way: str, model: str, data: str, dtype: str, start: float) -> dict[str, Any]:
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    first: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            first.append(time.time() - start)

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = load_dataset("json", data_files=data, split="train")
    settings = SFTConfig(
        output_dir=str(Path(model).parent / "trl"), per_device_train_batch_size=8, num_train_epochs=1,
        packing=way.endswith("packing"), report_to=[], use_cpu=True, save_strategy="no", learning_rate=1e-4,
        disable_tqdm=True, **({} if dtype == "bfloat16" else {"bf16": False}),
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)),
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    tokens = sum(map(len, trainer.train_dataset["input_ids"]))
    loss, supervised = _trl_loss(trainer)
    spent = time.time()
    trainer.train()
    seconds = time.time() - spent
    return dict(
        tokens=tokens, seconds=seconds, first_step=first[0] - loss["seconds"], loss=loss["loss"], supervised=supervised
    )


def _trl_loss(trainer: Any) -> tuple[dict[str, float], int]:
    """The loss per supervised token of the model as it is, on the batches that TRL makes."""
    import torch

    spent, total, supervised = time.time(), 0.0, 0
    with torch.no_grad():
        for given in trainer.get_train_dataloader():
            count = int((given["labels"][:, 1:] != -100).sum())
            total += trainer.model(**{key: value for key, value in given.items()}).loss.item() * count
            supervised += count
    return dict(loss=total / supervised, seconds=time.time() - spent), supervised


def _inlay(way: str, model: str, data: str, dtype: str, start: float) -> dict[str, Any]:
    import inlay
    from inlay.evaluation.loss import evaluate
    from inlay.runs.progress import Progress
    from inlay.training.job import prepare
    from inlay.training.run_spec import RunSpec
    from inlay.training.settings import Settings

    first: list[float] = []

    def listen(progress: Progress) -> None:
        if progress.step == 1 and not first:
            first.append(time.time() - start)

    base = inlay.load(model, dtype=dtype)
    settings = Settings(batch_size=8, learning_rate=1e-4, eval_fraction=0)
    output = Path(model).parent / "adapter"
    job = prepare(base, data, RunSpec(method=inlay.Lora(r=16, lora_alpha=32), output=output, settings=settings))
    report = job.run(listen)
    return dict(
        tokens=report.tokens,
        seconds=report.tokens / report.tokens_per_second,
        first_step=first[0],
        loss=evaluate(base, None, job.rows.train.examples),
        supervised=report.supervised_tokens,
    )


if __name__ == "__main__":
    worker(*sys.argv[2:]) if sys.argv[1:2] == ["worker"] else main(*sys.argv[1:])
