"""The figures of the source that say how it is built: scripts/check --figures

Lines, rooms, functions, overrides and how many files know of a special case, read from the syntax trees of `src/inlay`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "inlay"

KINDS = {"LinearMethod", "LowRankMethod", "BlockMethod", "PromptMethod"}
"""The kinds of method, of which few places should ask."""

CASES = {
    "experts": "experts",
    "token rows": "token_rows|token rows",
    "CAUSAL_LM": "CAUSAL_LM",
    "transposed": "transposed",
}
"""Special cases, and what names them."""

BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.BoolOp, ast.match_case)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Print a line for each figure."""
    texts = {path: path.read_text("utf-8") for path in sorted(SOURCE.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    total = sum(len(text.splitlines()) for text in texts.values())
    print(f"lines of Python         {total:,}")
    rooms: dict[str, int] = {}
    for path, text in texts.items():
        room = path.relative_to(SOURCE).parts[0]
        rooms[room] = rooms.get(room, 0) + len(text.splitlines())
    largest = max(rooms, key=lambda room: rooms[room])
    print(f"largest room            {largest}, {100 * rooms[largest] / total:.1f} %")
    functions = [
        (f"{path.relative_to(SOURCE)}:{node.name}", node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]
    lengths = sorted(_lines(node) for _, node in functions)
    print(f"functions               {len(functions):,}, nine tenths at most {lengths[len(lengths) * 9 // 10]} lines")
    long = [
        f"{name} {_lines(node)}, {_statements(node)} of statements" for name, node in functions if _lines(node) > 40
    ]
    print(f"  over 40 lines         {len(long)}: {'; '.join(long)}")
    forked = [f"{name} {_branches(node)}" for name, node in functions if _branches(node) > 15]
    print(f"  over 15 branches      {len(forked)}: {', '.join(forked)}")
    print(f"concrete overrides      {len(list(_overrides(trees)))}")
    asked = {path: sum(map(_asks_for_kind, ast.walk(tree))) for path, tree in trees.items()}
    print(f"isinstance on kinds     {sum(asked.values())} in {sum(count > 0 for count in asked.values())} files")
    for name, pattern in CASES.items():
        print(f"files that name         {name}: {sum(bool(re.search(pattern, text)) for text in texts.values())}")


def _lines(function: Function) -> int:
    return (function.end_lineno or 0) - function.lineno + 1


def _statements(function: Function) -> int:
    """The lines below its signature and description."""
    first = function.body[ast.get_docstring(function) is not None :]
    return (function.end_lineno or 0) - first[0].lineno + 1 if first else 0


def _branches(function: Function) -> int:
    return sum(isinstance(node, BRANCHES) for node in ast.walk(function))


def _asks_for_kind(node: ast.AST) -> bool:
    """The node is a call of isinstance with a kind of method."""
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
    return is_call and any(isinstance(n, ast.Name) and n.id in KINDS for n in ast.walk(node.args[1]))  # type: ignore[attr-defined]


def _overrides(trees: dict[Path, ast.Module]) -> Iterator[str]:
    """Methods of classes that replace one of a class of ours which has a body of its own: no abstract one, and no dunder."""
    for path, tree in trees.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                above = {method for base in _ancestors(path, node, trees) for method in _concrete(base)}
                for method in node.body:
                    if isinstance(method, Function) and method.name in above and not method.name.startswith("__"):
                        yield f"{node.name}.{method.name}"


def _ancestors(path: Path, node: ast.ClassDef, trees: dict[Path, ast.Module]) -> Iterator[ast.ClassDef]:
    """The classes of ours that a class of the file `path` is made of, by what the file defines or imports."""
    for base in node.bases:
        where = _home(path, base.id, trees) if isinstance(base, ast.Name) else None
        for above in trees[where].body if where else ():
            if isinstance(above, ast.ClassDef) and isinstance(base, ast.Name) and above.name == base.id:
                yield above
                yield from _ancestors(where or path, above, trees)


def _home(path: Path, name: str, trees: dict[Path, ast.Module]) -> Path | None:
    """The file of ours that a name in the file `path` comes from."""
    for node in trees[path].body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            file = SOURCE.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            return file if file in trees else None
    return None


def _concrete(node: ast.ClassDef) -> Iterator[str]:
    """The methods of a class that are neither abstract nor of a protocol."""
    if any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
        return
    for method in node.body:
        marks = {ast.unparse(mark) for mark in method.decorator_list} if isinstance(method, Function) else {"abstract"}
        if isinstance(method, Function) and not any("abstract" in mark for mark in marks):
            yield method.name


if __name__ == "__main__":
    main()
