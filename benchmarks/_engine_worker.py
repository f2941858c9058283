"""A process of one engine: a line of JSON asks for answers, a line of JSON has them and the seconds they took.

Started by `benchmarks.engines` with the engine's own Python; imports nothing but that engine.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path


def main(engine: str, form: str, directory: str, num_tokens: str, *adapters: str) -> None:
    """Say whether it answers for several adapters at a time, then answer until there is nothing more to read."""
    out = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    module = importlib.import_module(f"benchmarks._engine_{engine}")
    asked = module.Asked(Path(directory), form, [Path(one) for one in adapters], int(num_tokens))
    print(json.dumps(dict(mixes=asked.mixes)), file=out, flush=True)
    for line in sys.stdin:
        given = json.loads(line)
        start = time.perf_counter()
        answers = asked.answers(**given)
        seconds = time.perf_counter() - start
        print(json.dumps(dict(seconds=seconds, answers=answers)), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
