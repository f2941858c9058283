"""Notebooks without Jupyter: the code cells run one after another in one process, as its kernel runs them.

What a cell prints is compared with what is stored beside it. The value of its last line, which Jupyter shows, is asked for its
HTML and not compared: times and memory are those of a machine.
"""

import ast
import contextlib
import io
import json
import re
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import psutil

from tests.support import forks

RUN = "import sys; from tests.support import notebooks; notebooks.execute(*sys.argv[1:])"
IDENTIFIER = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def read(path):
    """A notebook."""
    return json.loads(path.read_text("utf-8"))


def write(path, notebook, printed):
    """Store what its code cells print."""
    for cell, text in zip(code_cells(notebook), printed, strict=True):
        stream = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell["outputs"] = [stream] if text else []
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def code_cells(notebook):
    """The cells that run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def stored(notebook):
    """What each code cell printed, as the notebook has it."""
    return ["".join("".join(output["text"]) for output in cell["outputs"]) for cell in code_cells(notebook)]


def faults(notebook):
    """What is wrong with its form: nbformat 4.5, outputs that are text alone."""
    cells = notebook["cells"]
    ids = [cell.get("id", "") for cell in cells]
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    found = {
        "version": (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5),
        "ids": len(set(ids)) < len(ids) or not all(IDENTIFIER.fullmatch(one) for one in ids),
        "kinds": not {cell["cell_type"] for cell in cells} <= {"code", "markdown"},
        "sources": not all(isinstance(cell["source"], list) and cell["source"] for cell in cells),
        "counts": any(cell["execution_count"] is not None for cell in code_cells(notebook)),
        "outputs": any((output["output_type"], output.get("name")) != ("stream", "stdout") for output in outputs),
    }
    return [name for name, is_wrong in found.items() if is_wrong]


def run(path, folder):
    """(status, what each code cell printed, what the process said of a fault) of a notebook that writes below `folder`."""
    printed = folder / "printed.json"
    status, _, err = forks.run(RUN, path, folder, printed, timeout=400)
    return status, json.loads(printed.read_text("utf-8")), err


def execute(path, folder, printed):
    """In a process of its own: run the cells, each warning an error, and write down what they print up to a fault.

    A server that a notebook has begun, and not ended, is ended: it would hold the pipes of this process open.
    """
    tempfile.tempdir, names, texts, status = folder, {"__name__": "__main__"}, [], 0
    warnings.simplefilter("error")
    try:
        for number, cell in enumerate(code_cells(read(Path(path)))):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                _run("".join(cell["source"]), f"{Path(path).name}, code cell {number + 1}", names)
            texts.append(said.getvalue())
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        Path(printed).write_text(json.dumps(texts), "utf-8")
        for child in (left := psutil.Process().children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(left, timeout=10)
    sys.exit(status)


def _run(source, name, names):
    """A cell; the value of a last line that is an expression is shown."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), names)
        if show := getattr(value, "_repr_html_", None):
            assert "<" in show(), "it shows something"
