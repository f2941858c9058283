"""Runs in a control group whose limit of memory they come near: python -m benchmarks.limits [NAME ...]

Each of 20 configurations of `benchmarks.forecast` runs where the system kills what holds more than a limit: what `inlay plan`
foresees, and some parts of that. A run has to end with its adapter, or be refused before its first step; none may be killed.
For root on Linux with control groups of the first version.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.forecast import OTHERS, command, made

GROUP = Path("/sys/fs/cgroup/memory/inlay-limits")
PARTS = (1.05, 1.0, 0.95, 0.9, 0.85)
"""Of what was foreseen, in turn."""


def main(*names: str) -> None:
    """Run them, and print a line for each."""
    GROUP.mkdir(exist_ok=True)
    ends = {"done": 0, "refused": 0, "killed": 0}
    try:
        for number, name in enumerate(names or [*OTHERS][:20]):
            with tempfile.TemporaryDirectory() as folder:
                arguments = made(OTHERS[name], Path(folder))
                foreseen = json.loads(command("plan", *arguments).stdout.splitlines()[-1])["memory_bytes"]
                part = PARTS[number % len(PARTS)]
                (GROUP / "memory.limit_in_bytes").write_text(str(int(foreseen * part)))
                done = command("train", *arguments, "--output", f"{folder}/out", preexec_fn=_join)
                how = "killed" if done.returncode == -signal.SIGKILL else "refused" if done.returncode else "done"
                ends[how] += 1
                splits = [line.strip() for line in done.stderr.splitlines() if "were split" in line or "error:" in line]
                print(f"{name:18} {foreseen * part / 1e6:6.0f} MB ({part:.2f}) {how:8} {' '.join(splits)}", flush=True)
    finally:
        GROUP.rmdir()
    print(", ".join(f"{how} {number}" for how, number in ends.items()))


def _join() -> None:
    (GROUP / "cgroup.procs").write_text(str(os.getpid()))


if __name__ == "__main__":
    main(*sys.argv[1:])
