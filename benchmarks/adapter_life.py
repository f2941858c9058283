"""What the life of an adapter costs: python -m benchmarks.adapter_life [SHAPE]

Fingerprint (first and second time), load (first and hundredth), switch, merge (seconds and memory), and the merged model
against its base in turn. r=16 on all linear layers, a bfloat16 checkpoint; merging as it is stored, the latency in the
dtype that is fastest here.
"""

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

import inlay
from benchmarks import shapes
from inlay.io import fingerprint
from inlay.io.checkpoint import open_checkpoint

NUM_ADAPTERS = 100
NUM_SWITCHES = 1000
NUM_TIMINGS = 31


def main(shape: str) -> None:
    """Measure one shape and print a line for each figure."""
    with tempfile.TemporaryDirectory() as folder:
        directory = shapes.directory(shape, Path(folder) / shape)
        size = (directory / "model.safetensors").stat().st_size
        fingerprint.cache_directory = lambda: Path(folder) / "cache"
        checkpoint = open_checkpoint(directory)
        first, second = (seconds(lambda: fingerprint.fingerprint(checkpoint)) for _ in range(2))
        print(
            f"fingerprint  {size / 1e9:.2f} GB: {first:.2f} s ({size / first / 1e9:.2f} GB/s), again {1e3 * second:.1f} ms"
        )
        base = inlay.load(directory, dtype="stored")
        made = base.attach(inlay.Lora(r=16), "made")
        for tensor in made.tensors():
            tensor.normal_(std=0.02)
        adapter = Path(folder) / "adapter"
        adapter.mkdir()
        base.save("made", adapter, {})
        merging(base, Path(folder) / "merged")
        base.detach("made")
        loads(base, adapter)
        switches(base)
        del base, made
        latency(directory, Path(folder) / "merged")


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def loads(base: inlay.Base, adapter: Path) -> None:
    """Attach the same adapter under a hundred names."""
    taken = [seconds(lambda name=f"a{i}": base.attach(adapter, name)) for i in range(NUM_ADAPTERS)]
    size = (adapter / "adapter_model.safetensors").stat().st_size
    print(
        f"load         {size / 1e6:.1f} MB: first {1e3 * taken[0]:.1f} ms, median {1e3 * statistics.median(taken):.1f} ms, "
        f"last ten {1e3 * statistics.median(taken[-10:]):.1f} ms, slowest {1e3 * max(taken):.1f} ms"
    )


def switches(base: inlay.Base) -> None:
    """Make one adapter after the other active: by name, and a name for each of 8 rows."""

    def switch_all() -> None:
        for i in range(NUM_SWITCHES):
            base.active = f"a{i % NUM_ADAPTERS}"

    def mix_all() -> None:
        for i in range(NUM_SWITCHES):
            base.active = [f"a{(i + row) % NUM_ADAPTERS}" for row in range(8)]

    one, mixed = (1e6 * seconds(work) / NUM_SWITCHES for work in (switch_all, mix_all))
    print(f"switch       {one:.1f} µs; 8 rows of 8 adapters {mixed:.1f} µs")


def merging(base: inlay.Base, output: Path) -> None:
    """Merge, and watch the memory that is not a mapped file."""
    largest = max(entry.stop - entry.start for entry in base.checkpoint.tensors.values())
    with Watch() as watch:
        taken = seconds(lambda: inlay.merge(base, "made", output))
    print(
        f"merge        {taken:.2f} s, {watch.more / 1e6:.0f} MB more than before "
        f"(the largest tensor has {largest / 1e6:.0f} MB)"
    )


class Watch:
    """The most memory, beyond what was there, that is not a mapped file."""

    def __enter__(self) -> "Watch":
        self.before = self.most = anonymous_bytes()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.stop.set()
        self.thread.join()

    @property
    def more(self) -> int:
        """Bytes at the peak, less those at the start."""
        return self.most - self.before

    def _run(self) -> None:
        while not self.stop.wait(0.002):
            self.most = max(self.most, anonymous_bytes())


def anonymous_bytes() -> int:
    """Resident memory of this process that no file backs (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@torch.no_grad()
def latency(plain: Path, merged: Path) -> None:
    """The merged model against its base: the same number of operations, and the same time, in turn."""
    models = [inlay.load(path).model for path in (plain, merged)]
    operations = [sum(1 for _ in model.modules()) for model in models]
    assert operations[0] == operations[1], "the merged model has other modules than its base"
    ids = torch.randint(0, 500, (1, 64))
    for model in models:
        model(input_ids=ids)
    ratios = []
    for _ in range(NUM_TIMINGS):
        base_seconds, merged_seconds = (seconds(lambda model=model: model(input_ids=ids)) for model in models)
        ratios.append(merged_seconds / base_seconds)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"latency      merged / base on 64 tokens: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}, "
        f"{NUM_TIMINGS} pairs"
    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(*sys.argv[1:] or ["135m"])
