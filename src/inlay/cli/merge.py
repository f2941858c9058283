"""Write base and adapter as one checkpoint."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from inlay import quant, screen
from inlay.base.base import Base
from inlay.base.load import load
from inlay.data.sources import TEST
from inlay.errors import ConfigError, explain
from inlay.export.agreement import SAMPLE
from inlay.export.gguf import merge_gguf
from inlay.export.merge import merge, num_bytes
from inlay.export.requantize import merge_quantized
from inlay.gguf import writing
from inlay.layout import targets
from inlay.options import purpose
from inlay.options.flags import AdapterDirectory, Common, Model
from inlay.options.types import Mark, found_in, one_of
from inlay.process import peak_rss_bytes
from inlay.runs.recording import note
from inlay.screen import say, size
from inlay.training.settings import require_above_zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge(Common):
    """W + (lora_alpha / r) B A, tensor by tensor."""

    model: Model
    """The base model: a folder, a GGUF file, or a name on the Hugging Face hub."""

    adapter: AdapterDirectory
    """The adapter: a directory, or name@version in the store."""

    output: Path
    """The directory for the merged checkpoint; it must not exist."""

    check_data: str | None = None
    """Rows on which merged and unmerged logits are compared; without it, some sentences that come with Inlay."""

    check_rows: int = 32
    """At most this many rows are compared."""

    dtype: str = "stored"
    """What the comparison computes in; 'stored' is the dtype of the base's files, which the merged weights always have."""

    quantize: Annotated[str | None, found_in(quant.TABLE)] = None
    """Write a quantised checkpoint, and say how much of the adapter survives; without it, a quantised base
    becomes plain."""

    keep: Annotated[str, Mark(metavar="NAMES")] = ""
    """With --quantize: linear layers to leave in 16 bits, names with commas between."""

    gguf: Annotated[str | None, one_of(writing.KINDS)] = None
    """Write one GGUF file, model.gguf, for llama.cpp and Ollama, with its matrices in this; tokenizer and chat template are in
    it."""

    force: bool = False
    """Merge an adapter that was trained on another base, or that quantising mostly erases: the result will be wrong in ways
    that look right."""

    def __post_init__(self) -> None:
        require_above_zero(self, "check_rows")
        if self.quantize is None and self.keep:
            raise ConfigError(
                explain(
                    "--keep says what is not quantised, and nothing is",
                    found=f"--keep {self.keep}",
                    do="--quantize nf4",
                )
            )

        if self.quantize is not None and self.gguf is not None:
            wrong, found = "a merged model is written in one form", f"--quantize {self.quantize} --gguf {self.gguf}"
            raise ConfigError(explain(wrong, found=found, do="--gguf q8_0"))

    def run(self) -> int:
        """Merge, compare, say what was found."""
        chosen = purpose.choose_alone(self.model, None, self.adapter)
        base = load(chosen.checkpoint, dtype=self.dtype, task=chosen.spec, labels=chosen.labels)
        name = base.attach(self.adapter, force=self.force).name
        note(base=base.about_base["base"], adapter={"path": self.adapter}, settings={"output": str(self.output)})
        if not base.spec.continues:
            say("task", purpose.describe(base))
        texts = _texts(base, self.check_data, self.check_rows) if self.check_data else SAMPLE
        if self.quantize is not None:
            return self._quantized(base, name, texts, self.quantize)
        total = num_bytes(base, name)
        with screen.bar("merging", size) as update:
            if self.gguf is None:
                found = merge(base, name, self.output, texts=texts, progress=update)
            else:
                found = merge_gguf(base, name, self.output, self.gguf, texts=texts, progress=update)
        note(scores=found._asdict())
        say(
            "merged",
            f"{len(base.adapters[name].params)} layers changed · {size(total)}",
        )
        rows = f"{found.num_rows} {'rows' if self.check_data else 'sentences of our own'}"
        same = found.same_next_token
        say(
            "checked",
            f"on {rows}, {'hidden states' if same is None else 'logits'} of the merged model and of base with adapter differ "
            f"by {found.largest_difference:.2g} at most; the adapter changes them by up to {found.adapter_difference:.2g} "
            f"({str(base.dtype).removeprefix('torch.')})"
            + ("" if same is None else f"; same {'class' if base.labels else 'next token'} {100 * same:.1f} %"),
        )
        form = f"model.gguf in {self.gguf}" if self.gguf else "same architecture, same number of operations"
        say("wrote", f"{self.output}/  {form}")
        if self.json:
            peak = {"peak_rss_bytes": peak_rss_bytes(), "base_fingerprint": base.fingerprint.weights}
            screen.emit(found._asdict() | {"output": str(self.output)} | peak)
        return 0

    def _quantized(self, base: Base, name: str, texts: Sequence[str], scheme: str) -> int:
        """Merge into a quantised checkpoint, and say what survived."""
        with screen.bar("merging", size) as update:
            found = merge_quantized(
                base,
                name,
                self.output,
                scheme,
                keep=[part for part in targets.split(self.keep) if part],
                force=self.force,
                texts=texts,
                progress=update,
            )
        note(scores={key: value for key, value in found._asdict().items() if key != "layers"})
        worst = min(found.layers, key=lambda path: found.layers[path][0])
        unit = "an answer" if base.labels else "a token"
        say(
            "survived",
            f"the change keeps a cosine of {found.cosine:.3f} with what was learned, and is off by {found.relative_error:.2f} "
            f"of its size; least in {worst}: {found.layers[worst][0]:.3f}",
        )
        say(
            "checked",
            f"{found.divergence:.3g} nats {unit} from base and adapter, which are {found.adapter_divergence:.3g} from "
            "the base",
        )
        say("wrote", f"{self.output}/  in {scheme}")
        if self.json:
            peak = {"peak_rss_bytes": peak_rss_bytes(), "base_fingerprint": base.fingerprint.weights}
            screen.emit(found._asdict() | {"output": str(self.output), "scheme": scheme} | peak)
        return 0


def _texts(base: Base, source: str, most: int) -> list[str]:
    """The text of some rows of a file: rendered, for next tokens; else what the task reads of a row first."""
    task = base.spec
    rows = task.read(source, TEST).rows
    rows = rows[:: max(1, len(rows) // most)][:most]
    train_on = "all" if base.spec.continues else "completions"
    prepared = task.prepare(rows, base, 1 << 30, train_on, "drop")
    return base.tokenizer.batch_decode([list(row.input_ids) for row in prepared.examples], skip_special_tokens=True)


Command = Merge
