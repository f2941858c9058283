"""Label, tag, embed or answer every row of a file."""

import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from inlay import screen
from inlay.base import predict as predicting
from inlay.cli.generate import attach_all
from inlay.data.files import Numbered
from inlay.data.sources import TEST, read
from inlay.errors import DataError, FormatError, explain, few
from inlay.options import purpose
from inlay.options.flags import Data, OnBase, Signed
from inlay.screen import say
from inlay.tasks.contract import Given, Prediction
from inlay.training.settings import require_above_zero

CHUNK = 256
"""As many rows are said at a time: what is known already is printed."""

GOLD = ("label", "tags", "completion", "references", "positive", "negative", "negatives")
"""What rows of training data have beside what is read: they are not repeated, since the prediction may have their names."""

MAX_SHOWN = 8
"""As many labels are counted on the screen."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(OnBase, Signed):
    """One line of JSON for every row, in their order: the row's own values, and what is said of it."""

    data: Data
    """The rows: a JSONL, JSON, CSV or Parquet file, a folder of them, or a data set on the hub; - for stdin, JSON or plain text
    in every line."""

    adapter: str | None = None
    """An adapter, a directory or name@version, which says what its task is; without one, the base's own head answers."""

    task: purpose.TASK = None
    """What is predicted, where neither adapter nor base say it."""

    max_new_tokens: int | None = None
    """Longest answer in tokens, where there are answers; 256, or what the model's positions leave, unless given."""

    force: bool = False
    """Use an adapter that was trained on another base: predictions will be wrong in ways that look right."""

    def __post_init__(self) -> None:
        require_above_zero(self, "max_new_tokens")

    def run(self) -> int:
        """Predict and print."""
        self.check_signed([self.adapter])
        chosen = purpose.choose_alone(self.model, self.task, self.adapter)
        names, rows = _typed() if self.data == "-" else _read(self.data)
        base = self.load(chosen)
        attached = attach_all(base, (self.adapter,) if self.adapter else (), self.force, self.require_signed_by)
        adapter = attached[0] if attached else None
        say("base", f"{base.describe()} · {base.fingerprint}")
        say("task", f"{purpose.describe(base)} · {f'with {adapter}' if adapter else 'the base alone'}")
        predicting.check(base, [adapter])
        items = predicting.prepare(base, rows, names)
        counts: Counter[str] = Counter()
        with screen.bar("predicting") as update:
            for start in range(0, len(items), CHUNK):
                part = slice(start, start + CHUNK)
                for row, said in zip(
                    rows[part], predicting.predict(base, items[part], adapter, self.max_new_tokens), strict=True
                ):
                    print(_line(row, said), flush=True)
                    counts[str(said.get("label", ""))] += 1
                update(min(start + CHUNK, len(items)), len(items))
        some = [f"{name} {number:,}" for name, number in counts.most_common(MAX_SHOWN) if name]
        say("said", " · ".join([f"{len(rows):,} rows", *([", ".join(some)] if some else [])]))
        if self.json:
            about = {"rows": len(rows), "task": base.task, "labels": list(base.labels)}
            screen.emit(about | {"base_fingerprint": base.fingerprint.weights})
        return 0


def _line(row: Given, said: Prediction) -> str:
    """A row and what is said of it, in JSON; numbers as float32 has them."""
    own = (
        {"text": row}
        if isinstance(row, str)
        else {key: row[key] for key in row if key not in GOLD and row[key] is not None}
    )
    return json.dumps(own | _short(said), ensure_ascii=False, default=str)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list) else value


def _read(source: str) -> tuple[list[str], list[Given]]:
    """(what rows are called, the rows of a file)."""
    found = read(source, _rows, TEST)
    for note in found.notes:
        say("", note)
    return [name for name, _ in found.rows], [row for _, row in found.rows]


def _rows(given: Iterable[Numbered], name: str, unused: Counter[str]) -> list[tuple[str, Given]]:
    values = list(given)
    wrong = [f"{name}:{number}" for number, value in values if not isinstance(value, str | Mapping)]
    if wrong:
        raise DataError(explain("a row is neither an object nor a text", found=few(wrong), do='{"text": "..."}'))
    return [(f"{name}:{number}", value) for number, value in values]


def _typed() -> tuple[list[str], list[Given]]:
    """(what rows are called, the rows of stdin): lines that begin with a brace are JSON, others are texts.

    **Raises:**

    - `FormatError`: a line is not UTF-8, or begins with a brace and is no JSON.
    - `DataError`: there is no line.
    """
    names, rows, problems = list[str](), list[Given](), list[str]()
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if text:
                names.append(f"line {number}")
                rows.append(json.loads(text) if text.startswith("{") else text)
        except (ValueError, RecursionError) as error:  # of UTF-8 and JSON
            problems.append(f"line {number}: {error}")
    if problems:
        raise FormatError(explain("stdin is not JSON lines", found=few(problems), do='{"text": "..."}'))
    if not rows:
        raise DataError(explain("stdin is empty", found="no line", do='echo \'{"text": "..."}\' | inlay predict ... -'))
    return names, rows


Command = Predict
