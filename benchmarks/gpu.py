"""All that a CUDA device can check and measure of Inlay, in eight minutes: bash benchmarks/gpu.sh [FOLDER]

Checks first, then benchmarks, each a process of its own with a limit, in the order of how much is not known without them. After
each part FOLDER (gpu) has `gpu.json`, with the device, versions, and of every part its command, how it ended, its seconds and
all that it printed; and `gpu.md`, the same for BENCHMARKS.md. What there is no time for is said to be left out.
"""

import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

SECONDS = 480
"""For all parts together."""

WORTH = 5
"""With fewer seconds left a part is not begun."""


class Part(NamedTuple):
    """A module that is run, and as much of its output as the table shows."""

    name: str
    module: str
    arguments: tuple[str, ...]
    seconds: int
    lines: int


STREAMED = ("inlay, nf4, 24GB",)
PARTS = (
    Part("NF4 in Triton is NF4", "pytest", ("-q", "tests/equations/test_nf4_triton.py"), 90, 1),
    Part("a device computes what a CPU computes", "pytest", ("-q", "tests/laws/test_device.py"), 120, 1),
    Part("NF4 beside bitsandbytes", "benchmarks.nf4_cuda", (), 45, 12),
    Part("a step, 135m", "benchmarks.device", ("135m", "4", "256"), 75, 6),
    Part("a step, 1b", "benchmarks.device", ("1b", "8", "1024"), 100, 6),
    Part("answers, 135m", "benchmarks.decode", ("135m", "bfloat16", "3", "cuda"), 75, 11),
    Part("8b, streamed under 24 GB", "benchmarks.device", ("8b", "2", "1024", *STREAMED), 80, 2),
    Part("72b, streamed under 24 GB", "benchmarks.device", ("72b", "1", "512", *STREAMED), 240, 2),
)


def main(folder: str = "gpu", *names: str) -> None:
    """Run all parts, or those whose name has one of these words in it, as far as the time goes."""
    place, end = Path(folder), time.monotonic() + SECONDS
    place.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"device": _device(), "versions": _versions(), "parts": []}
    for part in PARTS:
        if names and not any(name in part.name for name in names):
            continue
        left = end - time.monotonic()
        left_out = {"name": part.name, "end": "left out: no time"}
        found["parts"].append(_run(part, min(part.seconds, left)) if left > WORTH else left_out)
        (place / "gpu.json").write_text(json.dumps(found, indent=1))
        (place / "gpu.md").write_text(_table(found))
    print((place / "gpu.md").read_text())


def _run(part: Part, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", part.module, *part.arguments]
    print("+", " ".join(command[1:]), f"(at most {seconds:.0f} s)", flush=True)
    start = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    how: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    try:
        done = subprocess.run(command, timeout=seconds, **how)
        end, said = "done" if done.returncode == 0 else f"failed with {done.returncode}", done.stdout
    except subprocess.TimeoutExpired as late:
        end, said = f"stopped after {seconds:.0f} s", (late.stdout or b"").decode(errors="replace")
    lines = said.splitlines()
    print("\n".join(lines[-part.lines :]), flush=True)
    return {
        "name": part.name, "command": command[1:], "end": end, "seconds": round(time.monotonic() - start, 1),
        "shown": lines[-part.lines :], "output": said,
    }  # fmt: skip


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"none; {platform.machine()}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in ("torch", "transformers", "peft", "bitsandbytes", "triton"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _table(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    head = [f"{found['device']}; {versions}.", "", "| part | end | s | what it said |", "|---|---|---|---|"]
    rows = [
        f"| {part['name']} | {part['end']} | {part.get('seconds', '')} | {'<br>'.join(part.get('shown', []))} |"
        for part in found["parts"]
    ]
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
