"""Show the whole life of an adapter, offline, in less than a minute."""

import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path

from inlay import screen
from inlay.base.base import Base
from inlay.base.load import load
from inlay.cli import _demo_text
from inlay.data.forms import read_rows
from inlay.evaluation import score
from inlay.export.merge import merge
from inlay.io import output as output_directory
from inlay.methods.lora import Lora
from inlay.options.flags import Common
from inlay.runs.progress import Progress
from inlay.screen import say
from inlay.training import job as jobs
from inlay.training.run_spec import RunSpec
from inlay.training.settings import Settings

BASE = Path(__file__).parent / "demo_base"
NUM_ROWS, NUM_HELD_OUT, NUM_SHOWN = 2000, 100, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo(Common):
    """A small base that comes with the package learns two tasks from the same prompts."""

    output: Path | None = None
    """Where everything is kept; a new directory under the system's temporary directory unless given."""

    steps: int = 120
    """Training steps per adapter."""

    def run(self) -> int:
        """Train two adapters, compare them row by row, merge one."""
        folder = self.output or Path(tempfile.mkdtemp(prefix="inlay-demo-"))
        if self.output:
            output_directory.check_free(folder)
            folder.mkdir(parents=True, exist_ok=True)
        try:
            return self._live(folder)
        except BaseException:  # an error, a full disk, Ctrl-C: half a demo is of no use
            with output_directory.uninterrupted():
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _live(self, folder: Path) -> int:
        start = time.perf_counter()
        base = load(BASE)
        say("base", f"{base.describe()} · {base.fingerprint}")
        say("", "it has read little stories about people and their things, and cards of facts; neither task below")
        exact = {task: _learn(base, task, folder, self.steps) for task in _demo_text.TASKS}
        _compare(base)
        found = merge(base, "tell", folder / "merged")
        say("", "")
        say("merged", f"tell into {folder / 'merged'}: a logit differs by {found.largest_difference:.1g} at most")
        seconds = time.perf_counter() - start
        say("took", f"{seconds:.0f} s · everything lies in {folder}")
        say("try it", f"inlay generate {BASE} --adapter {folder}/tell --adapter {folder}/ask \\")
        say("", "    --prompt 'name: Nora | colour: golden | thing: keys | count: five'")
        if self.json:
            screen.emit({"seconds": seconds, "output": str(folder), "exact": exact, **found._asdict()})
        return 0


def _learn(base: Base, task: str, folder: Path, steps: int) -> dict[str, float]:
    """Train the adapter of one task; the part of held-out answers that is right, before and after."""
    train, held_out = _demo_text.split(task, NUM_ROWS, NUM_HELD_OUT)
    for name, rows in (("train", train), ("held-out", held_out)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{task}-{name}.jsonl").write_text(lines, "utf-8")
    job = jobs.prepare(
        base,
        folder / f"{task}-train.jsonl",
        RunSpec(
            method=Lora(),
            output=folder / task,
            eval_data=folder / f"{task}-held-out.jsonl",
            settings=Settings(max_steps=steps, eval_rows=NUM_HELD_OUT),
        ),
    )
    wanted = score.references(read_rows(folder / f"{task}-held-out.jsonl"))
    before = score.exact(base, None, wanted, max_new_tokens=24)
    with screen.bar(task) as update:

        def listen(progress: Progress) -> None:
            update(progress.step, progress.num_steps, f"loss {progress.losses[-1]:.3f}" if progress.losses else "")

        report = job.run(listen)
    if report.interrupted:
        raise KeyboardInterrupt
    after = score.exact(base, task, wanted, max_new_tokens=24)
    say(
        task,
        f"{report.steps} steps in {report.seconds:.0f} s · held-out loss {report.eval_loss_before:.3f} → "
        f"{report.eval_loss:.3f} · right answers {100 * before:.0f} % → {100 * after:.0f} %",
    )
    return {"before": before, "after": after}


def _compare(base: Base) -> None:
    """One batch: the same held-out prompts with no adapter, with the first and with the second."""
    prompts = [row["prompt"] for row in _demo_text.split("tell", NUM_ROWS, NUM_HELD_OUT)[1][:NUM_SHOWN]]
    names = (None, *_demo_text.TASKS)
    rows = [(prompt, name) for prompt in prompts for name in names]
    answers = base.generate([prompt for prompt, _ in rows], [name for _, name in rows], max_new_tokens=24)
    say("one batch", f"{len(rows)} rows, each naming its adapter, none of the prompts seen in training:")
    for (prompt, name), answer in zip(rows, answers, strict=True):
        if name is None:
            say("", f"\n{prompt}")
        say("", f"    {name or 'base':<6}{answer.strip().splitlines()[0] if answer.strip() else '(nothing)'}")


Command = Demo
