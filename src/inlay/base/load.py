"""Loading a base: a directory of `transformers`' kind becomes a frozen model over the mapped pages of its files.

A plain checkpoint is loaded by `transformers`, which maps it. Of a quantised one the library makes everything but the quantised
layers, for which it has its own ways; here they are `QuantizedLinear` over the mapped tensors, whatever the machine.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from inlay import tasks
from inlay.base import meta_model
from inlay.base.base import Base
from inlay.base.cache import cached
from inlay.base.checks import (
    check_fractions,
    check_labels,
    check_layers,
    check_special_tokens,
    check_start,
    chosen_device,
    keep_special_tokens_,
)
from inlay.base.heads import configuration, heads_of, is_head, labels_of
from inlay.base.pooling import mode_of
from inlay.core.product import DTYPES, native_bfloat16
from inlay.distributed.world import World
from inlay.errors import CompatibilityError, ConfigError, FormatError, explain, few, within_memory
from inlay.gguf.opening import open_base
from inlay.io import bitsandbytes, shortened
from inlay.io.checkpoint import Checkpoint, open_checkpoint
from inlay.io.fingerprint import check_unchanged, check_written
from inlay.io.mapped import Mapped
from inlay.io.safetensors import TORCH_DTYPES, TensorEntry
from inlay.layout import stored
from inlay.modules import sharded, streamed
from inlay.modules.ahead import ReadAhead
from inlay.modules.frozen import freeze_
from inlay.modules.fused import fuse_
from inlay.modules.maps import maps_of
from inlay.quant.contract import Matrix
from inlay.tasks.contract import DEFAULT_TASK, TaskSpec
from inlay.text import growth

MIN_BFLOAT16_WIDTH = 256
"""Below this hidden size bfloat16 is slower than float32 even where it is native: measured with benchmarks/dtype_width.py."""


@dataclasses.dataclass(frozen=True)
class _Choices:
    """What is loaded, and how, once all of it is decided."""

    checkpoint: Checkpoint
    packed: bitsandbytes.Quantized
    dtype: torch.dtype
    device: str
    spec: TaskSpec
    labels: tuple[str, ...]
    """The names of the classes where the checkpoint brings none."""
    has_own_head: bool


@within_memory()
def load(
    source: str | Path | Checkpoint,
    *,
    task: str | TaskSpec = DEFAULT_TASK,
    labels: Sequence[str] = (),
    dtype: str | None = None,
    device: str = "cpu",
    quantize: str | None = None,
    device_memory: int | None = None,
    held_by: World | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Base:
    """The base at a directory or of a name on the hub: mapped, frozen, in evaluation mode.

    **Arguments:**

    - `task`: what for, by name: one of `inlay.tasks.names()`.
    - `labels`: the names of the classes by number, where the task has some; those of the checkpoint's own head unless given.
    - `dtype`: bfloat16, float16 or float32; 'stored' for the one that the files have; see `default_dtype` unless given.
    - `device`: where to compute, such as cpu or cuda; auto: on a CUDA device if there is one, else on the CPU.
    - `quantize`: a scheme, such as nf4: compute over the base quantised so, made once and kept; see `inlay.base.cache`.
    - `device_memory`: bytes of the device that a quantised base may take, with room for adapters and activations; its layers
      beyond that are sent there as they are used; what is free on the device unless given.
    - `held_by`: processes that hold the weights of linear layers together, each a part; see `inlay.modules.sharded`.
    - `progress`: called with the bytes quantised so far and in all, where that is done.

    **Raises:**

    - `UnknownNameError`: there is no such model, or no such task.
    - `FormatError`: it is not a model, broken, or only pickled.
    - `CompatibilityError`: `transformers` has no such model, no scheme here reads its weights, or its pooling is not known.
    - `ConfigError`: no such dtype or device here; labels without classes, other than the head's, or none where they are needed.
    """
    spec = task if isinstance(task, TaskSpec) else tasks.find(task)
    device = chosen_device(device, device_memory)
    given = source if isinstance(source, Checkpoint) else open_base(source)
    is_own = _brings_head(given, spec, labels, given.name if source is given else str(source))
    chosen = _choices(_quantized(given, quantize, progress), dtype, device, spec, () if is_own else labels, is_own)
    return _made(chosen, None if quantize is None else given, device_memory, held_by)


def _brings_head(checkpoint: Checkpoint, spec: TaskSpec, labels: Sequence[str], title: str) -> bool:
    """Whether the checkpoint brings a head of the task; what can't be is refused, as `load` says."""
    if spec.pools:
        mode_of(checkpoint)  # refused here if nobody knows it, not at the first vector
    is_own = tasks.has_own_head(checkpoint, spec)
    check_labels(title, spec, labels, labels_of(configuration(checkpoint, ())) if is_own else None)
    return is_own


def _choices(
    checkpoint: Checkpoint, dtype: str | None, device: str, spec: TaskSpec, labels: Sequence[str], is_own: bool
) -> _Choices:
    """What is loaded, with the dtype of a name; raises as `load` does."""
    shortened.guard(checkpoint.files)
    packed = bitsandbytes.quantized_weights(checkpoint)
    if packed:
        check_written(checkpoint)
    chosen = {None: default_dtype(checkpoint, device), "stored": checkpoint.dtype, **DTYPES}.get(dtype)
    if chosen is None:
        raise ConfigError(explain("no such dtype", found=f"{dtype!r}", do=f"one of {', '.join(DTYPES)}, stored"))
    return _Choices(checkpoint, packed, chosen, device, spec, tuple(labels), is_own)


def _made(chosen: _Choices, original: Checkpoint | None, device_memory: int | None, held_by: World | None) -> Base:
    """The base; `original` is the checkpoint that it was quantised from, where that was done on loading."""
    checkpoint, spec = chosen.checkpoint, chosen.spec
    has_task = spec.name != DEFAULT_TASK
    with _quiet_transformers(), torch.random.fork_rng(devices=[], enabled=has_task):
        if has_task:
            torch.manual_seed(0)  # what the checkpoint lacks is the same each time
        model, missing, is_mapped = _mapped(chosen)
        tokenizer = read_tokenizer(checkpoint)
    check_special_tokens(model, checkpoint)
    check_start(model, checkpoint)
    keep_special_tokens_(model)
    model.eval()
    freeze_(model, chosen.dtype)
    sharded.shard_(model, held_by, torch.device(chosen.device))
    model.to(chosen.device)
    _fill_(model, chosen, device_memory, held_by)
    if chosen.device == "cpu":
        fuse_(model, chosen.dtype)
    scheme = ", ".join(sorted({name for name, _ in chosen.packed.values()})) or None
    heads = heads_of(model, missing, spec, chosen.has_own_head)
    check_unchanged(checkpoint)
    return Base(
        model, tokenizer, checkpoint, chosen.dtype, is_mapped, scheme, spec=spec, heads=heads, original=original
    )


def _quantized(checkpoint: Checkpoint, scheme: str | None, progress: Callable[[int, int], None]) -> Checkpoint:
    """The checkpoint itself, or that of the same name in the cache, quantised."""
    if scheme is None:
        return checkpoint
    made = open_checkpoint(cached(checkpoint, scheme, progress))
    return dataclasses.replace(made, name=checkpoint.name, reference=checkpoint.reference)


def default_dtype(checkpoint: Checkpoint, device: str = "cpu") -> torch.dtype:
    """bfloat16 where the processor has instructions that multiply it and the model is wide enough to gain, else float32."""
    names = ("hidden_size", "n_embd", "d_model")  # what architectures call it
    width = next((checkpoint.config[name] for name in names if checkpoint.config.get(name)), MIN_BFLOAT16_WIDTH)
    wide = device != "cpu" or (native_bfloat16() and isinstance(width, int) and width >= MIN_BFLOAT16_WIDTH)
    return torch.bfloat16 if wide else torch.float32


def _mapped(chosen: _Choices) -> tuple[nn.Module, list[str], bool]:
    """The model over the pages of its files where that loses nothing, what they lack of its head, and whether it is mapped;
    else with converted weights.

    It can be where all weights that are not quantised are of one dtype, which is `dtype` or narrower, and the model has made
    no number of its own in the narrower one, as those do that scale their embeddings.
    """
    checkpoint, dtype = chosen.checkpoint, chosen.dtype
    stored = {TORCH_DTYPES.get(entry.dtype) for entry in bitsandbytes.plain_tensors(checkpoint, chosen.packed).values()}
    if chosen.device == "cpu" and len(stored) == 1 and (dtype in stored or dtype == torch.float32):
        model, missing = _model(chosen, next(iter(stored)))
        if all(buffer.dtype == dtype for buffer in model.buffers() if buffer.dtype in stored):
            return model, missing, _parameters_are_mapped(model, checkpoint, dtype)
    return *_model(chosen, dtype), False


def _parameters_are_mapped(model: nn.Module, checkpoint: Checkpoint, dtype: torch.dtype) -> bool:
    """Parameters that hold several maps are the file's own pages: the file has them so, in the dtype of the products."""
    prefix = getattr(model, "base_model_prefix", "")
    paths = [path for path, linear in maps_of(model).items() if linear.count is not None]
    names = [stored.checkpoint_path(path, prefix, checkpoint.tensors) for path in paths]
    return all(name is not None and TORCH_DTYPES[checkpoint.tensors[name].dtype] == dtype for name in names)


def _model(chosen: _Choices, dtype: torch.dtype | None) -> tuple[nn.Module, list[str]]:
    """The model, and the tensors that its checkpoint lacks and may lack."""
    import transformers

    checkpoint, packed, spec = chosen.checkpoint, chosen.packed, chosen.spec
    auto: Any = getattr(transformers, spec.auto_class)
    try:
        config = configuration(checkpoint, chosen.labels)
        config.return_dict = True  # a file that wants tuples speaks to other callers
        how = meta_model.arguments(config, packed) if packed else {"config": config}
        loaded: Any = auto.from_pretrained(
            checkpoint.directory,
            **how,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,  # unset, transformers asks on the terminal, and takes our input for the answer
            ignore_mismatched_sizes=True,  # they are reported below, all of them
            output_loading_info=True,
        )
    except Exception as error:  # the code of a thousand architectures, on numbers that it was not made for
        raise meta_model.unknown_architecture(checkpoint, error, spec.auto_class) from None
    model, report = loaded
    check_layers(model, report["unexpected_keys"], checkpoint)
    missing = [key for key in sorted(report["missing_keys"]) if is_head(key, spec)]
    problems = [f"{key}: missing" for key in sorted(report["missing_keys"]) if key not in missing]
    problems += [
        f"{key[0]}: shape {tuple(key[1])}, expected {tuple(key[2])}"
        for key in sorted(report["mismatched_keys"])
        if not is_head(key[0], spec)
    ]
    if problems:
        raise _incomplete(checkpoint, problems, spec, getattr(model, "base_model_prefix", ""))
    _check_used(model, sorted(set(report["unexpected_keys"])), packed, checkpoint)
    check_fractions(checkpoint, tuple(f"{path}." for path in packed))
    for name in spec.dropped_modules:
        if isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, None)  # models that can be made without it ask whether it is there
    return model, missing


def _incomplete(
    checkpoint: Checkpoint, problems: list[str], spec: TaskSpec, body: str
) -> FormatError | CompatibilityError:
    """The error for a checkpoint that lacks weights: those of its body, or those of a head that it was never made for."""
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    other = meta_model.other_class(checkpoint, spec.auto_class, f"it lacks {problems[0].partition(':')[0]}{more}")
    if other is not None and not any(body and problem.startswith(f"{body}.") for problem in problems):
        return other
    return FormatError(
        explain(
            "this checkpoint does not hold all weights of its model: the rest would be random",
            found=[f"{checkpoint.directory}: {problem}" for problem in problems[:10]],
            do="fetch it again",
        )
    )


_COUNTS = (".total_ops", ".total_params")
"""Ends of names that a well-known counter of operations leaves in every module that it counted."""


def _check_used(model: nn.Module, unused: list[str], packed: bitsandbytes.Quantized, checkpoint: Checkpoint) -> None:
    """Refuse weights of the file that the model would hold if its configuration were another: more layers, biases, norms within
    a layer, the scales of quantised weights.

    Heads of other tasks, and parts of models that see or hear, are not among them; what a model can make itself is no weight.
    """
    modules = {path for path, _ in model.named_modules()}
    weighted = {f"{path}." for path, part in model.named_modules() if path and "weight" in part._parameters}
    own = (*weighted, "base_model.model.")  # or an adapter's, in the exchange format
    prefix, taken = getattr(model, "base_model_prefix", ""), tuple(f"{path}." for path in packed)
    problems = []
    for key in unused:
        if key.startswith(taken) or key.endswith(_COUNTS):
            continue
        forms = (key, key.removeprefix(f"{prefix}."), f"{prefix}.{key}")
        is_weight = key.endswith((".weight", ".bias"))
        names = [name for name in forms if name.startswith(own) or (is_weight and _would_hold(name, modules))]
        entry = checkpoint.tensors.get(key)
        if names and (entry is None or entry.dtype not in ("BOOL", "U8")):  # masks of old checkpoints are called bias
            problems.append(f"{key} is not used")
    if problems:
        layers = getattr(model.config, "num_hidden_layers", None)
        raise FormatError(
            explain(
                "this checkpoint holds weights that its configuration leaves out: another model would be computed",
                found=[f"{checkpoint.directory / 'config.json'}: num_hidden_layers {layers}", *few(problems)],
                do="fetch config.json again, or correct it",
            )
        )


def _would_hold(name: str, modules: set[str]) -> bool:
    """A tensor of this name belongs to one of the modules, to a part of a numbered layer, or to such a layer beside theirs."""
    path = name.rpartition(".")[0]
    if path in modules:
        return True
    parts = path.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdigit()]
    if not numbered:
        return False
    first = numbered[0]
    siblings = ".".join([*parts[:first], "0", *parts[first + 1 :]])
    return ".".join(parts[: first + 1]) in modules or siblings in modules


def _fill_(model: nn.Module, chosen: _Choices, limit: int | None, held_by: World | None) -> None:
    """Replace every placeholder by a quantised layer."""
    packed, device = chosen.packed, torch.device(chosen.device)
    prefix, mapped, placeholders = getattr(model, "base_model_prefix", ""), Mapped(), meta_model.placeholders(model)
    names = {path: stored.checkpoint_path(path, prefix, packed) or "" for path in placeholders}
    entries = {id(packed[name]): packed[name] for name in names.values()}  # a tied weight is one
    matrices = [meta_model.matrix(scheme, mapped.tensors(tensors)) for scheme, tensors in entries.values()]
    numbers = [list(entries).index(id(packed[names[path]])) for path in placeholders]
    unexpected = set(packed) - set(names.values()) if chosen.spec.continues else set()  # classifiers have no decoder
    _check_fit(placeholders, [matrices[number] for number in numbers], unexpected)
    if held_by is not None:
        matrices = sharded.place(matrices, held_by, device)
    elif device.type == "cpu":
        _read_ahead_(matrices, mapped, [tensors.values() for _, tensors in entries.values()])
    elif matrices:
        others = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        free = torch.cuda.mem_get_info(device)[0] + others if device.type == "cuda" else None
        matrices = streamed.place(matrices, others, limit or free, device)
    for (path, placeholder), number in zip(placeholders.items(), numbers, strict=True):
        model.set_submodule(path, placeholder.filled(matrices[number], chosen.dtype))


def _check_fit(
    placeholders: Mapping[str, meta_model.Placeholder], matrices: Sequence[Matrix], unexpected: Set[str]
) -> None:
    """Refuse quantised weights of other shapes than the model's layers, and those that it has no layer for."""
    problems = [
        f"{path}: shape {matrix.shape}, the model has {placeholder.shape}"
        for (path, placeholder), matrix in zip(placeholders.items(), matrices, strict=True)
        if matrix.shape != placeholder.shape
    ]
    problems += [f"{name}: this model has no linear map of that name" for name in sorted(unexpected)]
    if problems:
        wrong = "this checkpoint's quantised weights are not its model's"
        raise FormatError(explain(wrong, found=problems[:10], do="quantize again"))


def _read_ahead_(matrices: Sequence[Matrix], mapped: Mapped, stored: Sequence[Iterable[TensorEntry]]) -> None:
    """Let weights that are used say so, and the ones that come next be read; `stored`: what each has in the file."""
    ahead = ReadAhead([[*map(mapped.pages, entries)] for entries in stored], psutil.virtual_memory().available)
    for number, matrix in enumerate(matrices):
        matrix.before_use = functools.partial(ahead.use, number)


def read_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of a checkpoint; `FormatError` where it has none that `transformers` can read."""
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(checkpoint.directory, local_files_only=True, trust_remote_code=False)
        growth.check(found, str(checkpoint.directory / "tokenizer.json"))
        ids = found("a text", add_special_tokens=False, verbose=False)["input_ids"]
        found.decode(ids)  # some fail at their first text
        return found
    except FormatError:
        raise
    except BaseException as error:  # likewise; and a panic of the library in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        wrong, found = "this model has no tokenizer that transformers can read", f"{checkpoint.directory}: {reason}"
        raise FormatError(explain(wrong, found=found, do=_tokenizer_hint(checkpoint))) from None


def _tokenizer_hint(checkpoint: Checkpoint) -> str:
    """What to do for a tokenizer that could not be read: its form may need a package that is not here."""
    names = [name for name in ("tokenizer.model", "spiece.model") if (checkpoint.directory / name).is_file()]
    if (
        names
        and not (checkpoint.directory / "tokenizer.json").is_file()
        and not importlib.util.find_spec("sentencepiece")
    ):
        return f"pip install sentencepiece, which reads its {names[0]}; or put its tokenizer.json beside that"
    return "put its tokenizer.json and tokenizer_config.json beside config.json"


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without the loading bars and reports of transformers, whose problems are raised here instead."""
    from transformers.utils import logging as transformers_logging

    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
