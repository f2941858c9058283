"""Habits of the source that a parser can check: raises, sizes, words."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "inlay"

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ROOM_LINES = 400, 60, 2_000
LARGE_ON_PURPOSE: dict[str, str] = {}
"""File or file:function -> why it is larger."""

LARGE_ROOMS = {
    "base": (2_400, "making a base, and what one is asked for: labels, vectors"),
    "io": (2_170, "every file that is read and written, and what keeps a reader safe"),
    "text": (2_070, "the program that renders templates, 180 lines, is a process of its own"),
    "cli": (4_200, "a file for each of thirty commands, which know nothing of each other; the store has eleven verbs"),
    "methods": (2_100, "fifteen methods, one file each"),
    "training": (
        2_150,
        "a run, what is saved of it and gone on from, how it is seen to go wrong, and the command that makes it again",
    ),
}
"""Room -> (the lines that it may have, why it is larger than a room should be)."""

ALLOWED_RAISES = {
    ("__init__.py", "AttributeError"): "what Python asks of a module's __getattr__",
    ("__main__.py", "SystemExit"): "the exit status",
    ("cli/__init__.py", "KeyboardInterrupt"): "a request to end is answered like Ctrl-C",
    ("cli/demo.py", "KeyboardInterrupt"): "Ctrl-C in the middle of the demo ends the demo",
    (
        "text/_renderer.py",
        "TemplateError",
    ): "what transformers' raise_exception raises, in a process that knows nothing of ours",
    ("text/_renderer.py", "SecurityError"): "what jinja2's sandbox raises, there",
    ("cli/compare.py", "KeyboardInterrupt"): "the process of one method was interrupted: so is the comparison",
    (
        "runs/stop.py",
        "KeyboardInterrupt",
    ): "the second Ctrl-C ends a step or an evaluation, and is caught around them",
    ("training/job.py", "failure"): "what ended the run, raised again once what was learned is written",
    ("serve/worker.py", "found"): "what the engine's thread raised, raised again where the answer is awaited",
    ("serve/answers.py", "piece"): "likewise, of the task that follows one of several answers",
    ("sweeps/sweep.py", "ended"): "what a run raised, raised again once what the others have learned is written",
    ("training/keep.py", "problem"): "what the first attempt to write raised, where no other went better",
}


def family():
    """The exceptions that Inlay raises on purpose: the classes of errors.py."""
    tree = ast.parse((SOURCE / "errors.py").read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def strange_raises(source, known):
    """Raises of classes outside the family. Functions that return a member of it are known by their annotation."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in source.rglob("*.py")}
    makers = {
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.returns is not None and _names(node.returns) <= known
    }
    found = []
    for path, tree in trees.items():
        where = str(path.relative_to(source))
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                called = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "?")
                if name not in known | makers and (where, name) not in ALLOWED_RAISES:
                    found.append(f"{where}:{node.lineno}: {name}")
    return found


def _names(annotation):
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} or {"?"}


def test_only_the_family_is_raised():
    assert strange_raises(SOURCE, family()) == []


@pytest.mark.parametrize("code", ["raise ValueError('x')", "raise NotImplementedError", "def f(e):\n    raise e"])
def test_a_planted_raise_is_found(tmp_path, code):
    (tmp_path / "x.py").write_text(code)
    assert len(strange_raises(tmp_path, family())) == 1


def oversized(source):
    """Files and functions over the budget."""
    found = []
    for path in source.rglob("*.py"):
        where = str(path.relative_to(source))
        text = path.read_text("utf-8")
        if text.count("\n") > MAX_FILE_LINES and where not in LARGE_ON_PURPOSE:
            found.append(where)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.body[0].lineno
                if lines > MAX_FUNCTION_LINES and f"{where}:{node.name}" not in LARGE_ON_PURPOSE:
                    found.append(f"{where}:{node.name}")
    return found


def test_files_and_functions_stay_within_their_budget():
    assert oversized(SOURCE) == []


def oversized_rooms(source):
    """Folders of the package over their budget."""
    found = []
    for room in sorted(path for path in source.iterdir() if path.is_dir()):
        lines = sum(path.read_text("utf-8").count("\n") for path in room.rglob("*.py"))
        if lines > LARGE_ROOMS.get(room.name, (MAX_ROOM_LINES, ""))[0]:
            found.append(f"{room.name}: {lines:,}")
    return found


def test_rooms_stay_within_their_budget():
    assert oversized_rooms(SOURCE) == []


def test_a_planted_hall_is_found(tmp_path):
    (tmp_path / "hall").mkdir()
    (tmp_path / "hall" / "x.py").write_text("\n" * (MAX_ROOM_LINES + 1))
    assert oversized_rooms(tmp_path) == ["hall: 2,001"]


def test_a_planted_giant_is_found(tmp_path):
    (tmp_path / "x.py").write_text("def f():\n" + "    pass\n" * (MAX_FUNCTION_LINES + 2) + "\n" * MAX_FILE_LINES)
    assert oversized(tmp_path) == ["x.py", "x.py:f"]


def test_files_are_written_under_names_that_a_later_run_knows():
    """`safetensors.torch.save_file` writes under a name of its own beside the file, which stays where its process is killed."""
    assert [path for path in SOURCE.rglob("*.py") if re.search(r"\bsave_file\(", path.read_text("utf-8"))] == []


MAX_POSITIONAL = 6
"""Arguments that a call need not name: more can't be told apart where they are given."""


def many_arguments(source):
    """Functions with more of them; not those whose caller is torch's autograd or the compiler of triton."""
    found = []
    for path in source.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                given = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
                called_by_others = given[:1] == ["ctx"] or any(
                    "triton.jit" in ast.unparse(d) for d in node.decorator_list
                )
                if len(given) > MAX_POSITIONAL and not called_by_others:
                    found.append(f"{path.relative_to(source)}:{node.name}: {len(given)}")
    return found


def test_arguments_beyond_six_are_named():
    assert many_arguments(SOURCE) == []


@pytest.mark.parametrize(
    ("code", "count"), [("def f(a, b, c, d, e, f, g): ...", 1), ("def f(a, b, c, d, e, f, *, g): ...", 0)]
)
def test_a_planted_seventh_argument_is_found(tmp_path, code, count):
    (tmp_path / "x.py").write_text(code)
    assert len(many_arguments(tmp_path)) == count


def test_no_path_of_a_machine_stands_in_the_tree():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile("/" + r"(work|home|root)/\w")
    found = [
        name
        for name in listed
        if (ROOT / name).is_file() and not name.endswith((".safetensors", ".png"))
        if pattern.search((ROOT / name).read_text("utf-8"))
    ]
    assert found == []
