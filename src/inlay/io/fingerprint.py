"""What a base is, in three SHA-256 digests: its weights, its tokenizer, its chat template.

    weights        over the tensors sorted by name: the name, dtype and shape as one line of JSON, then the digest of its bytes
    tokenizer      over tokenizer.json as canonical JSON, without the transient truncation and padding; over the bytes of
                   vocabulary files where there is no tokenizer.json
    chat_template  over the template's text; None where there is none
    rounded        what `weights` would be, had every tensor of floats been rounded to bfloat16: what copies of a base in other
                   dtypes share

Each tensor is digested by itself, so that both cores work and the order of shards does not matter. Digests of weights are
kept in the cache directory under what the system says of the files: path, size, inode, device, and the times of change of
content and of inode, of which nobody can set the second. So the second time costs milliseconds. A file that changed less than
`SETTLED_SECONDS` ago could change again without another time: its digest is not kept.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import torch

from inlay.errors import FormatError, explain
from inlay.io import bitsandbytes, json_files, output, safetensors
from inlay.io.checkpoint import Checkpoint, identity

_CHUNK_BYTES = 8 << 20
SETTLED_SECONDS = 2.0
"""What the coarsest clocks of file systems can't tell apart."""

_CHECKED = ("F64", "F32", "F16", "BF16")
"""Types whose NaN is looked for while the bytes are there: a model may answer something else in spite of one."""

_ROUNDED = ("F64", "F32", "F16")
"""Types that `rounded` takes as bfloat16."""

_DIGESTS = re.compile("([0-9a-f]{64}) ([0-9a-f]{64})")
_VOCABULARIES = ("tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json")


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The three digests of a base, in hexadecimal."""

    weights: str
    tokenizer: str | None
    chat_template: str | None
    quantized_from: str | None = None
    """The digest of the weights that these were made of, where they are quantised and that is known."""
    rounded: str | None = None
    """The digest of the same weights in bfloat16, where they are in another dtype; of what quantised ones were made of."""

    def __str__(self) -> str:
        return f"sha256 {short(self.weights)}"

    def as_dict(self) -> dict[str, str | None]:
        """The digests by name; `quantized_from` and `rounded` only where they are known."""
        sometimes = ("quantized_from", "rounded")
        return {name: digest for name, digest in dataclasses.asdict(self).items() if digest or name not in sometimes}


def short(digest: str | None) -> str:
    """A digest for the screen: its first four and last two digits."""
    return f"{digest[:4]}…{digest[-2:]}" if digest else "none"


def fingerprint(checkpoint: Checkpoint) -> Fingerprint:
    """The fingerprint of a checkpoint; its weights are read once and remembered."""
    source = bitsandbytes.source(checkpoint.directory)
    weights, rounded = _digests_of(checkpoint)
    if checkpoint.config.get("quantization_config"):
        rounded = source.get("rounded")
    return Fingerprint(
        weights=weights,
        tokenizer=_tokenizer(checkpoint.directory),
        chat_template=_chat_template(checkpoint.directory),
        quantized_from=source.get("weights"),
        rounded=rounded if rounded != weights else None,
    )


def cache_directory() -> Path:
    """Where Inlay keeps what it can make again: $INLAY_CACHE, or inlay under the user's cache directory."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("INLAY_CACHE") or Path(root) / "inlay")


def check_written(checkpoint: Checkpoint) -> None:
    """Refuse quantised weights that are not those which `inlay quantize` wrote, where their digest was kept.

    **Raises:**

    - `FormatError`: they are others: damaged, or exchanged.
    """
    written = bitsandbytes.record(checkpoint.directory).get("weights")
    if written is not None and written != digest_of(checkpoint):
        wrong = "the weights of this quantised base are not those that were written"
        found = f"{checkpoint.directory}: sha256 {short(digest_of(checkpoint))}, written was {short(str(written))}"
        raise FormatError(explain(wrong, found=found, do="quantize or fetch it again"))


def check_unchanged(checkpoint: Checkpoint, weights: str | None = None) -> None:
    """Refuse what was computed with weight files that are others by now than they were when the checkpoint was opened.

    A few microseconds for each file while nothing was touched; where something was, the weights are read and digested.

    **Arguments:**

    - `weights`: their digest, where it was known before.

    **Raises:**

    - `FormatError`: the files became longer, shorter or others, or are gone.
    """
    found: list[str] = []
    for file, before in checkpoint.opened.items():
        try:
            now = identity(file)
        except OSError as error:
            now, found = (), [*found, f"{file}: {error.strerror}"]
        if now and now != before:
            size = f"{before[1]:,} bytes when it was opened, {now[1]:,} now" if now[1] != before[1] else "written to"
            found.append(f"{file}: {size}")
    if not found:
        return
    with contextlib.suppress(OSError, FormatError):
        if weights is not None and _weights_digests(checkpoint.tensors)[0] == weights:
            checkpoint.opened.update({file: identity(file) for file in checkpoint.opened})
            return  # it was moved, linked or touched
    wrong, do = "the files of the base changed while they were in use", "fetch or copy the base again, and run it again"
    raise FormatError(explain(wrong, found=found, do=do))


def digest_of(checkpoint: Checkpoint) -> str:
    """The digest of a checkpoint's weights, from the cache where the files are as they were.

    **Raises:**

    - `FormatError`: a file changed while it was read, or a weight is NaN.
    """
    return _digests_of(checkpoint)[0]


def _digests_of(checkpoint: Checkpoint) -> tuple[str, str]:
    """The digest of a checkpoint's weights, and of the same in bfloat16."""
    before = identities(checkpoint)
    cached = cache_directory() / "fingerprints" / hashlib.sha256(json.dumps(before).encode()).hexdigest()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        kept = cached.read_text("ascii")
        if match := _DIGESTS.fullmatch(kept):  # a damaged file would name another base
            return match[1], match[2]
    digests = _weights_digests(checkpoint.tensors)
    if identities(checkpoint) != before:
        wrong = "a weight file changed while it was read"
        raise FormatError(explain(wrong, found=str(checkpoint.directory), do="run it again"))
    if all(_is_settled(file) for file in checkpoint.files):
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not correctness
            output.write_file(cached, " ".join(digests).encode("ascii"))
    return digests


def _is_settled(file: Path) -> bool:
    """The file changed so long ago that another change would have another time."""
    stat = file.stat()
    changed = stat.st_mtime_ns if os.name == "nt" else stat.st_ctime_ns  # Windows has the time of making there
    return time.time_ns() - changed > SETTLED_SECONDS * 1e9


def _weights_digests(tensors: dict[str, safetensors.TensorEntry]) -> tuple[str, str]:
    names = sorted(tensors)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = list(pool.map(lambda name: _bytes_digests(name, tensors[name]), names))
    total, total_rounded = hashlib.sha256(), hashlib.sha256()
    for name, (digest, rounded) in zip(names, digests, strict=True):
        shape, stored = list(tensors[name].shape), tensors[name].dtype
        total.update(json.dumps([name, stored, shape]).encode() + b"\n" + digest)
        stored = "BF16" if stored in _ROUNDED else stored
        total_rounded.update(json.dumps([name, stored, shape]).encode() + b"\n" + rounded)
    return total.hexdigest(), total_rounded.hexdigest()


def _bytes_digests(name: str, entry: safetensors.TensorEntry) -> tuple[bytes, bytes]:
    """The digest of a tensor's bytes, and of those that it has in bfloat16."""
    digest, dtype = hashlib.sha256(), safetensors.TORCH_DTYPES[entry.dtype]
    rounded = hashlib.sha256() if entry.dtype in _ROUNDED else digest
    buffer = _buffers.get()
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        for start in range(0, entry.stop - entry.start, _CHUNK_BYTES):
            wanted = min(entry.stop - entry.start - start, _CHUNK_BYTES)
            if file.readinto(memoryview(buffer)[:wanted]) != wanted:
                raise FormatError(explain("a weight file became shorter while it was read", found=str(entry.file)))
            digest.update(memoryview(buffer)[:wanted])
            values = torch.frombuffer(buffer, dtype=dtype, count=wanted // dtype.itemsize)
            if rounded is not digest:
                rounded.update(values.bfloat16().view(torch.uint8).numpy().data)
            if entry.dtype in _CHECKED and values.amax().isnan():
                found, do = f"{entry.file}: {name}: NaN", "fetch it again, or ask its author"
                raise FormatError(explain("a weight of this base is not a number", found=found, do=do))
    return digest.digest(), rounded.digest()


class _Buffers(threading.local):
    """One read buffer per thread."""

    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, _CHUNK_BYTES)

    def get(self) -> mmap.mmap:
        return self.buffer


_buffers = _Buffers()


def identities(checkpoint: Checkpoint) -> list[list[Any]]:
    """`identity` of the weight files."""
    return [list(identity(file)) for file in checkpoint.files]


def _tokenizer(directory: Path) -> str | None:
    path = directory / "tokenizer.json"
    if path.is_file():
        content = json_files.read_json(path, json_files.MAX_TOKENIZER_BYTES) | {"truncation": None, "padding": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    present = [directory / name for name in _VOCABULARIES if (directory / name).is_file()]
    for file in present:
        digest.update(f"{file.name}\n".encode() + json_files.read_bytes(file, json_files.MAX_TOKENIZER_BYTES))
    return digest.hexdigest() if present else None


def _chat_template(directory: Path) -> str | None:
    text: Any = None
    if (directory / "chat_template.jinja").is_file():
        text = json_files.read_bytes(directory / "chat_template.jinja").decode("utf-8")
    elif (directory / "tokenizer_config.json").is_file():
        text = json_files.read_json(directory / "tokenizer_config.json").get("chat_template")
    return None if text is None else hashlib.sha256(json.dumps(text).encode()).hexdigest()
