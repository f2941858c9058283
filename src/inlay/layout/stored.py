"""What a checkpoint calls the parts of a model: names may lack the prefix of its body, and tied weights are there once."""

from collections.abc import Collection

from inlay.layout.layout import Layout


def checkpoint_path(path: str, prefix: str, known: Collection[str]) -> str | None:
    """The name under which a checkpoint that has `known` holds the module at `path`; None where it does not."""
    bare = path.removeprefix(f"{prefix}.")
    return next((name for name in (path, bare, f"{prefix}.{path}") if name in known), None)


def holders(layout: Layout, prefix: str, known: Collection[str]) -> dict[str, list[tuple[str, str]]]:
    """Tensor of a checkpoint that has `known` -> the modules that hold it, by path, and what each calls it."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path, module in layout.modules.items():
        for key, _ in module.named_parameters(recurse=False):
            if name := checkpoint_path(f"{path}.{key}", prefix, known):
                found.setdefault(name, [(path, key)])
    for path, others in layout.tied.items():  # all hold the one tensor, but for those with one of their own
        own = {place: checkpoint_path(f"{place}.weight", prefix, known) for place in (path, *others)}
        found[next(filter(None, own.values()))] += [(place, "weight") for place, name in own.items() if not name]
    return found
