"""Making a quantised base out of a plain one, a few hundred megabytes at a time.

    plan       what goes into which shard: known from the headers alone
    shards     each is written under a temporary name, brought to the disk, renamed; so one that is there is whole
    the end    index, configuration and record; the directory gets its name

The work lies in a hidden directory beside the output until it is done. A run that was killed leaves there what it had finished,
and the next one with the same plan (the same source, scheme and version) goes on from it; with another plan it begins anew.

Quantised are the linear maps of the model's body, but for poolers: no head is, since heads are trained whole, and models of
other tasks have no place for them. So one quantised base serves every task. A weight is read once, quantised, compared with
what it became, and let go, so that the memory needed is that of the largest one and its codes.
"""

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inlay import quant
from inlay.base import meta_model
from inlay.errors import CompatibilityError, ConfigError, FormatError, explain, few
from inlay.io import bitsandbytes, checkpoint, json_files, output, records, safetensors
from inlay.io.checkpoint import Checkpoint
from inlay.io.fingerprint import digest_of, fingerprint, identities
from inlay.layout import stored, targets
from inlay.modules.linear import Linear
from inlay.quant.contract import Packed, Scheme

SHARD_BYTES = 256 << 20
"""Size of the output's files, unless a weight alone is larger."""

TILE_BYTES = 8 << 20
"""How much of a weight is compared at a time with what it became."""

PLAN, ERRORS = "plan", ".errors"
"""In the directory of unfinished work: what is being made, and the end of the name of each shard's errors."""

_WEIGHTS = ("F32", "BF16", "F16")
"""Dtypes of weights that can be quantised."""

Progress = Callable[[int, int], None]


class Report(NamedTuple):
    """What was made."""

    directory: Path
    num_quantized: int
    """How many weights are quantised."""
    bits: float
    """Bits of each, constants included."""
    source_bytes: int
    num_bytes: int
    errors: dict[str, float]
    """|W - W'| / |W| of each layer, by path."""


class _Make(NamedTuple):
    """How weights are quantised."""

    scheme: Scheme
    refine: bool


class _Weight(NamedTuple):
    """A linear map that is to be quantised."""

    path: str
    """Its module, as the checkpoint's names have it."""
    entry: safetensors.TensorEntry
    shape: tuple[int, int]
    linear: Linear
    """The map itself, without its weight."""


def quantize(
    source: Checkpoint,
    directory: str | Path,
    scheme: str = "nf4",
    *,
    keep: Sequence[str] = (),
    refine: bool = False,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Write `source` with its linear maps quantised, or go on where a run that was killed stopped.

    **Arguments:**

    - `scheme`: one of `inlay.quant.names()`.
    - `keep`: linear maps to leave as they are, by the end of their path, beside the heads.
    - `refine`: see `Scheme.refine`.
    - `progress`: called with the bytes of the source that are done and in all.

    **Raises:**

    - `OutputError`: the directory exists, another process is making it, or the disk is full; what is finished is kept.
    - `CompatibilityError`: a linear map is not in the checkpoint under its own name, or it is quantised already.
    - `ConfigError`: the scheme can't take some of the weights, or `keep` names none.
    - `FormatError`: a weight is not finite, or the source changed while it was read.
    """
    target, how = output.place(directory), quant.find(scheme)
    output.check_free(target)
    weights, kept = _weights(source, how, keep)
    shards, before = _shards(source, how, weights), identities(source)
    about = _about(source, scheme, refine)
    total = sum(entry.stop - entry.start for entry in source.tensors.values())
    with _unfinished(target, about | {"shards": [list(shard) for shard in shards]}) as partial:
        files = {partial / f"model-{i:05}-of-{len(shards):05}.safetensors": shard for i, shard in enumerate(shards, 1)}
        left = sum(_num_bytes(shard) for file, shard in files.items() if not file.exists())
        output.check_space(target, left + checkpoint.beside_bytes(source.directory))
        errors = _write_shards(source, _Make(how, refine), weights, files, lambda done: progress(done, total))
        _check_same(source, before)
        _finish(source, partial, files, bitsandbytes.configuration(how, kept), about | {"errors": errors})
        output.put(partial, target)
    return _report(target, how, weights, total, errors)


def _check_same(source: Checkpoint, before: Any) -> None:
    """Refuse a source whose files are not those of before any more."""
    if identities(source) != before:
        found = str(source.directory)
        raise FormatError(explain("the base changed while it was quantised", found=found, do="run it again"))


def _about(source: Checkpoint, scheme: str, refine: bool) -> dict[str, Any]:
    """What the record says of how the weights were made."""
    made_from = {"name": source.name, **fingerprint(source).as_dict()}
    about = {"scheme": scheme, "version": bitsandbytes.VERSION, "refined": refine, "source": made_from}
    return about | ({"needs": str(brought)} if (brought := quant.TABLE.origin(scheme)) else {})


def _report(
    target: Path, scheme: Scheme, weights: Mapping[str, _Weight], total: int, errors: dict[str, float]
) -> Report:
    count = sum(math.prod(weight.shape) for weight in weights.values())
    dtypes = safetensors.TORCH_DTYPES
    bits = sum(8 * scheme.num_bytes(weight.shape, dtypes[weight.entry.dtype]) for weight in weights.values())
    num_bytes = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return Report(target, count, bits / count, total, num_bytes, errors)


def _weights(source: Checkpoint, scheme: Scheme, keep: Sequence[str]) -> tuple[dict[str, _Weight], list[str]]:
    """What is quantised, by its tensor's name in the checkpoint, and the modules that are not."""
    if source.config.get("quantization_config"):
        found = f"{source.directory / 'config.json'}: quantization_config"
        raise CompatibilityError(explain("this base is quantised already", found=found, do="its source, in bfloat16"))
    model = meta_model.meta(source, meta_model.own_class(source))
    prefix, linears = getattr(model, "base_model_prefix", ""), targets.linear_modules(model)
    heads = targets.heads(model, linears)
    kept = [path for path in linears if path in heads or any(targets.is_named(name, path) for name in keep)]
    unknown = [name for name in keep if not any(targets.is_named(name, path) for path in kept)]
    if unknown:
        known = targets.summary(linears)
        raise ConfigError(explain("no linear layer of that name", found=f"{', '.join(unknown)}; there are {known}"))
    weights: dict[str, _Weight] = {}
    missing, problems = [], []
    for path, linear in linears.items():
        if path in kept:
            continue
        name = stored.checkpoint_path(f"{path}.weight", prefix, source.tensors)
        shape = (linear.out_features, linear.in_features)
        if name is None or source.tensors[name].dtype not in _WEIGHTS:
            missing.append(f"{path}: {'no tensor of that name' if name is None else source.tensors[name].dtype}")
        elif (problem := scheme.problem(shape)) is not None:
            problems.append(f"{path}: {problem}")
        else:
            weights[name] = _Weight(name.removesuffix(".weight"), source.tensors[name], shape, linear)
    _refuse(source, missing, problems)
    if not weights:
        raise ConfigError(explain("nothing is left to quantise", found=f"kept are {', '.join(kept)}", do="keep fewer"))
    return weights, kept


def _refuse(source: Checkpoint, missing: list[str], problems: list[str]) -> None:
    if missing:
        raise CompatibilityError(
            explain(
                "these linear layers are not in the checkpoint as this model has them",
                found=missing[:10],
                do="a checkpoint whose weights have the names and numbers of their modules",
            )
        )
    if problems:
        names = ",".join(dict.fromkeys(problem.partition(":")[0].rpartition(".")[2] for problem in problems))
        raise ConfigError(
            explain(
                "this scheme can't take all layers",
                found=few(problems),
                do=f"inlay quantize {source.name} --keep {names} --output DIRECTORY",
            )
        )


_Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def _shards(source: Checkpoint, scheme: Scheme, weights: dict[str, _Weight]) -> list[dict[str, _Layout]]:
    """The output's files: tensor of the source -> what it becomes."""
    shards: list[dict[str, _Layout]] = [{}]
    size = 0
    for name, entry in source.tensors.items():
        dtype, weight = safetensors.TORCH_DTYPES[entry.dtype], weights.get(name)
        layout: _Layout = {name: (dtype, entry.shape)}
        if weight is not None:
            made = scheme.layout(weight.shape, dtype)
            layout = {bitsandbytes.tensor_name(weight.path, key): tensor for key, tensor in made.items()}
        more = _num_bytes({name: layout})
        if shards[-1] and size + more > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = layout
        size += more
    return shards


def _num_bytes(shard: dict[str, _Layout]) -> int:
    return sum(math.prod(shape) * dtype.itemsize for layout in shard.values() for dtype, shape in layout.values())


@contextlib.contextmanager
def _unfinished(target: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """The directory of unfinished work for `target`: that of an earlier run with the same plan, or a new one."""
    partial = target.parent / f".{target.name[:100]}.quantizing"
    with output.refusals(target):
        partial.mkdir(parents=True, exist_ok=True)
        with output.locked(partial):
            if not _has_plan(partial, plan):
                for path in partial.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                output.write_file(partial / PLAN, json.dumps(plan).encode())
            for file in partial.glob("*.new"):
                file.unlink()
            yield partial


def _has_plan(partial: Path, plan: dict[str, Any]) -> bool:
    with contextlib.suppress(FormatError, OSError):
        return json_files.read_json(partial / PLAN) == plan
    return False


def _write_shards(
    source: Checkpoint,
    make: _Make,
    weights: dict[str, _Weight],
    shards: Mapping[Path, dict[str, _Layout]],
    progress: Callable[[int], None],
) -> dict[str, float]:
    """Write the files that are not there yet; the errors of all layers."""
    errors, done = dict[str, float](), 0
    for file, shard in shards.items():
        if not file.exists():
            _write_shard(source, make, weights, shard, file, lambda more, done=done: progress(done + more))
        errors |= json_files.read_json(file.with_suffix(ERRORS))
        done += sum(source.tensors[name].stop - source.tensors[name].start for name in shard)
        progress(done)
    return errors


def _write_shard(
    source: Checkpoint,
    make: _Make,
    weights: dict[str, _Weight],
    shard: dict[str, _Layout],
    file: Path,
    progress: Callable[[int], None],
) -> None:
    """Write one file of the output, and its layers' errors beside it; it gets its name when it is whole."""
    new, errors, done = file.with_suffix(".new"), {}, 0
    layout = {name: tensor for own in shard.values() for name, tensor in own.items()}
    with contextlib.closing(safetensors.Writer(new, layout)) as writer:
        for name in shard:
            entry, weight = source.tensors[name], weights.get(name)
            if weight is None:
                for start, data in safetensors.chunks(entry, TILE_BYTES):
                    writer.put_bytes(name, start, data)
            else:
                stored = safetensors.read_tensor(entry)
                packed, errors[weight.path] = _quantized(make, weight.path, weight.linear.as_map(stored))
                for key, tensor in packed.items():
                    writer.put(bitsandbytes.tensor_name(weight.path, key), tensor)
            done += entry.stop - entry.start
            progress(done)
    output.write_file(file.with_suffix(ERRORS), json.dumps(errors).encode())
    new.rename(file)


def _quantized(make: _Make, path: str, weight: Tensor) -> tuple[Packed, float]:
    """A weight's tensors, and how far they are from it: |W - W'| / |W|.

    **Raises:**

    - `FormatError`: it is not finite.
    """
    weight = weight.contiguous()
    step = max(1, TILE_BYTES // (4 * weight.shape[1]))
    starts = range(0, len(weight), step)
    if not all(bool(torch.isfinite(weight[start : start + step]).all()) for start in starts):
        raise FormatError(
            explain(
                "a weight that is not finite can't be quantised", found=f"{path}: NaN or infinite", do="fetch it again"
            )
        )
    packed = make.scheme.refine(weight) if make.refine else make.scheme.quantize(weight)
    matrix, off, size = make.scheme.open(packed), 0.0, 0.0
    tile = torch.empty(min(step, len(weight)), weight.shape[1])
    for start in starts:
        true, made = weight[start : start + step].float(), tile[: len(weight) - start]
        matrix.read(start, made)
        off += (made - true).square_().sum(dtype=torch.float64).item()
        size += true.square_().sum(dtype=torch.float64).item()
    return packed, (off / size) ** 0.5 if size else 0.0


def _finish(
    source: Checkpoint,
    partial: Path,
    files: Mapping[Path, dict[str, _Layout]],
    config: dict[str, Any],
    made: dict[str, Any],
) -> None:
    """Write what stands beside the weights, remove what only unfinished work needs, and bring all of it to the disk."""
    index = {name: file.name for file, shard in files.items() for layout in shard.values() for name in layout}
    content = {"metadata": {"total_size": sum(map(_num_bytes, files.values()))}, "weight_map": index}
    own = json_files.read_json(source.directory / "config.json") | {"quantization_config": config}
    checkpoint.copy_rest(source.directory, partial)
    for name, value in ((checkpoint.INDEX, content), ("config.json", own)):
        output.write_file(partial / name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())
    records.write(partial, {"quantized": made | {"weights": digest_of(checkpoint.open_checkpoint(partial))}})
    for file in (partial / PLAN, *partial.glob(f"*{ERRORS}")):
        file.unlink()
    output.sync(partial)
