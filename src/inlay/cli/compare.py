"""Train several methods on the same rows, and compare them."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from inlay import methods, screen
from inlay.base.base import Base
from inlay.data.forms import read_rows
from inlay.data.split import spread
from inlay.errors import ConfigError, explain
from inlay.evaluation import score
from inlay.evaluation.forgetting import growth
from inlay.formats.peft import TENSORS
from inlay.io import output as output_directory
from inlay.io import records
from inlay.options.flags import Data, OnBase
from inlay.options.types import found_in
from inlay.report import curve
from inlay.runs.recording import note
from inlay.screen import count, say, size
from inlay.tasks.causal_lm import prepare
from inlay.training import keep
from inlay.training.rows import longest_row
from inlay.training.settings import Settings

TABLE, PICTURE, RESULTS = "compare.md", "compare.png", "compare.json"
FORGETTING_ROWS = 200
"""Rows of other text that forgetting is measured on, spread over it."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What one method did."""

    method: str
    loss: float | None
    """Held-out loss, in nats per token."""
    bleu: float | None
    trainable_parameters: int
    adapter_bytes: int
    seconds: float
    peak_rss_bytes: int
    forgetting: float | None
    """How much the loss on other text grew, in nats per token."""
    learning_rate: float
    reason: str = ""
    """Why it was not trained."""


EVERY = found_in(methods.TABLE, several=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(OnBase):
    """Each has the same budget; what it learned, cost and forgot is shown. Each is trained in a process of its own, so that its
    memory is its own; defaults are those of `inlay train`."""

    data: Data
    """The rows: a JSONL, JSON, CSV or Parquet file, a folder of them, or a data set on the hub."""

    output: Path
    """The directory for the table, the picture and the adapters; it must not exist."""

    methods: Annotated[str, EVERY] = "lora,dora,prefix,prompt,bottleneck,ia3,bitfit,full"
    """Which, names with commas between."""

    eval_data: str | None = None
    """Held-out rows; without it, a part of the data is held out."""

    other: str | None = None
    """Rows of other text: how much worse each adapter is on it than the base is what it forgot."""

    bleu: int = 0
    """Answer this many of the held-out prompts (of --eval-data) and score the answers against all references."""

    settings: Settings
    """How to train."""

    def run(self) -> int:
        """Train each, measure each, write the table."""
        names = [name.strip() for name in self.methods.split(",")]
        for name in names:
            methods.find(name)
        if self.bleu and self.eval_data is None:
            raise ConfigError(explain("there are no rows to score answers on", found="--bleu", do="--eval-data FILE"))
        if self.bleu:
            score.check_installed(["bleu"])
        base = self.load()
        say("base", f"{base.describe()} · {base.fingerprint}")
        note(base=base.about_base["base"], adapter={"path": str(self.output)}, data={"source": self.data})
        with output_directory.new_directory(self.output) as directory:
            results = self._each(base, names, directory)
            interrupted = len(results) < len(names)
            with output_directory.uninterrupted():
                columns = self._write(directory, results)
        note(scores={result.method: dataclasses.asdict(result) for result in results})
        print(columns)
        drawn = f"{PICTURE}, " if (self.output / PICTURE).exists() else ""
        say("wrote", f"{self.output}/  ({TABLE}, {drawn}{RESULTS}, and the adapters)")
        if interrupted:
            say("stopped", f"in {names[len(results)]}; what was trained before is kept")
        if self.json:
            screen.emit({"results": [dataclasses.asdict(result) for result in results]})
        return 130 if interrupted else int(all(result.reason for result in results))

    def _each(self, base: Base, names: Sequence[str], directory: Path) -> list[Result]:
        """What the methods did, one after the other; of fewer than all where Ctrl-C came and there is something to keep."""
        results: list[Result] = []
        try:
            for number, name in enumerate(names, 1):
                say("method", f"{name} ({number} of {len(names)})")
                results.append(self._one(base, name, directory))
        except KeyboardInterrupt:
            if not any((directory / name / TENSORS).exists() for name in names):
                raise
        return results

    def _write(self, directory: Path, results: Sequence[Result]) -> str:
        """The table, the numbers and the picture; returns the table."""
        columns = table(results)
        numbers = json.dumps([dataclasses.asdict(result) for result in results], indent=2)
        (directory / TABLE).write_text(columns + "\n", "utf-8", "backslashreplace")
        (directory / RESULTS).write_text(numbers, "utf-8")
        with keep.beside("the picture was not drawn"):
            (directory / PICTURE).write_bytes(curve.compared([result for result in results if not result.reason]))
        return columns

    def _one(self, base: Base, name: str, directory: Path) -> Result:
        """Train one method, then measure its adapter beside the base."""
        report, reason = self._train(name, directory / name)
        if reason:
            say("", reason)
            return Result(name, None, None, 0, 0, 0.0, 0, None, 0.0, reason)
        adapter = base.attach(directory / name, name).name
        forgetting = self._forgotten(base, adapter) if self.other else None
        bleu = self._bleu(base, adapter) if self.bleu else None
        rate = records.read(directory / name)["training"]["learning_rate"]
        base.detach(adapter)
        kept = ("trainable_parameters", "adapter_bytes", "seconds", "peak_rss_bytes")
        values = {key: report[key] for key in kept}
        return Result(name, report["eval_loss"], bleu, **values, forgetting=forgetting, learning_rate=rate)

    def _train(self, name: str, directory: Path) -> tuple[dict[str, Any], str]:
        """The report of `inlay train`, or why it refused."""
        given = {"model", "data", "quantize", "dtype", "device", "device_memory", "eval_data"}
        values = {key: getattr(self, key) for key in given} | dataclasses.asdict(self.settings)
        flags = [text for key, value in values.items() if key not in ("model", "data") for text in _flag(key, value)]
        arguments = ["train", self.model, self.data, "--method", name, "--json", *flags, "--output", str(directory)]
        status, out, err = _apart(arguments)
        if status == 130:
            raise KeyboardInterrupt
        if status:
            lines = [line for line in err.splitlines() if line.startswith(("error: ", "  found: "))]
            killed = "its process was killed, as systems do where memory runs out" if status == -9 else ""
            return {}, " · ".join(line.strip() for line in lines) or killed or err[-300:] or f"exit status {status}"
        return json.loads(out.splitlines()[-1]), ""

    def _forgotten(self, base: Base, adapter: str) -> float:
        rows = read_rows(str(self.other))
        length = longest_row(base, None, base.adapters[adapter].num_virtual)
        prepared = prepare(rows, base.tokenizer, length, "all", "drop")
        examples = spread(prepared.examples, FORGETTING_ROWS)
        return growth(base, adapter, examples)

    def _bleu(self, base: Base, adapter: str) -> float:
        wanted = score.references(read_rows(str(self.eval_data)))
        prompts = spread(list(wanted), self.bleu)
        return score.score(base, adapter, {prompt: wanted[prompt] for prompt in prompts}).bleu


def _apart(arguments: Sequence[str]) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of `inlay` in a process of its own, which looks for modules where this one does.

    `python -m` would look in the current folder first: what lies there may be anybody's. A request to end that reaches this
    process alone reaches the other one too.
    """
    paths = [path for path in sys.path if os.path.isabs(path)]
    code = f"import sys; sys.path[:] = {paths!r}; from inlay.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace") as process:
        try:
            out, err = process.communicate()
        except KeyboardInterrupt:
            process.terminate()  # it ends after the step under way
            process.communicate()
            raise
        return process.returncode, out, err


def table(results: Sequence[Result]) -> str:
    """The results as a table in Markdown."""
    head = "| method | held-out loss | BLEU | trained weights | file | seconds | memory | forgetting | learning rate |"
    lines = [head, "|---" * 9 + "|"]
    for r in results:
        cells = [
            "" if r.loss is None else f"{r.loss:.3f}",
            "" if r.bleu is None else f"{r.bleu:.1f}",
            count(r.trainable_parameters),
            size(r.adapter_bytes),
            f"{r.seconds:.0f}",
            size(r.peak_rss_bytes),
            "" if r.forgetting is None else f"{r.forgetting:+.3f}",
            f"{r.learning_rate:.2g}",
        ]
        lines.append(f"| {r.method} | {' | '.join(cells) if not r.reason else f'not trained: {r.reason}' + ' |' * 7} |")
    return "\n".join(lines)


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else []
    return [] if value is None else [flag, str(value)]


Command = Compare
