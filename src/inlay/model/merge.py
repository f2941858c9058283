"""Writing W + (what the adapter does) as a full checkpoint, tensor by tensor.

The merged checkpoint has the base's files with the base's headers; only the bytes of the adapted weights differ. A weight is
read, merged in float32 and rounded once in tiles of its rows, so that the memory needed is a tile, whatever the model's
size. The base's files are not touched. Nothing appears under the output's name before the merged model has been loaded and
its logits compared with the unmerged ones.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from inlay.errors import CompatibilityError, FormatError, explain
from inlay.io import output as output_directory
from inlay.io import peft
from inlay.io._safe import TORCH_DTYPES, TensorEntry
from inlay.model.adapter import Adapter
from inlay.model.base import DTYPES, Base, load

SAMPLE = (
    "The ferry leaves at nine, and whoever misses it waits for the next one on the quay until noon.",
    "When water freezes it takes up more room than before, which is why a full bottle bursts in the cold.",
    "She counted the coins twice, put seven of them back into the drawer and wrote the sum in her book.",
    "A bridge is built from both banks at once, and the two halves have to meet in the middle.",
)
"""Text on which merged and unmerged logits are compared where none is given."""

_TILE_BYTES = 16 << 20
_MERGEABLE = ("F32", "BF16", "F16", "F64")
"""The dtypes of files that a change can be rounded to."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")


class Comparison(NamedTuple):
    """The logits of the merged model against those of base and adapter, over the same tokens."""

    num_rows: int
    largest_difference: float
    """Largest absolute difference of a logit, merged against unmerged."""
    adapter_difference: float
    """Largest absolute difference of a logit, adapter against plain base: what there is to lose."""
    same_next_token: float
    """Part of the positions, 0 to 1, at which both find the same token likeliest."""


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
    - `CompatibilityError`: an adapted weight is not in the checkpoint under its own name, or the merged model does not do
      what base and adapter do, because its dtype is too coarse for the change.
    """
    merged = base.get(adapter)
    target = Path(output)
    names = _checkpoint_names(base, merged)
    total = sum(file.stat().st_size for file in base.checkpoint.files)
    output_directory.check_free(target)
    output_directory.check_space(target, total)
    with output_directory.new_directory(target) as partial:
        done = 0
        for file in base.checkpoint.files:
            for count in _merge_file(base, merged, names, file, partial / file.name):
                done += count
                progress(done, total)
        _copy_rest(base.checkpoint.directory, partial)
        _write_record(base, merged, partial)
        return _checked(base, adapter, partial, texts)


def compare(base: Base, adapter: str, directory: Path, texts: Sequence[str]) -> Comparison:
    """Load the merged model in the base's dtype and compare logits over `texts`."""
    other = load(directory, dtype=next(name for name, dtype in DTYPES.items() if dtype == base.dtype))
    differences, moves = [], []
    same = positions = 0
    for text in texts:
        ids = torch.tensor([base.tokenizer(text)["input_ids"][: base.max_length]])
        unmerged, plain, merged = base.logits(ids, adapter), base.logits(ids, None), other.logits(ids, None)
        differences.append((merged.float() - unmerged.float()).abs().max())
        moves.append((plain.float() - unmerged.float()).abs().max())
        same += int((merged.argmax(-1) == unmerged.argmax(-1)).sum())
        positions += ids.numel()
    largest, moved = torch.stack(differences).max().item(), torch.stack(moves).max().item()  # torch's max keeps a NaN
    return Comparison(len(texts), largest, moved, same / positions)


def _checked(base: Base, adapter: str, directory: Path, texts: Sequence[str]) -> Comparison:
    comparison = compare(base, adapter, directory, texts)
    if not comparison.largest_difference <= max(comparison.adapter_difference / 2, 1e-3):
        raise CompatibilityError(
            explain(
                "the merged model does not do what base and adapter do",
                found=f"a logit differs by {comparison.largest_difference:.3g}, where the whole adapter moves logits by "
                f"{comparison.adapter_difference:.3g}; the checkpoint's weights are {_dtypes(base)}",
                do="keep the adapter apart, or merge into a checkpoint of a finer dtype",
            )
        )
    return comparison


def _checkpoint_names(base: Base, adapter: Adapter) -> dict[str, str]:
    """Tensor name in the checkpoint -> path of the adapted module whose weight or bias it is."""
    tensors = base.checkpoint.tensors
    prefix = getattr(base.model, "base_model_prefix", "") + "."
    names: dict[str, str] = {}
    problems: list[str] = []
    for path in adapter.params:
        name, bias = (
            next((n for n in (f"{path}.{kind}", f"{path}.{kind}".removeprefix(prefix)) if n in tensors), None)
            for kind in ("weight", "bias")
        )
        stored = tuple(base.linears[path].stored.shape)
        if path == base.head and name is None:
            problems.append(f"{path} shares its weight with the input embedding, which the adapter does not change")
        elif name is None:
            problems.append(f"{path}: the checkpoint has no tensor of that name")
        elif tensors[name].shape != stored or tensors[name].dtype not in _MERGEABLE:
            problems.append(
                f"{path}: {tensors[name].dtype} of shape {tensors[name].shape} in the checkpoint, here {stored}"
            )
        else:
            names |= {name: path} | ({bias: path} if bias else {})
    if problems:
        raise CompatibilityError(
            explain(
                "this adapter can't be merged into the files of this base",
                found=problems[:10],
                do="keep the adapter apart: --adapter works with every command",
            )
        )
    return names


def _merge_file(base: Base, adapter: Adapter, names: dict[str, str], source: Path, target: Path) -> Any:
    """Write one weight file; yields the number of bytes after each tensor."""
    entries = {name: entry for name, entry in base.checkpoint.tensors.items() if entry.file == source}
    data_start = min((entry.start for entry in entries.values()), default=source.stat().st_size)
    with source.open("rb") as read, target.open("wb") as write:
        _copy(read, write, 0, data_start)
        yield data_start
        for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
            if name in names and name.endswith(".bias"):
                _merge_bias(base, adapter, names[name], entry, write)
            elif name in names:
                _merge_weight(base, adapter, names[name], entry, read, write)
            else:
                _copy(read, write, entry.start, entry.stop)
            yield entry.stop - entry.start


def _merge_bias(base: Base, adapter: Adapter, path: str, entry: TensorEntry, write: BinaryIO) -> None:
    """Write the merged bias of one module; it may depend on the weight, which is merged again for it."""
    linear = base.linears[path]
    assert linear.bias is not None, "the checkpoint has a bias that the module does not"
    _, new = adapter.methods[path].merge(adapter.params[path], linear.weight(torch.float32), linear.bias.float())
    assert new is not None, "a method takes no bias away"
    _write_tensor(write, new.to(TORCH_DTYPES[entry.dtype]).cpu())


def _merge_weight(base: Base, adapter: Adapter, path: str, entry: TensorEntry, read: BinaryIO, write: BinaryIO) -> None:
    """Write the merged weight of one module, a tile of rows at a time."""
    method, params = adapter.methods[path], {key: t.cpu() for key, t in adapter.params[path].items()}
    linear, dtype = base.linears[path], TORCH_DTYPES[entry.dtype]
    rows, columns = entry.shape
    row_bytes = columns * dtype.itemsize
    step = rows if linear.transposed else max(1, _TILE_BYTES // row_bytes)
    read.seek(entry.start)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        tile = torch.frombuffer(bytearray(read.read((stop - start) * row_bytes)), dtype=dtype).view(-1, columns)
        weight = tile.T if linear.transposed else tile  # (out of the tile, in)
        part = params if linear.transposed else method.rows(params, start, stop)
        new, _ = method.merge(part, weight, None)
        if not torch.isfinite(new).all():
            raise CompatibilityError(
                explain(
                    "a merged weight is not finite",
                    found=f"{path}: the base's weight is not, or the change is too large for {entry.dtype}",
                    do="keep the adapter apart, or merge into a checkpoint of a wider dtype",
                )
            )
        _write_tensor(write, new.T if linear.transposed else new)


def _write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    file.write(tensor.contiguous().view(torch.uint8).numpy().data)


def _copy(read: BinaryIO, write: BinaryIO, start: int, stop: int) -> None:
    read.seek(start)
    while start < stop:
        chunk = read.read(min(_TILE_BYTES, stop - start))
        if not chunk:
            raise FormatError(explain("a weight file became shorter while it was read", found=read.name))
        write.write(chunk)
        start += len(chunk)


def _copy_rest(source: Path, target: Path) -> None:
    """Everything beside the weights: configuration, tokenizer, templates, licence; the base's card under another name."""
    for file in source.iterdir():
        if file.is_file() and file.suffix not in _WEIGHTS and not file.name.startswith("."):
            shutil.copyfile(file, target / ("README.base.md" if file.name == peft.CARD else file.name))


def _write_record(base: Base, adapter: Adapter, directory: Path) -> None:
    (directory / peft.CARD).write_text(
        f"{base.checkpoint.name} with the adapter {adapter.name} merged into its weights by Inlay; `inlay.json` says which.\n",
        "utf-8",
    )
    peft.write_record(
        directory,
        {
            "merged": {
                "base": {"name": base.checkpoint.name, **base.fingerprint.as_dict()},
                "adapter": adapter.name,
                "training": adapter.record.get("training", {}),
            }
        },
    )


def _dtypes(base: Base) -> str:
    return ", ".join(sorted({entry.dtype for entry in base.checkpoint.tensors.values()}))
