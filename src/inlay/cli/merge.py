"""Write base and adapter as one full checkpoint."""

import dataclasses
from pathlib import Path

from inlay.cli import _screen
from inlay.cli._command import AdapterDirectory, Common, Model
from inlay.cli._screen import say, size
from inlay.model.load import load
from inlay.model.merge import SAMPLE, merge
from inlay.training import data, job
from inlay.training.settings import require_above_zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge(Common):
    """W + (lora_alpha / r) B A, tensor by tensor."""

    model: Model
    """The base: a directory, or a name on the hub."""

    adapter: AdapterDirectory
    """The adapter directory."""

    output: Path
    """The directory for the merged checkpoint; it must not exist."""

    check_data: str | None = None
    """Rows on which merged and unmerged logits are compared; without it, some sentences that come with Inlay."""

    check_rows: int = 32
    """At most this many rows are compared."""

    dtype: str = "stored"
    """What the comparison computes in; 'stored' is the dtype of the base's files, which the merged weights always have."""

    force: bool = False
    """Merge an adapter that was trained on another base: the result will be wrong in ways that look right."""

    def __post_init__(self) -> None:
        require_above_zero(self, "check_rows")

    def run(self) -> int:
        """Merge, compare, say what was found."""
        base = load(self.model, dtype=self.dtype)
        name = base.attach(self.adapter, force=self.force).name
        texts = _texts(base.tokenizer, self.check_data, self.check_rows) if self.check_data else SAMPLE
        total = sum(file.stat().st_size for file in base.checkpoint.files)
        with _screen.bar("merging", size) as update:
            found = merge(base, name, self.output, texts=texts, progress=update)
        say(
            "merged",
            f"{len(base.checkpoint.tensors)} tensors, {len(base.get(name).params)} of them changed · {size(total)}",
        )
        rows = f"{found.num_rows} {'rows' if self.check_data else 'sentences of our own'}"
        say(
            "checked",
            f"merged and unmerged agree on {rows}: largest difference of a logit {found.largest_difference:.2g} "
            f"({str(base.dtype).removeprefix('torch.')}; the adapter moves them by up to {found.adapter_difference:.2g}), "
            f"same next token {100 * found.same_next_token:.1f} %",
        )
        say("wrote", f"{self.output}/  same architecture, same number of operations")
        if self.json:
            peak = {"peak_rss_bytes": job.peak_rss_bytes(), "base_fingerprint": base.fingerprint.weights}
            _screen.emit(found._asdict() | {"output": str(self.output)} | peak)
        return 0


def _texts(tokenizer: object, source: str, most: int) -> list[str]:
    """The rendered text of some rows of a file."""
    rows = data.read_rows(source)
    rows = rows[:: max(1, len(rows) // most)][:most]
    prepared = data.prepare(rows, tokenizer, 1 << 30, "all", "drop")
    return [tokenizer.decode(example.input_ids, skip_special_tokens=True) for example in prepared.examples]  # type: ignore[attr-defined]  # tokenizers have no common type


Command = Merge
