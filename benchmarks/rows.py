"""What preparing a conversation of six turns costs with each of the template idioms: python -m benchmarks.rows [NUMBER]

NUMBER rows (200) of three questions and three answers, of 60 words together, are made into tokens and masks as `inlay train`
does it, with the templates of `tests/templates` and their byte-level tokenizers, so that a row has some 350 tokens. Printed are
milliseconds a row: the least of five passes, and the processor's time of this process and of the one that renders. What other
programs do to the clock shows where the two are far apart.
"""

import os
import sys
import time

import psutil
from tests.templates import families, others, thinkers

from inlay.data import forms
from inlay.tasks.causal_lm import prepare

PASSES = 5


def conversation(number: int) -> list[dict[str, str]]:
    """Six turns."""
    made = []
    for i in range(3):
        made.append({"role": "user", "content": f"How high is the tide at Brest on day {number + i} of the year?"})
        made.append({"role": "assistant", "content": f"It is {i}.{number % 10} m at noon, with wind from the west."})
    return made


def processor_seconds() -> float:
    """What this process and those that it started have taken."""
    times = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in (process.cpu_times() for process in times))


def main(number: str = "200") -> None:
    """Measure every family, and print a line for each, the slowest last."""
    data = forms.read([{"messages": conversation(i)} for i in range(int(number))])
    found = []
    for name, family in {**families.FAMILIES, **thinkers.FAMILIES, **others.FAMILIES}.items():
        tokenizer = families.tokenizer(family)
        made = prepare(data.rows, tokenizer, 10**6, "completions", None)
        before, seconds = processor_seconds(), []
        for _ in range(PASSES):
            start = time.perf_counter()
            prepare(data.rows, tokenizer, 10**6, "completions", None)
            seconds.append(time.perf_counter() - start)
        processor = (processor_seconds() - before) / PASSES
        found.append((1e3 * min(seconds) / len(data.rows), 1e3 * processor / len(data.rows), len(made.examples), name))
    for least, processor, num_examples, name in sorted(found):
        split = f", {num_examples // len(data.rows)} rows of each" if num_examples > len(data.rows) else ""
        print(f"{least:5.2f} ms a row, {processor:.2f} ms of the processor: {name}{split}")
    print(f"load {os.getloadavg()[0]:.1f}, {len(found)} templates, {sum(row[0] <= 1 for row in found)} within 1 ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
