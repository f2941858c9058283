"""A process of one engine, run by its own Python: worker.py ENGINE reads what is asked from stdin, and prints the answers as JSON.

It imports nothing but that engine.
"""

import importlib
import json
import os
import sys

if __name__ == "__main__":
    out = os.fdopen(os.dup(1), "w")  # what libraries print goes elsewhere
    os.dup2(2, 1)
    asked = importlib.import_module(f"_{sys.argv[1]}")
    found = asked.answers(**json.load(sys.stdin))
    print(json.dumps({"packages": asked.PACKAGES, "answers": found}), file=out)
