"""How long help and errors of usage take: medians over processes, of the time that the processor worked for each.

python -m benchmarks.help [REPEATS]

Beside each command stand Python's own start (`python -c pass`), which is in it, and what is left: what Inlay takes.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

START = ("-c", "pass")
MOST_SECONDS = 0.1
"""What any of it may take, Python's start apart."""

TYPED = (
    "", "--version", "help", "train --help", "train --method dora --help", "compare --help", "store --help",
    "store add --help", "inspect --help", "trian", "train", "train m d --ouput x", "train m d --output x --lr 1e-4",
    "train m d --output x --task tagging", "train m d --output x --epochs many", "merge m a --output x --batch-size 4",
)  # fmt: skip


def seconds(arguments: Sequence[str]) -> tuple[float, float]:
    """What the processor worked for one process, and how long it took by the clock."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False)
    passed, after = time.perf_counter() - start, os.times()
    return sum(after[2:4]) - sum(before[2:4]), passed


def medians(commands: Sequence[Sequence[str]], repeats: int) -> list[tuple[float, float]]:
    """The medians of `seconds` of each, the commands in turn, so that what else the machine does is in all."""
    found = [[seconds(command) for command in commands] for _ in range(repeats + 1)][
        1:
    ]  # the first fills the disk's cache
    return [
        (statistics.median(own[0] for own in each), statistics.median(own[1] for own in each))
        for each in zip(*found, strict=True)
    ]


def main(repeats: int) -> int:
    """Print a line for each; the exit status is 1 where one takes too long."""
    commands = [START, ("-c", "import inlay"), *(("-m", "inlay", *typed.split()) for typed in TYPED)]
    (start, clock), *found = medians(commands, repeats)
    print(f"{'':<45}processor   less Python's start   by the clock")
    print(f"{'python -c pass':<45}{start:7.3f} s{'':22}{clock:12.3f} s")
    for command, (worked, passed) in zip(commands[1:], found, strict=True):
        typed = command[1] if command[0] == "-c" else " ".join(["inlay", *command[2:]])
        print(f"{typed:<45}{worked:7.3f} s{worked - start:20.3f} s{passed:14.3f} s")
    return int(any(worked - start > MOST_SECONDS for worked, _ in found))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9))
