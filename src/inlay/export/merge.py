"""Writing W + (what the adapter does) as a full checkpoint, tensor by tensor.

The merged checkpoint has the base's files and tensors; only the bytes of the adapted weights differ. A weight is read, merged
in float32 and rounded once, a tile of its rows at a time, so that a model of any size needs the memory of a tile. Quantised
weights become the numbers that they stand for. A head that the base lacks is added. Nothing appears before the merged model has
been loaded and compared with the unmerged one.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inlay.base.base import Base
from inlay.errors import CompatibilityError, explain
from inlay.export import ties
from inlay.export.agreement import SAMPLE, Comparison, compare
from inlay.export.plan import Planned, matrix_of, planned
from inlay.export.survival import check_survives
from inlay.formats.peft import CARD
from inlay.generation.stopping import write_settings
from inlay.io import checkpoint, json_files, records
from inlay.io import output as output_directory
from inlay.io.safetensors import TensorEntry, Writer, chunks, read_tensor
from inlay.methods import name_of
from inlay.model.adapter import Adapter
from inlay.model.changes import adds, replaced
from inlay.modules.linear import Linear, Part

_TILE_BYTES = 16 << 20
_ROUNDED_PART = {True: 0.02, False: 0.5}
"""How much of what the adapter does to a logit may be lost where all is float32, and where a weight is rounded further."""


def merge(
    base: Base,
    adapter: str,
    output: str | Path,
    *,
    texts: Sequence[str] = SAMPLE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Write the checkpoint in which `adapter` is part of the weights, and compare it with base and adapter.

    **Arguments:**

    - `adapter`: the name of an attached adapter.
    - `texts`: what to compare the logits on.
    - `progress`: called with the bytes written so far and in all.

    **Raises:**

    - `OutputError`: the directory exists, or the disk is full; nothing is left half-written.
    - `CompatibilityError`: the base is a GGUF file, an adapted weight is not in the checkpoint under its own name, or the
      merged model does not do what base and adapter do, because its dtype is too coarse for the change.
    """
    merged = base.adapters[adapter]
    if base.checkpoint.packed:
        wrong, do = (
            "nothing is merged into a GGUF file",
            "the adapter beside it; or merge into its safetensors with --force",
        )
        raise CompatibilityError(explain(wrong, found=base.checkpoint.reference, do=do))
    check_mergeable(merged)
    check_survives(base, merged)
    target = output_directory.place(output)
    output_directory.check_free(target)
    output_directory.check_space(target, num_bytes(base, adapter) + checkpoint.beside_bytes(base.checkpoint.directory))
    with output_directory.new_directory(target) as partial:
        write(base, merged, partial, progress)
        base.check_unchanged()
        return _checked(base, adapter, partial, texts)


def num_bytes(base: Base, adapter: str) -> int:
    """What the merged checkpoint's tensors take."""
    return sum(t.num_bytes for t in planned(base, base.adapters[adapter]).values())


def write(base: Base, adapter: Adapter, directory: Path, progress: Callable[[int, int], None]) -> None:
    """Write the merged checkpoint into `directory`, which exists, without comparing it; see `merge`."""
    tensors, done = planned(base, adapter), 0
    total = sum(tensor.num_bytes for tensor in tensors.values())

    def wrote(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    for file in base.checkpoint.files:
        own = {name: tensor for name, tensor in tensors.items() if tensor.file == file.name}
        _write_file(base, adapter, own, directory / file.name, wrote)
    checkpoint.copy_rest(base.checkpoint.directory, directory)
    unties = ties.unties(base, adapter)
    if base.scheme is not None or unties or base.fresh_heads:
        _describe_anew(base, directory, tensors, unties)
    if base.spec.continues:
        write_settings(directory, base.stop_ids(adapter.name))
    _write_record(base, adapter, directory)


def check_mergeable(adapter: Adapter) -> None:
    """Refuse a change that is not one of the base's tensors.

    **Raises:**

    - `CompatibilityError`: the method adds what no weight can hold; the message says what.
    """
    if adapter.method.unmergeable_because:
        raise CompatibilityError(
            explain(
                f"a {name_of(adapter.method)} adapter can't be merged: {adapter.method.unmergeable_because}",
                found=adapter.name,
                do="keep the adapter apart: --adapter works with every command",
            )
        )


def _describe_anew(base: Base, directory: Path, tensors: dict[str, Planned], unties: bool) -> None:
    """Let configuration and index say what is there: no quantised weights any more, or a head of its own, and its classes."""
    config = {
        key: value
        for key, value in json_files.read_json(directory / "config.json").items()
        if key != "quantization_config"
    }
    config |= {"tie_word_embeddings": False} if unties else {}
    config |= _about_head(base) if base.fresh_heads else {}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    if (directory / checkpoint.INDEX).exists():
        size = sum(tensor.num_bytes for tensor in tensors.values())
        index = {
            "metadata": {"total_size": size},
            "weight_map": {name: tensor.file for name, tensor in tensors.items()},
        }
        (directory / checkpoint.INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _about_head(base: Base) -> dict[str, Any]:
    """What a configuration says of a model with the task's head: its class, its classes, and what rows are filled up with."""
    return {
        "architectures": [type(base.model).__name__],
        "id2label": {str(number): label for number, label in enumerate(base.labels)},
        "label2id": {label: number for number, label in enumerate(base.labels)},
        "pad_token_id": base.pad_token,
    }


def _checked(base: Base, adapter: str, directory: Path, texts: Sequence[str]) -> Comparison:
    comparison = compare(base, adapter, directory, texts)
    is_fine = base.dtype == torch.float32 and {entry.dtype for entry in base.checkpoint.tensors.values()} <= {
        "F32",
        "F64",
    }
    part = _ROUNDED_PART[is_fine]
    if not comparison.largest_difference <= max(part * comparison.adapter_difference, 1e-3):
        raise CompatibilityError(
            explain(
                "the merged model does not do what base and adapter do",
                found=f"a logit differs by {comparison.largest_difference:.3g}, where the whole adapter moves logits by "
                f"{comparison.adapter_difference:.3g}; the checkpoint's weights are {_dtypes(base)}",
                do="keep the adapter apart, or merge into a checkpoint of a finer dtype",
            )
        )
    return comparison


def _write_file(
    base: Base, adapter: Adapter, tensors: dict[str, Planned], target: Path, wrote: Callable[[int], None]
) -> None:
    """Write one weight file; `wrote` is told the number of bytes after each tensor."""
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with contextlib.closing(Writer(target, layout)) as writer:
        for name, tensor in tensors.items():
            if tensor.path is not None and tensor.is_fresh:
                merged = _merged_fresh(base, adapter, tensor.path, name.rpartition(".")[2])
                writer.put(name, merged.to(tensor.dtype).reshape(tensor.shape))
            elif tensor.path is not None and (name.endswith(".bias") or tensor.path not in base.maps):
                kind = name.rpartition(".")[2]
                writer.put(name, _merged_vector(base, adapter, tensor.path, kind).to(tensor.dtype))
            elif tensor.path is not None:
                for start, tile in _merged_tiles(base, adapter, tensor, tensor.path):
                    writer.put_bytes(name, start, tile.contiguous().view(torch.uint8).numpy().data)
            elif tensor.entry is not None:
                for start, data in chunks(tensor.entry, _TILE_BYTES):
                    writer.put_bytes(name, start, data)
            wrote(tensor.num_bytes)


def _merged_fresh(base: Base, adapter: Adapter, path: str, name: str) -> Tensor:
    """A tensor of a head that the base lacks: the adapter's, or what the head starts from where that has none."""
    start = base.layout.modules[path]._parameters[name]
    assert start is not None, "a tensor of the head that is written is one that it has"
    if path not in base.maps or not adds(adapter.at(path)):
        return replaced(adapter.at(path)).get(name, start).detach().cpu()
    linear = base.maps[path]
    bias = None if linear.bias is None else linear.bias.float()
    weight, bias = adapter.merged(path, linear.weight(torch.float32), bias)
    changed = bias if name == "bias" else linear.as_stored(weight)
    assert changed is not None, "a method takes no bias away"
    return changed.detach().cpu()


def _merged_vector(base: Base, adapter: Adapter, path: str, name: str) -> Tensor:
    """A merged bias, which may depend on the weight, which is merged again for it; or a tensor of what is no map."""
    if path not in base.maps or not adds(adapter.at(path)):
        return replaced(adapter.at(path))[name].cpu()
    linear = base.maps[path]
    assert linear.bias is not None, "the checkpoint has a bias that the module does not"
    _, new = adapter.merged(path, linear.weight(torch.float32), linear.bias.float())
    assert new is not None, "a method takes no bias away"
    return new.cpu()


def _merged_tiles(base: Base, adapter: Adapter, tensor: Planned, path: str) -> Iterator[tuple[int, Tensor]]:
    """The merged weight of one module, a tile of rows at a time, each with the number of bytes before it."""
    linear = base.maps[path]
    if linear.count is not None:
        assert tensor.entry is not None, "a parameter that holds several maps is not quantised"
        for place, new in _merged_parts(adapter, path, linear, tensor.entry, tensor.part):
            yield place, _finite(new, path, tensor.dtype)
        return
    rows, row_bytes = tensor.shape[0], tensor.num_bytes // tensor.shape[0]
    step = max(1, _TILE_BYTES // row_bytes) if _is_by_outputs(linear) else rows
    for start in range(0, rows, step):
        new = _tile(base, tensor, path, start, min(start + step, rows))
        if adapter.at(path):
            new, _ = adapter.merged(path, new, None, start)
        yield start * row_bytes, linear.as_stored(_finite(new, path, tensor.dtype))


def _is_by_outputs(linear: Linear) -> bool:
    """Rows of the weight as it is stored are rows of the equation's; otherwise all of it is merged at once."""
    return next(iter(linear.sizes)) == "out"


def _merged_parts(
    adapter: Adapter, path: str, linear: Linear, entry: TensorEntry, part: Part | None
) -> Iterator[tuple[int, Tensor]]:
    """The merged weights that a tensor of the checkpoint holds, map by map, each with the number of bytes before it."""
    if part is not None:
        yield 0, adapter.merged(path, read_tensor(entry), None, part.start, part.number)[0]
        return
    size = (entry.stop - entry.start) // entry.shape[0]
    for number in range(entry.shape[0]):
        start = entry.start + number * size
        stored = read_tensor(entry._replace(shape=entry.shape[1:], start=start, stop=start + size))
        W, _ = adapter.merged(path, linear.as_map(stored), None, number=number)
        yield number * size, linear.as_stored(W)


def _finite(new: Tensor, path: str, dtype: torch.dtype) -> Tensor:
    """A merged weight in the dtype of the checkpoint; refused where that can't hold it."""
    new = new.to(dtype).cpu()
    if not torch.isfinite(new).all():
        raise CompatibilityError(
            explain(
                "a merged weight is not finite",
                found=f"{path}: the base's weight is not, or the change is too large for {dtype}",
                do="keep the adapter apart, or merge into a checkpoint of a wider dtype",
            )
        )
    return new


def _tile(base: Base, tensor: Planned, path: str, start: int, stop: int) -> Tensor:
    """The weight, as the equation has it, of what is stored in the rows start <= i < stop; of a quantised one in float32."""
    linear = base.maps[path]
    if tensor.entry is None:
        matrix = matrix_of(base, path)
        if not _is_by_outputs(linear):
            return matrix.dequantize(torch.float32)
        tile = torch.empty(stop - start, tensor.shape[1], device=matrix.device)
        matrix.read(start, tile)
        return tile.cpu()
    at, row_bytes = tensor.entry.start, tensor.num_bytes // tensor.shape[0]
    part = tensor.entry._replace(
        shape=(stop - start, *tensor.shape[1:]), start=at + start * row_bytes, stop=at + stop * row_bytes
    )
    return linear.as_map(read_tensor(part))


def _write_record(base: Base, adapter: Adapter, directory: Path) -> None:
    (directory / CARD).write_text(
        f"{base.checkpoint.name} with the adapter {adapter.name} merged into its weights by Inlay; `inlay.json` says which.\n",
        "utf-8",
    )
    records.write(
        directory,
        {
            "merged": {
                "base": {"name": base.checkpoint.name, **base.fingerprint.as_dict()},
                "adapter": adapter.name,
                "training": adapter.record.get("training", {}),
                **base.about_task,
            }
        },
    )


def _dtypes(base: Base) -> str:
    return ", ".join(sorted({entry.dtype for entry in base.checkpoint.tensors.values()}))
