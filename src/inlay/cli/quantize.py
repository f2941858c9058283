"""Write a base with its linear layers in 4 or 8 bits."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Annotated, Any

from inlay import quant, screen
from inlay.base.quantize import Report, quantize
from inlay.gguf.opening import open_base
from inlay.io.checkpoint import open_checkpoint
from inlay.io.fingerprint import Fingerprint, fingerprint, short
from inlay.layout import targets
from inlay.options.flags import Common, Model
from inlay.options.types import Mark, found_in
from inlay.process import peak_rss_bytes
from inlay.runs.recording import note
from inlay.screen import count, say, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantize(Common):
    """A checkpoint that Inlay maps, and that transformers loads with bitsandbytes."""

    model: Model
    """The base model: a folder, a GGUF file, or a name on the Hugging Face hub."""

    output: Path
    """The directory for the quantised base; it must not exist."""

    scheme: Annotated[str, found_in(quant.TABLE)] = "nf4"
    """How."""

    keep: Annotated[str, Mark(metavar="NAMES")] = ""
    """Linear layers to leave as they are, names with commas between; the output head always is."""

    def run(self) -> int:
        """Quantise, say what was found."""
        start = time.perf_counter()
        source = open_base(self.model)
        keep = [name for name in targets.split(self.keep) if name]
        digest = fingerprint(source)
        say("base", f"{source.name} · {digest}")
        note(
            base={"name": source.name, **digest.as_dict()}, settings={"scheme": self.scheme, "output": str(self.output)}
        )
        try:
            with screen.bar("quantizing", size) as update:
                report = quantize(source, self.output, self.scheme, keep=keep, progress=update)
        except KeyboardInterrupt:
            say("stopped", "what is finished is kept: the same command goes on from there")
            return 130
        worst = max(report.errors, key=lambda path: report.errors[path])
        mean = sum(report.errors.values()) / len(report.errors)
        part = report.num_quantized / sum(math.prod(entry.shape) for entry in source.tensors.values())
        say(
            "quantised",
            f"{len(report.errors)} layers, {count(report.num_quantized)} weights of {report.bits:.3f} bits "
            f"({100 * part:.0f} % of all{'' if part > 0.5 else '; all but the linear layers of the body stay as they are'})",
        )
        say(
            "error",
            f"{100 * mean:.1f} % of a layer's weights on average, {100 * report.errors[worst]:.1f} % in {worst}",
        )
        say("size", f"{size(report.source_bytes)} → {size(report.num_bytes)}")
        digests = fingerprint(open_checkpoint(self.output))
        say("wrote", f"{self.output}/  (base {short(digests.weights)}, made of {short(digests.quantized_from)})")
        found = {"mean_error": mean, "worst_error": report.errors[worst], "seconds": time.perf_counter() - start}
        found = self._figures(report, digests) | found
        note(scores=found)
        if self.json:
            screen.emit(found)
        return 0

    def _figures(self, report: Report, digests: Fingerprint) -> dict[str, Any]:
        """What `--json` says of the base that was written."""
        return {
            "output": str(self.output),
            "scheme": self.scheme,
            "layers": len(report.errors),
            "quantized_weights": report.num_quantized,
            "bits_per_weight": report.bits,
            "bytes": report.num_bytes,
            "source_bytes": report.source_bytes,
            "base_fingerprint": digests.weights,
            "source_fingerprint": digests.quantized_from,
            "peak_rss_bytes": peak_rss_bytes(),
        }


Command = Quantize
