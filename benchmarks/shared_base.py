"""Two trainers on one mapped base: python -m benchmarks.shared_base DIRECTORY [TOKENS]

DIRECTORY is a quantised base. One process and then a second make a step of one row, LoRA r=16 on all linear layers, and stay.
Printed are, for each, its memory that is not shared with the other (USS) and the pages of the base that both have mapped:
proportional parts (PSS) fall for the first when the second arrives. And the most that `inlay quantize` took is beside it where
DIRECTORY is a plain checkpoint: then it is quantised first, and its largest tensor is printed.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from benchmarks import step
from inlay.io.checkpoint import open_checkpoint


def main(directory: str, tokens: str = "256") -> None:
    """Quantise if need be, start both, print."""
    checkpoint = open_checkpoint(directory)
    with tempfile.TemporaryDirectory() as folder:
        if "quantization_config" not in checkpoint.config:
            packed = str(Path(folder) / "packed")
            command = [sys.executable, "-m", "inlay", "quantize", directory, "--output", packed, "--json"]
            report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            largest = max(entry.stop - entry.start for entry in checkpoint.tensors.values())
            print(
                f"inlay quantize: {report['seconds']:.1f} s, at most {report['peak_rss_bytes'] / 1e9:.2f} GB, "
                f"largest tensor {largest / 1e9:.2f} GB"
            )
            directory = packed
        workers = []
        for _ in range(2):
            workers.append(step.start("benchmarks.qlora", "inlay, nf4", directory, "1", tokens))
            step.turn(workers[-1])
            found = [psutil.Process(worker.pid).memory_full_info() for worker in workers]
            print(
                "  ".join(f"USS {m.uss / 1e9:.2f} GB, PSS {m.pss / 1e9:.2f}, resident {m.rss / 1e9:.2f}" for m in found)
            )
        for worker in workers:
            worker.communicate()


if __name__ == "__main__":
    main(*sys.argv[1:])
