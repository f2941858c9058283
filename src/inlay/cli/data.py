"""Check rows for faults before training, and show their tokens.

`inlay data check FILE --model MODEL` looks for faults, `inlay data show FILE --model MODEL` prints rows with the trained
tokens marked. Each verb has its own --help, and --json prints one object.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from inlay import screen, tasks
from inlay.base.load import load, read_tokenizer
from inlay.cli._findings import say_findings
from inlay.errors import DataError, OutputError, explain
from inlay.gate import stream
from inlay.gate.findings import Check
from inlay.gate.show import Shown, marked, shown
from inlay.gguf.opening import open_base
from inlay.io.checkpoint import Checkpoint
from inlay.options import purpose
from inlay.options.flags import Common, Data
from inlay.options.types import Mark, found_in
from inlay.screen import count, say
from inlay.tasks import causal_lm
from inlay.tasks.contract import DEFAULT_TASK, Prepared
from inlay.training.rows import LONGEST_DEFAULT, longest_row
from inlay.training.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Verb(Common):
    data: Data
    """The rows: a JSONL, JSON, CSV or Parquet file, a folder of them, or a data set on the hub."""

    model: str
    """The base whose tokenizer and chat template they are for: a directory, or a name on the hub."""

    max_length: int | None = Settings.max_length
    """Longest row in tokens; the model's positions, at most 2048."""

    train_on: Literal["completions", "all"] = Settings.train_on
    """Which tokens the loss is taken on: the completions or assistant turns, or all."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckRows(_Verb):
    """Look for faults in rows; the exit status is 1 where there are some that stop a run."""

    task: Annotated[str, found_in(tasks.TABLE)] = DEFAULT_TASK
    """What is to be learned."""

    eval_data: str | None = None
    """Rows that will be held out: none of them should be trained on."""

    check: Check = "warn"
    """What stops a run: what can't be trained on (warn), or whatever is odd too (error)."""

    fix: Annotated[Path | None, Mark(metavar="OUT.jsonl")] = None
    """Write the rows here without those that can't be used, exact duplicates, and those that are held out too."""

    def run(self) -> int:
        """Look, say what was found, and write the copy."""
        if self.fix is not None and self.fix.exists():
            wrong = "there is such a file, and nothing is overwritten"
            raise OutputError(explain(wrong, found=str(self.fix), do="another --fix"))
        prepare, tokenizer = self._preparing()
        with screen.bar("checking", timed=False) as update:
            found = stream.examine(
                self.data, self.eval_data, tasks.find(self.task), prepare, tokenizer, lambda done: update(done, None)
            )
        findings = found.findings
        say("rows", f"{findings.num_rows:,} of {self.data}" + ("" if findings.found else " · no faults found"))
        say_findings(findings, with_columns=True)
        for problem in found.problems:
            say("", problem)
        written = {} if self.fix is None else self._write(found, self.fix)
        if self.json:
            screen.emit(findings.as_dict() | written)
        return int(bool(findings.stopping(self.check)))

    def _preparing(self) -> tuple[Callable[[Sequence[Any]], Prepared], Any]:
        """(What makes rows into samples, the tokenizer); for next tokens no weight is read."""
        chosen = purpose.choose(tasks.find(self.task), open_base(self.model), self.data)
        how: dict[str, Any] = {"may_be_empty": True}
        if chosen.spec.name == DEFAULT_TASK:
            tokenizer = read_tokenizer(chosen.checkpoint)
            length = self.max_length or _positions(chosen.checkpoint)
            return lambda rows: causal_lm.prepare(rows, tokenizer, length, self.train_on, "drop", **how), tokenizer
        base = load(chosen.checkpoint, task=chosen.spec, labels=chosen.labels)
        length = longest_row(base, self.max_length)
        return lambda rows: chosen.spec.prepare(rows, base, length, self.train_on, "drop", **how), base.tokenizer

    def _write(self, found: stream.Examined, path: Path) -> dict[str, Any]:
        num_kept = stream.write(self.data, found, path)
        counts = {kind: len(rows) for kind, rows in found.dropped.items()}
        what = ", ".join(f"{number:,} {kind}" for kind, number in counts.items()) or "none"
        say("wrote", f"{path} · {num_kept:,} rows; dropped: {what}")
        if left := [finding.kind for finding in found.findings.found if finding.kind not in counts]:
            say("", f"left as they are: {', '.join(left)}")
        return {"output": str(path), "kept": num_kept, "dropped": counts}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(_Verb):
    """Print rows with the trained tokens marked, and where they would be cut."""

    rows: int = 5
    """As many rows."""

    skip: int = 0
    """Rows before the first that is shown."""

    def run(self) -> int:
        """Print, in colours where somebody watches."""
        checkpoint = open_base(self.model)
        tokenizer, length = read_tokenizer(checkpoint), self.max_length or _positions(checkpoint)
        found = list(shown(self.data, tokenizer, length, self.train_on, self.skip, self.rows))
        for row in found:
            self._print(row)
        if not found:
            raise DataError(explain("there are not as many rows", found=f"--skip {self.skip}", do="a smaller --skip"))
        if self.json:
            screen.emit({"rows": [dataclasses.asdict(row) for row in found]})
        return 0

    def _print(self, row: Shown) -> None:
        if row.problem:
            screen.fact("", f"{row.source}: can't be trained on: {row.problem}")
            return
        cut = f"; {row.num_cut:,} more than --max-length: left out" if row.num_cut else ""
        ends = f", ends with {' '.join(row.ends)}" if row.ends else ", no end token"
        about = f"{count(row.num_tokens)} tokens, {count(row.num_trained)} trained on{ends}{cut}"
        screen.fact("", f"{row.source} ({about})")
        if screen.has_colours():
            screen.styled([("  ", ""), *((text, _STYLES[kind]) for text, kind in row.pieces)])
        else:
            screen.fact("", f"  {marked(row.pieces)}")


_STYLES = {"": "", "trained": "green", "end": "bold reverse green", "cut": "dim strike"}
"""Kind of a piece of a row -> its colours."""

VERBS = {"check": CheckRows, "show": Show}
"""What can be done with rows, in the order of the help."""


def _positions(checkpoint: Checkpoint) -> int:
    """The tokens that a row may have, by the configuration alone."""
    text = checkpoint.config.get("text_config") or checkpoint.config
    limit = text.get("max_position_embeddings")
    return min(limit, LONGEST_DEFAULT) if isinstance(limit, int) and limit > 1 else LONGEST_DEFAULT
