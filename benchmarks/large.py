"""A QLoRA step over a base that is a file: python -m benchmarks.large SHAPE [TOKENS] [FOLDER]

The base has random weights and is made straight into a quantised directory in FOLDER (kept where it stands there already, and
removed at the end where it was made). One process of two threads maps it and makes one optimiser step of one row: LoRA r=16 on
all linear layers, every token trained on. Printed are the seconds from the process's start to the end of loading, of the trial
whether rows can be packed, and of the step; the bytes that the system read for the step and their rate; the most resident
memory that is not the mapped file (sampled twenty times a second); and the step as a multiple of its floor, 4 N T operations
at the rate of a large float32 product here.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from benchmarks import floor, shapes


def main(shape: str, tokens: str = "64", folder: str | None = None) -> None:
    """Make the base, run the step, print."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(folder or temporary) / f"{shape}-nf4"
        made = not path.exists()
        if made:
            start = time.perf_counter()
            shapes.quantized(shape, path)
            print(f"made {path.name} in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        try:
            for count in tokens.split(","):
                command = [sys.executable, "-m", "benchmarks.large", "worker", str(path), count, str(time.time())]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                _show(shape, count, json.loads(done.stdout.splitlines()[-1]))
        finally:
            if made and folder is None:
                shutil.rmtree(path)


def _show(shape: str, tokens: str, r: dict[str, float]) -> None:
    print(
        f"{shape}, 1 x {tokens} tokens: loaded after {r['loaded']:.1f} s, tried in {r['tried']:.1f} s, "
        f"one step {r['seconds']:.1f} s, "
        f"{r['read'] / 1e9:.1f} GB read ({r['read'] / r['seconds'] / 1e9:.2f} GB/s), file {r['file'] / 1e9:.1f} GB, "
        f"at most {r['own'] / 1e9:.2f} GB that are not the file, {r['floors']:.2f} times the floor at "
        f"{r['rate'] / 1e9:.0f} GFLOP/s, loss {r['loss']:.3f}",
        flush=True,
    )


def worker(directory: str, tokens: int, started: float) -> None:
    """One step's figures, as JSON."""
    import inlay
    from inlay.tasks._packed import is_packed
    from inlay.text.mask import Example
    from inlay.training.settings import Plan, Settings
    from inlay.training.state import TrainState
    from inlay.training.step import step_

    torch.set_num_threads(2)
    watch = _Watch()
    base = inlay.load(directory)
    base.attach(inlay.Lora(r=16), "it")
    state = TrainState.new(base.adapters["it"], Settings(), Plan(1000, 1, 1e-4, "as asked", 1000))
    loaded = time.time() - started
    is_packed(base)  # a base is tried once, with two passes forward over eight tokens
    tried = time.time() - started - loaded
    row = torch.randint(3, 500, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    read, start = _bytes_read(), time.perf_counter()
    step_(base, state, [Example(tuple(row), (True,) * tokens, "row")])
    loss = state.progress.losses[-1]
    seconds, read = time.perf_counter() - start, _bytes_read() - read
    own = watch.stop()
    rate = floor.rate(dtype=base.dtype)
    least = floor.operations(base.num_weights, tokens) / rate
    size = sum(file.stat().st_size for file in base.checkpoint.files)
    print(
        json.dumps(
            dict(
                loaded=loaded,
                tried=tried,
                seconds=seconds,
                read=read,
                own=own,
                floors=seconds / least,
                rate=rate,
                file=size,
            )
            | dict(loss=loss)
        )
    )


class _Watch(threading.Thread):
    """The most memory of this process that no file backs."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.ended = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            self.most = max(self.most, _status("RssAnon") + _status("RssShmem"))

    def stop(self) -> int:
        """The most so far, in bytes."""
        self.ended.set()
        self.join()
        return self.most


def _status(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{key}:")))


def _bytes_read() -> int:
    """What the system fetched from storage for this process so far."""
    text = Path("/proc/self/io").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("read_bytes:")))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main(*sys.argv[1:])
