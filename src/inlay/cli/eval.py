"""Measure loss and scores of a base, and of an adapter beside it."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, Literal

from inlay import screen, tasks
from inlay.base.base import Base
from inlay.data.rows import Row
from inlay.data.sources import TEST
from inlay.data.split import spread
from inlay.errors import DataError, explain
from inlay.evaluation import score
from inlay.evaluation.loss import evaluate
from inlay.gguf.opening import open_base
from inlay.options import purpose
from inlay.options.flags import Data, OnBase
from inlay.runs import recording
from inlay.screen import count, say
from inlay.tasks.contract import Prepared, TaskSpec
from inlay.text.template import prompt_ids
from inlay.training.rows import longest_row
from inlay.training.settings import require_above_zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval(OnBase):
    """On the same rows; without an adapter, of the base alone."""

    data: Data
    """The rows: a JSONL, JSON, CSV or Parquet file, a folder of them, or a data set on the hub."""

    task: purpose.TASK = None
    """What is measured: the loss, and the task's own scores. Unless given, what the adapter was trained for, or else what the
    base was made for."""

    adapter: str | None = None
    """An adapter: a directory, or name@version in the store; measured beside the plain base."""

    scores: Literal["none", "bleu"] = "none"
    """Answer every distinct prompt and score the answers: bleu against all references, and exact matches."""

    rows: int | None = None
    """At most this many rows (and prompts), spread evenly over the data."""

    max_new_tokens: int | None = None
    """Longest answer in tokens; 256, or what the model's positions leave, unless given."""

    max_length: int | None = None
    """Longest row in tokens, by default the model's positions, at most 2048; longer ones are left out and counted."""

    train_on: Literal["completions", "all"] = "completions"
    """Which tokens the loss is taken on."""

    force: bool = False
    """Use an adapter that was trained on another base: figures will be wrong in ways that look right."""

    def __post_init__(self) -> None:
        require_above_zero(self, "rows", "max_new_tokens", "max_length")

    def run(self) -> int:
        """Measure and print."""
        checkpoint = open_base(self.model)
        task = tasks.find(self.task or purpose.guess(checkpoint, self.adapter))
        self._check(task)
        chosen = purpose.choose(task, checkpoint, self.data, self.adapter)
        base = self.load(chosen)
        adapter = base.attach(self.adapter, force=self.force).name if self.adapter else None
        data = chosen.data if chosen.data and chosen.data.is_whole else task.read(self.data, TEST)
        length = longest_row(base, self.max_length, base.adapters[adapter].num_virtual if adapter else 0)
        prepared = task.prepare(data.rows, base, length, self.train_on, "drop")
        examples = spread(prepared.examples, self.rows or len(prepared.examples))
        self._announce(base, prepared, examples, data.notes)
        recording.note(
            base=base.about_base["base"],
            adapter={"path": self.adapter} if self.adapter else {},
            data={"source": self.data, "rows": len(examples)},
        )
        width = max(10, len(adapter or "") + 1)
        wanted = {} if self.scores == "none" else self._wanted(base, data.rows)
        results: dict[str, Any] = {"rows": len(examples), "base_fingerprint": base.fingerprint.weights}
        for name in [None] if adapter is None else [None, adapter]:
            results["adapter" if name else "base"], line = self._measured(base, name, examples, wanted)
            print(f"{name or 'base':<{width}}{line}")
        results["loss"] = results["adapter" if adapter else "base"]["loss"]
        recording.note(scores=results)
        if self.json:
            screen.emit(results)
        return 0

    def _measured(
        self, base: Base, name: str | None, examples: Sequence[Any], wanted: dict[str, list[str]]
    ) -> tuple[dict[str, Any], str]:
        """(The loss and the scores of the base or an adapter, the same in words)."""
        measured = {"loss": evaluate(base, name, examples)} | self._scores(base, name, wanted)
        own = score.scores(base, name, examples, self.max_new_tokens)
        return measured | own, _line(measured) + (f" · {purpose.in_words(own)}" if own else "")

    def _check(self, task: TaskSpec) -> None:
        score.check_installed([*task.scores, self.scores])
        if self.scores != "none":
            purpose.check_continues(task, f"--scores {self.scores}")
        if self.max_new_tokens and not task.generates:
            purpose.check_continues(task, f"--max-new-tokens {self.max_new_tokens}")

    def _announce(self, base: Base, prepared: Prepared, examples: Sequence[Any], notes: Sequence[str]) -> None:
        """What is measured."""
        task, dropped = base.spec, prepared.num_dropped
        say("base", f"{base.describe()} · {base.fingerprint}")
        if not task.continues:
            say("task", purpose.describe(base))
        left_out = f" · {dropped:,} longer than {prepared.max_length:,} left out" if dropped else ""
        targets = "" if task.unit == "row" else f", {count(task.num_targets(examples))} {task.unit}s"
        say("data", f"{self.data} · {len(examples):,} rows{targets} measured{left_out}")
        for note in notes:
            say("", note)
        if base.fresh_heads:
            say("note", f"{', '.join(base.fresh_heads)} of this base starts fresh: alone it says nothing yet")

    def _wanted(self, base: Base, rows: Sequence[Row]) -> dict[str, list[str]]:
        """The prompts to answer and their references; those without room for an answer are left out, and counted."""
        wanted = score.references(rows)
        if self.rows and self.rows < len(wanted):
            prompts = list(wanted)
            wanted = {p: wanted[p] for p in (prompts[i * len(prompts) // self.rows] for i in range(self.rows))}
        room = (base.max_length or sys.maxsize) - (self.max_new_tokens or 1)
        fitting = {p: texts for p, texts in wanted.items() if len(prompt_ids(base.tokenizer, p)) <= room}
        if not fitting:
            raise DataError(
                explain("no prompt leaves room for an answer", found=f"{len(wanted)} prompts, {room} tokens")
            )
        if len(fitting) < len(wanted):
            say("", f"{len(wanted) - len(fitting):,} prompts leave no room for an answer and are left out")
        return fitting

    def _scores(self, base: Base, name: str | None, wanted: dict[str, list[str]]) -> dict[str, float]:
        if not wanted:
            return {}
        say("answering", f"{len(wanted):,} prompts with {name or 'the base alone'}, one score at the end")
        with screen.bar(name or "base") as update:
            found = score.score(base, name, wanted, max_new_tokens=self.max_new_tokens, progress=update)
        return {"bleu": found.bleu, "exact": found.exact, "prompts": found.num_prompts}


def _line(values: dict[str, float]) -> str:
    """Loss and scores in words."""
    text = f"loss {values['loss']:.4f}"
    if "bleu" in values:
        text += f" · bleu {values['bleu']:.2f} · exact {100 * values['exact']:.1f} % of {values['prompts']:,} prompts"
    return text


Command = Eval
