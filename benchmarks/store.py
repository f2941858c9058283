"""The store and verifying: python -m benchmarks.store [BYTES], or python -m benchmarks.store verify

(none)   an adapter of BYTES, 50,000,000 unless given, added to a new store and taken out of it, each beside a plain copy that
         is written through to the disk, in turns: the medians of nine, in milliseconds, and of their quotients
verify   twelve adapters against six bases of one shape that differ in one weight, all pairs: what is refused, and how long the
         longest took, from names to the answer, once the digest of a base is known
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

from benchmarks import combine, shapes
from inlay import formats
from inlay.errors import CompatibilityError
from inlay.evaluation import verify
from inlay.hub.store import Store
from inlay.io import output
from inlay.io.checkpoint import open_checkpoint
from inlay.io.fingerprint import SETTLED_SECONDS, fingerprint
from inlay.methods.lora import Lora

ROUNDS, BYTES = 9, 50_000_000
BASES, EACH = 6, 2


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copied(source: Path, target: Path) -> None:
    """A plain copy, written through to the disk."""
    shutil.copytree(source, target)
    output.sync(target)
    output.sync_one(target.parent)


def store(num_bytes: int) -> None:
    """Add and get beside a plain copy."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        place = Path(folder)
        (place / "adapter").mkdir()
        (place / "adapter" / "adapter_model.safetensors").write_bytes(os.urandom(num_bytes))
        (place / "adapter" / "adapter_config.json").write_text("{}")
        output.sync(place / "adapter")
        times: dict[str, list[float]] = {"copy": [], "add": [], "get": []}
        for number in range(ROUNDS):
            held = Store(place / f"store{number}")
            held.root.mkdir()
            times["copy"].append(seconds(lambda number=number: copied(place / "adapter", place / f"copy{number}")))
            times["add"].append(seconds(lambda held=held: held.add(place / "adapter", "mine@1")))
            times["get"].append(seconds(lambda held=held, number=number: held.get("mine@1", place / f"got{number}")))
        for name, found in times.items():
            ratio = statistics.median(one / plain for one, plain in zip(found, times["copy"], strict=True))
            print(f"{name}: {1000 * statistics.median(found):.1f} ms, {ratio:.2f} of the copy")
        for path in place.glob("store*/objects/*"):
            path.chmod(0o755)


def pairs() -> None:
    """Every adapter against every base."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["INLAY_CACHE"] = f"{folder}/cache"
        bases = [shapes.directory("7m", Path(folder) / f"base{number}") for number in range(BASES)]
        for number, base in enumerate(bases):
            tensors = load_file(base / "model.safetensors")
            tensors["model.norm.weight"][number] += 1
            save_file(tensors, base / "model.safetensors", {"format": "pt"})
        time.sleep(SETTLED_SECONDS + 0.1)
        adapters = {}
        for number, base in enumerate(bases):
            record = {"base": {"name": base.name, **fingerprint(open_checkpoint(base)).as_dict()}}
            for each in range(EACH):
                place = combine.written(Path(folder) / f"{number}-{each}", {"map": (64, 64)}, Lora(r=16), each, record)
                adapters[place] = base
        asked = [(adapter, base) for adapter in adapters for base in bases]
        times = {pair: seconds(lambda pair=pair: verified(*pair, adapters[pair[0]] == pair[1])) for pair in asked}
    refused = [took for (adapter, base), took in times.items() if adapters[adapter] != base]
    print(f"{len(asked)} pairs, {len(refused)} refused, none wrongly: {1000 * max(refused):.1f} ms at most")


def verified(adapter: Path, base: Path, belongs: bool) -> None:
    """What is found has to be what is so."""
    try:
        verify.weights(adapter.name, formats.outline(adapter), open_checkpoint(base))
    except CompatibilityError:
        assert not belongs, f"{adapter} is of {base}"
    else:
        assert belongs, f"{adapter} is not of {base}"


if __name__ == "__main__":
    what = sys.argv[1] if len(sys.argv) > 1 else str(BYTES)
    pairs() if what == "verify" else store(int(what))
