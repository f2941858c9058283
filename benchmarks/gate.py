"""What the gate adds to reading rows and making tokens of them: python -m benchmarks.gate TOKENIZER FILE [ROWS]

The rows of FILE, repeated with another number in each until there are ROWS, are read, rendered, made tokens, and looked at by
the gate, as training does. Printed are the seconds of each, the gate's part of the others' time, and the memory that it added
for each row.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer

from inlay.data import forms
from inlay.gate.gate import Gate
from inlay.process import peak_rss_bytes
from inlay.tasks import causal_lm


def main(tokenizer: str, source: str, num_rows: str = "100000") -> None:
    """Measure once, and print a line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        _write(path, Path(source).read_text("utf-8").splitlines(), int(num_rows))
        start = time.perf_counter()
        rows = forms.read_rows(path)
    read = time.perf_counter()
    made = causal_lm.prepare(rows, known := AutoTokenizer.from_pretrained(tokenizer), 2048, "completions", None)
    prepared, memory = time.perf_counter(), peak_rss_bytes()
    gate = Gate(known)
    gate.see(rows)
    gate.see_samples(made, rows)
    found = gate.findings()
    looked = time.perf_counter() - prepared
    more = (peak_rss_bytes() - memory) / len(rows)
    kinds = ", ".join(each.kind for each in found.found)
    seconds = f"read {read - start:.1f} s, tokens {prepared - read:.1f} s, gate {looked:.1f} s"
    print(f"{len(rows):,} rows of {Path(source).name}: {seconds},")
    print(f"{100 * looked / (prepared - start):.0f} % more, {more:.0f} bytes a row; found: {kinds}")


def _write(path: Path, lines: list[str], num_rows: int) -> None:
    """As many rows, no two of which are the same."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(num_rows):
            row = json.loads(lines[i % len(lines)])
            key = next(iter(row))
            file.write(json.dumps(row | {key: f"{i // len(lines)} {row[key]}"}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
