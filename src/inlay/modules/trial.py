"""What a model does with a few tokens, found by calling it once, where its configuration does not say.

`unused`: the modules on which an adapter would have no effect. A model may hold modules that it never calls: it reads their
weight itself, or has no use for them here, as a decoder that stands alone has none for its cross-attention. Others it calls,
and nothing that it answers depends on them. The graph that autograd records shows which: a zero is added to the output of each
module, and a zero that the answer does not lead back to was of no use.

`row_order`: how the modules get the rows of a batch, by calling the model with two rows together and with each alone. Most
get (rows, t, ..), some the tokens of all rows one after the other, a few an order of their own.

A model that can't be called so says nothing: what is not known is left as it is.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from inlay.core.product import one_thread
from inlay.modules.frozen import table_size

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far two ways to one result may differ, as part of its largest number: above rounding, well below another context."""

TOKENS = 5
"""Tokens of a row that a model is tried on."""

UNCALLED = "this model never calls it"
READ = "this model never calls it, but reads its weight"
NO_EFFECT = "nothing that this model answers depends on it"
"""Why a module is unused."""


class Order(NamedTuple):
    """How modules get the rows of a batch."""

    flat: frozenset[str]
    """The modules that get the tokens of all rows one after the other."""
    strange: frozenset[str]
    """Those that get them in a way that does not say which are whose."""
    shared: Mapping[str, frozenset[int | str]]
    """Those of a module's arguments, by position or name, that are the same for all rows."""
    stateful: frozenset[str]
    """Those that keep tensors from one call to the next."""


def can_be_tried(model: nn.Module) -> bool:
    """It is a model of `transformers` that takes tokens."""
    return hasattr(model, "get_input_embeddings") and "input_ids" in accepted(model)


def example(model: Any, rows: int = 1) -> Int[Tensor, "rows t"]:
    """Rows of tokens that differ, none of them special but the last of each: the end of a text, where the model has one."""
    text = model.config.get_text_config()
    count, _ = table_size(model.get_input_embeddings())
    ends = text.eos_token_id if isinstance(getattr(text, "eos_token_id", None), int) else None
    special = {getattr(text, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "decoder_start")}
    plain = [number for number in range(min(count, 256)) if number not in special] or [0]
    ids = torch.tensor([[plain[(7 * (r * TOKENS + k) + 5) % len(plain)] for k in range(TOKENS)] for r in range(rows)])
    if ends is not None and 0 <= ends < count:
        ids[:, -1] = ends
    return ids.to(next((p.device for p in model.parameters()), torch.device("cpu")))


def called(model: Any, ids: Int[Tensor, "rows t"], **more: Any) -> Any:
    """What the model answers to these rows."""
    more |= {"use_cache": False} if "use_cache" in accepted(model) else {}
    more |= {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    return model(input_ids=ids, **more)


def unused(modules: Mapping[str, nn.Module], paths: Iterable[str]) -> dict[str, str]:
    """Those of these modules on which an adapter would have no effect, and why; nothing where it is not known.

    `modules` are all of the model, by path.

    A part of a list that no token of a trial went to does not count where another part was called.
    """
    model = modules[""]
    if not can_be_tried(model):
        return {}
    try:
        with undisturbed(model), torch.enable_grad():
            zeros, out = _with_all_zeros(modules)
        kept = {id(leaf) for leaf in _leaves(_tensors(tuple(out.values())))}
        idle = [path for path in paths if path not in zeros and not _is_alternative(modules, path, zeros)]
        with undisturbed(model), torch.no_grad():
            read = _read(model, {path: modules[path] for path in idle})
    except Exception:  # any model's code may refuse in any way; what it runs is then not known
        return {}
    found = {path: READ if path in read else UNCALLED for path in idle}
    unheard = [path for path in paths if zeros.get(path) and not any(id(zero) in kept for zero in zeros[path])]
    return found | dict.fromkeys(unheard, NO_EFFECT)


def row_order(modules: Mapping[str, nn.Module], paths: Iterable[str]) -> Order | None:
    """How the modules at these paths get the rows of a batch; None where it is not known. `modules` as in `unused`."""
    model, some = modules[""], {path: modules[path] for path in paths}
    if not can_be_tried(model):
        return None
    try:
        with undisturbed(model), torch.no_grad():
            ids, before = example(model, 2), {path: _kept(module) for path, module in some.items()}
            both = _traced(model, some, ids)
            stateful = [path for path, module in some.items() if _kept(module) != before[path]]
            alone = [_traced(model, some, ids[row : row + 1]) for row in range(2)]
    except Exception:  # likewise
        return None
    kinds = {path: _kinds(calls, [trace.get(path, []) for trace in alone]) for path, calls in both.items()}
    known = {path: found for path, found in kinds.items() if found is not None}
    flat = {path for path, found in known.items() if max(found.values(), default=1) > 1}
    shared = {path: frozenset(slot for slot, n in found.items() if not n) for path, found in known.items()}
    return Order(frozenset(flat), frozenset(set(kinds) - set(known)), shared, frozenset(stateful))


def first_position(modules: Mapping[str, nn.Module], tables: Sequence[str]) -> int:
    """The largest number that the first token of a row has in one of these tables of positions; 0 where it is not known."""
    seen: list[Tensor] = []
    handles = [modules[path].register_forward_pre_hook(lambda module, args: seen.append(args[0])) for path in tables]
    try:
        with undisturbed(modules[""]), torch.no_grad():
            called(modules[""], example(modules[""]))
    except Exception:  # likewise
        return 0
    finally:
        for handle in handles:
            handle.remove()
    rows = [ids.reshape(-1, TOKENS)[0] for ids in seen if ids.dim() and ids.shape[-1] == TOKENS]
    return max((int(row[0]) for row in rows if bool((row.diff() == 1).all())), default=0)


def accepted(model: Any) -> Mapping[str, Any]:
    """The arguments that a model takes, by name."""
    return inspect.signature(model.forward).parameters


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, with one thread; afterwards random numbers, and tensors that modules keep, are those of before."""
    training = [module for module in model.modules() if module.training]
    kept = [(module, _kept(module), dict(vars(module))) for module in model.modules()]
    with torch.random.fork_rng(devices=[]), one_thread():
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
            for module, before, attributes in kept:
                for name in {*before, *_kept(module)} if _kept(module) != before else ():
                    setattr(module, name, attributes.get(name))


@contextlib.contextmanager
def watching_for_nan(model: nn.Module) -> Iterator[list[str]]:
    """Within the block, the paths of the modules whose output holds NaN, in the order of their calls."""
    found: list[str] = []

    def look(path: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.isnan().any():
            found.append(path)

    hooks = [
        module.register_forward_hook(lambda module, given, output, path=path: look(path, output))
        for path, module in model.named_modules()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _kept(module: nn.Module) -> dict[str, int]:
    """The tensors that a module keeps beside its parameters and buffers, by name: which ones they are."""
    return {name: id(value) for name, value in vars(module).items() if isinstance(value, Tensor)}


def _with_all_zeros(modules: Mapping[str, nn.Module]) -> tuple[dict[str, list[Tensor]], Any]:
    """The zeros that a call has added to the outputs of each module that it goes through, by path; and what it answers."""
    model, zeros = modules[""], dict[str, list[Tensor]]()
    hooks = {path: functools.partial(_add_zeros, zeros, path) for path in modules if path}
    handles = [modules[path].register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        out = called(model, example(model))
    finally:
        for handle in handles:
            handle.remove()
    return zeros, out


def _add_zeros(zeros: dict[str, list[Tensor]], path: str, module: nn.Module, given: Any, out: Any) -> Any:
    return _with_zeros(out, zeros.setdefault(path, []))


def _with_zeros(value: Any, zeros: list[Tensor]) -> Any:
    """What a module gives, with a new zero added to each of its tensors."""
    if isinstance(value, Tensor) and value.is_floating_point():
        zeros.append(torch.zeros((), dtype=value.dtype, device=value.device, requires_grad=True))
        return value + zeros[-1]
    if type(value) in (tuple, list):
        return type(value)(_with_zeros(item, zeros) for item in value)
    return value


def _is_alternative(modules: Mapping[str, nn.Module], path: str, seen: Mapping[str, Any]) -> bool:
    """It is in a part of a list, or dictionary, of which another part was called, and its own was not: an expert."""
    names = path.split(".")
    for i in range(1, len(names)):
        parent, member = ".".join(names[:i]), ".".join(names[: i + 1])
        is_listed = isinstance(modules.get(parent), nn.ModuleList | nn.ModuleDict)
        if is_listed and _any_inside(parent, seen) and not _any_inside(member, seen):
            return True
    return False


def _any_inside(path: str, seen: Mapping[str, Any]) -> bool:
    return any(other == path or other.startswith(f"{path}.") for other in seen)


class _Watched(nn.Module):
    """Replaces a module during a trial, to see whether its tensors are asked for."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.held = module
        self.is_read = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            held: Any = super().__getattr__("held")
            self.is_read = self.is_read or name in held._parameters or name in ("weight", "bias")
            return getattr(held, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.held(*args, **kwargs)


def _read(model: nn.Module, modules: Mapping[str, nn.Module]) -> set[str]:
    """Those of these modules, which are not called, whose tensors a call reads."""
    if not modules:
        return set()
    paths = {id(module): path for path, module in modules.items()}
    places = [
        (parent, name, part)
        for parent in list(model.modules())
        for name, part in parent._modules.items()
        if id(part) in paths
    ]
    watched = {}
    for parent, name, part in places:
        parent._modules[name] = watched.setdefault(paths[id(part)], _Watched(part))  # type: ignore[arg-type]  # None has no path
    try:
        called(model, example(model))
    finally:
        for parent, name, part in places:
            parent._modules[name] = part
    return {path for path, one in watched.items() if one.is_read}


def _leaves(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """The leaves that these tensors were made of, as far as autograd knows."""
    nodes: list[Any] = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]  # a Node has no such type
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        nodes += [following for following, _ in node.next_functions if following is not None]


_Call = dict[int | str, Tensor]
"""What a module was given, by position or name, and what it answered, by numbers below 0."""


def _traced(model: Any, modules: Mapping[str, nn.Module], ids: Tensor) -> dict[str, list[_Call]]:
    """What each of these modules was given and what it answered, call by call."""
    found: dict[str, list[_Call]] = {}
    hooks = {path: functools.partial(_note_call, found, path) for path in modules}
    handles = [modules[path].register_forward_hook(hook, with_kwargs=True) for path, hook in hooks.items()]
    try:
        called(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _note_call(found: dict[str, list[_Call]], path: str, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
    call = {**dict(enumerate(args)), **kwargs, **{-1 - k: part for k, part in enumerate(_tensors(out))}}
    call = {slot: value.detach().clone() for slot, value in call.items() if isinstance(value, Tensor)}
    found.setdefault(path, []).append(call)


def _kinds(both: Sequence[_Call], alone: Sequence[Sequence[_Call]]) -> dict[int | str, int] | None:
    """How many of the first dimension of each tensor are of each row, 0 where all rows share it, in calls with a batch and
    with its rows alone; None: it can't be said.
    """
    kinds: dict[int | str, int] = {}
    if {len(both)} != set(map(len, alone)):
        return None
    for whole, *rows in zip(both, *alone, strict=True):
        if any(set(row) != set(whole) for row in rows):
            return None
        for slot, tensor in whole.items():
            kind = _kind(tensor, [row[slot] for row in rows])
            if kind is None or kinds.setdefault(slot, kind) != kind:
                return None
    return kinds if _is_known(kinds, both) else None


def _is_known(kinds: Mapping[int | str, int], both: Sequence[_Call]) -> bool:
    """The first tensor that a module gets and all that it answers with are of the rows, or one row stands for all of them."""
    first = next((slot for slot in kinds if not _is_said(slot)), None)
    if first is None:
        return False
    parted = [slot for slot in kinds if slot == first or _is_said(slot)]
    if kinds[first]:
        return all(kinds[slot] for slot in parted)
    return all(call[slot].shape[:1] == (1,) for slot in parted for call in both)  # positions


def _is_said(slot: int | str) -> bool:
    """It is one of the tensors that a module answered with."""
    return isinstance(slot, int) and slot < 0


def _kind(whole: Tensor, rows: Sequence[Tensor]) -> int | None:
    n = rows[0].shape[0] if rows[0].dim() else 0
    if n and whole.shape == (len(rows) * n, *rows[0].shape[1:]):
        return n if _is_nearest(whole.unflatten(0, (len(rows), n)), rows) else None
    return 0 if all(whole.shape == row.shape and torch.equal(whole, row) for row in rows) else None


def _is_nearest(parts: Tensor, rows: Sequence[Tensor]) -> bool:
    """Each part is far nearer to its own row than to the other: what a batch rounds otherwise does not count."""
    wide = [row.double().nan_to_num() for row in rows]
    far = [[(part.double().nan_to_num() - row).abs().sum().item() for row in wide] for part in parts]
    return all(2 * far[i][i] <= far[i][1 - i] for i in range(2))


def _tensors(value: Any) -> list[Tensor]:
    """The tensors among what a module takes or gives."""
    if isinstance(value, Tensor):
        return [value]
    return [part for item in value for part in _tensors(item)] if isinstance(value, tuple | list) else []
