"""The fingerprint of a base: what changes it, what does not, and what its cache may and may not do."""

import hashlib
import json
import math
import os
import shutil

import pytest

from inlay.errors import FormatError
from inlay.io import fingerprint as fingerprints
from inlay.io.checkpoint import open_checkpoint
from inlay.io.fingerprint import cache_directory, fingerprint

TENSORS = {
    "b.weight": ("F32", [3, 5], bytes(range(60))),
    "a.weight": ("BF16", [7], bytes(range(100, 114))),
    "a.bias": ("F32", [2], bytes(range(50, 58))),
}
"""name -> (dtype, shape, bytes), not in the order of their names."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))


def safetensors(tensors):
    """The bytes of a safetensors file that holds `tensors` in the order given."""
    header, start = {}, 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(content)]}
        start += len(content)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(content for _, _, content in tensors.values())


def model(path, *shards, **files):
    """A model directory with these weight files, and other files by name."""
    path.mkdir()
    names = [f"model-{i}.safetensors" for i in range(len(shards))] if len(shards) > 1 else ["model.safetensors"]
    for name, tensors in zip(names, shards, strict=True):
        (path / name).write_bytes(safetensors(tensors))
    if len(shards) > 1:
        weight_map = {tensor: name for name, tensors in zip(names, shards, strict=True) for tensor in tensors}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name, content in ({"config_json": {}} | files).items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / ".".join(name.rsplit("_", 1))).write_text(text)
    return path


def digests(path):
    return fingerprint(open_checkpoint(path))


def forbid_reading(monkeypatch):
    """From here on, reading a weight fails."""

    def read(entry):
        pytest.fail(f"{entry.file} was read again")

    monkeypatch.setattr(fingerprints, "_bytes_digests", read)


def test_the_digest_is_the_one_that_is_written_down(tmp_path):
    wanted = hashlib.sha256()
    for name, (dtype, shape, content) in sorted(TENSORS.items()):
        wanted.update(json.dumps([name, dtype, shape]).encode() + b"\n" + hashlib.sha256(content).digest())
    assert digests(model(tmp_path / "m", TENSORS)).weights == wanted.hexdigest()


def test_a_tensor_longer_than_the_read_buffer_counts_whole(tmp_path, monkeypatch):
    wanted = digests(model(tmp_path / "one", TENSORS))
    monkeypatch.setattr(fingerprints, "_CHUNK_BYTES", 8)
    assert digests(model(tmp_path / "other", TENSORS)) == wanted


def test_the_order_of_tensors_and_the_number_of_files_do_not_matter(tmp_path):
    names = list(TENSORS)
    wanted = digests(model(tmp_path / "one", TENSORS))
    assert digests(model(tmp_path / "turned", {name: TENSORS[name] for name in reversed(names)})) == wanted
    shards = [{name: TENSORS[name] for name in part} for part in (names[1:], names[:1])]
    assert digests(model(tmp_path / "sharded", *shards)) == wanted
    assert digests(model(tmp_path / "sharded_otherwise", *reversed(shards))) == wanted


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"b.weight": ("F32", [3, 5], bytes([1, *range(1, 60)]))}, id="its first byte"),
        pytest.param({"b.weight": ("F32", [3, 5], bytes([*range(59), 60]))}, id="its last byte"),
        pytest.param({"b.weight": ("I32", [3, 5], TENSORS["b.weight"][2])}, id="its dtype"),
        pytest.param({"b.weight": ("F32", [5, 3], TENSORS["b.weight"][2])}, id="its shape"),
        pytest.param({"b.weight": ("F32", [3, 5, 1], TENSORS["b.weight"][2])}, id="one more axis"),
        pytest.param({"c.weight": TENSORS["b.weight"], "b.weight": None}, id="its name"),
        pytest.param({"c.weight": ("F32", [0], b"")}, id="one more tensor, with nothing in it"),
        pytest.param({"b.weight": None}, id="one tensor less"),
    ],
)
def test_any_change_of_a_tensor_changes_the_digest_of_the_weights(tmp_path, change):
    changed = {name: tensor for name, tensor in (TENSORS | change).items() if tensor is not None}
    assert all(
        len(content) == math.prod(shape) * (2 if dtype == "BF16" else 4) for dtype, shape, content in changed.values()
    )
    one, other = digests(model(tmp_path / "one", TENSORS)), digests(model(tmp_path / "other", changed))
    assert one.weights != other.weights


TOKENIZER = {"model": {"vocab": {"a": 0, "b": 1}}, "truncation": None}


def test_weights_tokenizer_and_template_have_digests_of_their_own(tmp_path):
    files = {"tokenizer_json": TOKENIZER, "chat_template_jinja": "{{ a }}"}
    one = digests(model(tmp_path / "one", TENSORS, **files))
    tokenizer = {"tokenizer_json": TOKENIZER | {"model": {"vocab": {"a": 1, "b": 0}}}}
    cases = {
        "weights": ({"a.bias": TENSORS["a.bias"]}, files),
        "tokenizer": (TENSORS, files | tokenizer),
        "chat_template": (TENSORS, files | {"chat_template_jinja": "{{ b }}"}),
    }
    for part, (tensors, other_files) in cases.items():
        other = digests(model(tmp_path / part, tensors, **other_files))
        changed = {"weights", "rounded"} if part == "weights" else {part}
        assert {key for key, value in one.as_dict().items() if other.as_dict()[key] != value} == changed


def test_the_form_of_the_tokenizers_file_and_its_passing_settings_do_not_matter(tmp_path):
    one = digests(model(tmp_path / "one", TENSORS, tokenizer_json=TOKENIZER))
    other = json.dumps(
        {"truncation": {"max_length": 5}, "padding": {"length": 9}, "model": TOKENIZER["model"]}, indent=3
    )
    assert digests(model(tmp_path / "other", TENSORS, tokenizer_json=other)) == one


def test_a_template_is_the_same_wherever_it_stands(tmp_path):
    in_file = digests(model(tmp_path / "one", TENSORS, chat_template_jinja="{{ a }}"))
    inside = digests(model(tmp_path / "other", TENSORS, tokenizer_config_json={"chat_template": "{{ a }}"}))
    assert in_file == inside
    assert in_file.chat_template is not None


def test_without_tokenizer_and_template_there_is_none_to_compare(tmp_path):
    found = digests(model(tmp_path / "m", TENSORS))
    assert (found.tokenizer, found.chat_template) == (None, None)


def test_vocabulary_files_stand_for_a_tokenizer_without_its_own_file(tmp_path):
    one, same, other = (
        digests(model(tmp_path / name, TENSORS, merges_txt="a b", vocab_json=vocabulary))
        for name, vocabulary in (("one", {"a": 0}), ("same", {"a": 0}), ("other", {"a": 1}))
    )
    assert one == same
    assert one.tokenizer != other.tokenizer


@pytest.fixture
def settled(monkeypatch):
    """Files count as unchanged for long however young they are."""
    monkeypatch.setattr(fingerprints, "SETTLED_SECONDS", -1)


@pytest.mark.usefixtures("settled")
def test_the_second_time_no_weight_is_read(tmp_path, monkeypatch):
    path = model(tmp_path / "m", *({name: tensor} for name, tensor in TENSORS.items()))
    first = digests(path)
    forbid_reading(monkeypatch)
    assert digests(path) == first


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("how", ["in place", "with its times put back", "copied over", "replaced", "made shorter"])
def test_a_file_that_changed_is_read_again(tmp_path, how):
    path = model(tmp_path / "m", TENSORS)
    file, before = path / "model.safetensors", digests(path)
    stat = file.stat()
    if how == "in place":  # the same size and inode
        with file.open("r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            opened.write(b"\xff")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))  # the clock of some file systems is coarse
    elif how == "with its times put back":
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"\xff")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif how == "copied over":  # as cp -a and unpacked archives do: the size, inode and time of the other one
        shutil.copy2(file, path / "other")
        (path / "other").write_bytes(file.read_bytes()[:-1] + b"\xff")
        os.utime(path / "other", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        shutil.copy2(path / "other", file)
        assert (file.stat().st_size, file.stat().st_ino) == (stat.st_size, stat.st_ino)
        assert file.stat().st_mtime_ns == stat.st_mtime_ns
    elif how == "made shorter":  # the same inode and time
        file.write_bytes(safetensors({"a.bias": TENSORS["a.bias"]}))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:  # the same size and time, another inode
        (path / "new").write_bytes(file.read_bytes()[:-1] + b"\xff")
        os.utime(path / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        (path / "new").replace(file)
    assert digests(path).weights != before.weights


def test_the_digest_of_a_file_that_has_just_changed_is_not_kept(tmp_path):
    path = model(tmp_path / "m", TENSORS)
    file, before = path / "model.safetensors", digests(path)
    stat = file.stat()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"\xff")
    assert not (cache_directory() / "fingerprints").exists()
    assert file.stat().st_ctime_ns >= stat.st_ctime_ns  # equal where the clock of the file system is coarse
    assert digests(path).weights != before.weights


def test_a_file_that_changes_while_it_is_read_has_no_digest(tmp_path, monkeypatch):
    path = model(tmp_path / "m", TENSORS)
    read = fingerprints._bytes_digests

    def touched(name, entry):
        os.utime(entry.file)
        return read(name, entry)

    monkeypatch.setattr(fingerprints, "_bytes_digests", touched)
    with pytest.raises(FormatError, match="changed while it was read"):
        digests(path)


CHANGES = {
    "written to": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\xff"),
    "made shorter": lambda file: os.truncate(file, file.stat().st_size - 1),
    "replaced": lambda file: (
        file.with_name("new").write_bytes(file.read_bytes()[:-1] + b"\xff"),
        file.with_name("new").replace(file),
    ),
    "removed": lambda file: file.unlink(),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("known", [True, False], ids=["digest known", "digest not known"])
def test_files_that_changed_since_they_were_opened_are_noticed(tmp_path, how, known):
    opened = open_checkpoint(model(tmp_path / "m", TENSORS))
    weights = fingerprint(opened).weights if known else None
    fingerprints.check_unchanged(opened, weights)
    CHANGES[how](tmp_path / "m" / "model.safetensors")
    with pytest.raises(FormatError, match=r"changed while they were in use\n.*model\.safetensors"):
        fingerprints.check_unchanged(opened, weights)


def test_files_that_were_only_touched_are_the_same_where_their_digest_is_known(tmp_path, monkeypatch):
    opened = open_checkpoint(model(tmp_path / "m", TENSORS))
    weights = fingerprint(opened).weights
    os.link(tmp_path / "m" / "model.safetensors", tmp_path / "link")
    fingerprints.check_unchanged(opened, weights)
    forbid_reading(monkeypatch)
    fingerprints.check_unchanged(opened, weights)  # read once


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", ["", "0" * 63, "g" * 64, "\xff" * 64, "0" * 64 + "\n"])
def test_a_damaged_cache_is_passed_over_and_made_again(tmp_path, monkeypatch, damage):
    path = model(tmp_path / "m", TENSORS)
    wanted = digests(path)
    (cached,) = (cache_directory() / "fingerprints").iterdir()
    cached.write_text(damage, "latin-1")
    assert digests(path) == wanted
    forbid_reading(monkeypatch)
    assert digests(path) == wanted


def test_without_a_place_for_the_cache_the_digest_is_the_same(tmp_path, monkeypatch):
    wanted = digests(model(tmp_path / "one", TENSORS))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "file"))
    assert digests(model(tmp_path / "other", TENSORS)) == wanted


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64", "I32"])
@pytest.mark.parametrize("place", [0, 7, 8, 16])
def test_a_weight_that_is_nan_is_named_wherever_it_stands(tmp_path, monkeypatch, dtype, place):
    size = {"F64": 8, "F32": 4, "I32": 4}.get(dtype, 2)
    monkeypatch.setattr(fingerprints, "_CHUNK_BYTES", 8 * size)  # 17 numbers in three parts, the last of one
    numbers = [bytes(size)] * 17
    numbers[place] = b"\xff" * size
    checkpoint = open_checkpoint(model(tmp_path / "m", {"b.weight": (dtype, [17], b"".join(numbers))}))
    if dtype == "I32":
        assert fingerprint(checkpoint)
    else:
        with pytest.raises(FormatError, match=r"not a number\n  found: .*model.safetensors: b.weight: NaN"):
            fingerprint(checkpoint)
