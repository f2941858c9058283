"""The memory of a run whose rows stay on the disk: python -m benchmarks.streamed [MEGABYTES ...]

Files of so many megabytes (3, 30, 300), of rows of some 2,000 characters of random words, are each trained on for three
steps by a process of its own, a 7M model, with the gate and held-out rows as they are by default. Printed are the peak of what
the process held, the seconds of the whole run, and how much more memory than for the first file that was, in all and for each
row more.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import shapes

SIZES = ("3", "30", "300")
CHARACTERS = 2000


def main(sizes: tuple[str, ...]) -> None:
    """Measure each size, and print a line."""
    first: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        base = shapes.directory("7m", Path(folder) / "7m")
        for size in sizes:
            path = Path(folder) / f"{size}.jsonl"
            _write(path, 10**6 * int(size))
            command = [sys.executable, "-m", "benchmarks.streamed", "worker", str(base), str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            r = json.loads(done.stdout.splitlines()[-1])
            path.unlink()
            first = first or r
            more, rows = r["peak_bytes"] - first["peak_bytes"], r["rows"] - first["rows"]
            each = f", {more / rows:.0f} bytes a row" if rows else ""
            said = f"{size:>4} MB, {r['rows']:7,} rows: {r['seconds']:4.0f} s, peak {r['peak_bytes'] / 1e6:.0f} MB"
            print(f"{said}, {more / 1e6:+.0f} MB{each}", flush=True)


def worker(base: str, path: str) -> None:
    """The figures of a size, as JSON."""
    import inlay
    from inlay.process import peak_rss_bytes
    from inlay.streams import rows as streams

    streams.PART_OF_MEMORY = 0.0
    start = time.perf_counter()
    loaded = inlay.load(base)
    with tempfile.TemporaryDirectory() as folder:
        inlay.train(loaded, path, output=f"{folder}/new", max_steps=3, batch_size=4, eval_rows=20, progress=False)
        seconds = time.perf_counter() - start
        rows = json.loads(Path(f"{folder}/new/inlay.json").read_text())["data"]["rows"]
    print(json.dumps({"peak_bytes": peak_rss_bytes(), "seconds": seconds, "rows": rows}))


def _write(path: Path, num_bytes: int) -> None:
    """Rows of so many bytes together, no two of which are alike."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioubdfgklmnprst", k=draw.randrange(2, 9))) for _ in range(2000)]
    size = 0
    with path.open("w", encoding="utf-8") as file:
        while size < num_bytes:
            text = " ".join(draw.choices(words, k=CHARACTERS // 6))
            prompt, completion = text[: CHARACTERS // 2], text[CHARACTERS // 2 :]
            size += file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(*sys.argv[2:])
    else:
        main(tuple(sys.argv[1:]) or SIZES)
