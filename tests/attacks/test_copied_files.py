"""What a merged or quantised base has beside its weights: everything that belongs to the model, and nothing of anybody else's."""

import builtins
import io
import json
import os
import re

import huggingface_hub
import pytest

import inlay
from inlay.errors import FormatError
from inlay.io import checkpoint
from tests.support import bases
from tests.support.command import run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def merge(place, capsys, model="base", out="merged"):
    return run(capsys, "merge", place / model, place / "good", "--output", place / out)


def test_folders_of_a_base_are_merged_too(place, capsys):
    base = place / "base"
    for name in ("1_Pooling/config.json", "additional_chat_templates/tool_use.jinja", "a/b/c.txt"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text(name)
    (base / "onnx").mkdir()
    (base / "onnx" / "model.onnx").write_bytes(b"weights of another program")
    (base / ".git").mkdir()
    (base / ".git" / "config").write_text("secret")
    status, _, err = merge(place, capsys)
    assert status == 0, err
    merged = place / "merged"
    for name in ("1_Pooling/config.json", "additional_chat_templates/tool_use.jinja", "a/b/c.txt"):
        assert (merged / name).read_text() == name
    assert not (merged / "onnx").exists()
    assert not (merged / ".git").exists()


@pytest.mark.parametrize(
    "how", ["file", "in a folder", "folder", "relative", "through a link of its own", "hard to see"]
)
def test_a_link_out_of_the_base_is_not_followed_and_said(place, capsys, how):
    base, secret = place / "base", place / "secret"
    secret.mkdir()
    (secret / "key.txt").write_text("topsecret")
    (base / "notes").mkdir()
    if how == "file":
        (base / "NOTES.txt").symlink_to(secret / "key.txt")
    elif how == "in a folder":
        (base / "notes" / "x.json").symlink_to(secret / "key.txt")
    elif how == "folder":
        (base / "more").symlink_to(secret, target_is_directory=True)
    elif how == "relative":
        (base / "NOTES.txt").symlink_to("../secret/key.txt")
    elif how == "through a link of its own":
        (base / "inner.txt").symlink_to(secret / "key.txt")
        (base / "NOTES.txt").symlink_to(base / "inner.txt")
    else:
        (place / "base-2").mkdir()  # begins as the base's own name does
        (place / "base-2" / "key.txt").write_text("topsecret")
        (base / "NOTES.txt").symlink_to(place / "base-2" / "key.txt")
    with pytest.warns(UserWarning, match="not copied: .*link out of the model"):
        status, _, err = merge(place, capsys)
    assert status == 0, err
    assert not any(b"topsecret" in path.read_bytes() for path in (place / "merged").rglob("*") if path.is_file())


def test_a_link_within_the_base_is_copied_as_its_file(place, capsys):
    (place / "base" / "NOTES.txt").symlink_to(place / "base" / "config.json")
    status, _, err = merge(place, capsys)
    assert status == 0, err
    assert not (place / "merged" / "NOTES.txt").is_symlink()
    assert (place / "merged" / "NOTES.txt").read_text() == (place / "base" / "config.json").read_text()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_needed_file_that_lies_elsewhere_is_refused_with_what_to_do(place, capsys, name):
    (place / "base" / name).rename(place / name)
    (place / "base" / name).symlink_to(place / name)
    status, _, err = merge(place, capsys)
    assert status == 1
    assert "lies elsewhere" in err
    assert "cp -rL" in err
    assert not (place / "merged").exists()


def test_a_snapshot_of_the_hubs_cache_is_merged_though_all_its_files_are_links(place, capsys):
    repository = place / "hub" / "models--acme--tiny"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted((place / "base").iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "README.txt").symlink_to(place / "rows.jsonl")
    with pytest.warns(UserWarning, match=r"not copied: README\.txt, a link"):
        status, _, err = run(capsys, "merge", snapshot, place / "good", "--output", place / "merged")
    assert status == 0, err
    assert (place / "merged" / "tokenizer.json").is_file()
    assert not (place / "merged" / "README.txt").exists()
    assert inlay.load(snapshot).checkpoint.name == "acme/tiny"


def test_a_file_that_is_no_part_of_a_model_is_not_filled_and_counts_nothing(place, capsys):
    with (place / "base" / "pad.dat").open("wb") as file:
        os.truncate(file.fileno(), 3 * 10**12)  # sparse: more than any disk here has
    with pytest.warns(UserWarning, match=r"not copied: pad\.dat, of 3,000,000 MB"):
        status, _, err = merge(place, capsys)
    assert status == 0, err
    assert not (place / "merged" / "pad.dat").exists()


@pytest.mark.parametrize("name", ["notes.txt", "trainer_state.json", "all_results.json", "logs/run.jsonl", "corpus.md"])
def test_what_lies_beside_a_base_is_passed_over_however_long(place, capsys, monkeypatch, name):
    long = place / "base" / name
    long.parent.mkdir(exist_ok=True)
    with long.open("wb") as file:
        os.truncate(file.fileno(), 300_000_000)
    opened = []
    for owner, function in ((builtins, "open"), (io, "open"), (os, "open")):
        watched = getattr(owner, function)
        monkeypatch.setattr(
            owner, function, lambda path, *rest, _f=watched, **how: opened.append(path) or _f(path, *rest, **how)
        )
    status, _, err = run(capsys, "generate", place / "base", "--prompt", "say 3", "--max-new-tokens", 1)
    assert status == 0, err
    with pytest.warns(UserWarning, match=re.escape(f"not copied: {name}, of 300 MB")):
        status, _, err = merge(place, capsys)
    assert status == 0, err
    assert not (place / "merged" / name).exists()
    names = [os.path.basename(os.fsdecode(path)) for path in opened if not isinstance(path, int)]
    assert "config.json" in names
    assert long.name not in names


def test_files_beside_the_weights_count_for_the_space(place):
    before = checkpoint.beside_bytes(place / "base")
    (place / "base" / "more.txt").write_bytes(b"x" * 12_345)
    assert checkpoint.beside_bytes(place / "base") == before + 12_345


def test_quantize_copies_folders_and_no_links(tmp_path):
    base = bases.directory(tmp_path / "base", "llama")
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text("{}")
    (base / "NOTES.txt").symlink_to(__file__)
    (tmp_path / "copy").mkdir()
    with pytest.warns(UserWarning, match=r"not copied: NOTES\.txt"):
        checkpoint.copy_rest(base, tmp_path / "copy")
    assert (tmp_path / "copy" / "1_Pooling" / "config.json").is_file()
    assert not (tmp_path / "copy" / "NOTES.txt").exists()


FILES = [
    "config.json", "tokenizer.json", "1_Pooling/config.json", "model-1.safetensors", "model-2.safetensors",
    "consolidated.safetensors", "original/model.safetensors", "fp8/model.safetensors", "model.fp16.safetensors",
    "pytorch_model.bin", "onnx/model.onnx",
]  # fmt: skip


@pytest.mark.parametrize(
    ("index", "single", "wanted"),
    [
        (True, False, {"model-1.safetensors", "model-2.safetensors"}),
        (False, True, {"model.safetensors"}),
        (True, True, {"model.safetensors"}),
    ],
)
def test_of_a_repository_only_the_weights_that_are_read_are_fetched(tmp_path, monkeypatch, index, single, wanted):
    files = [*FILES, *(["model.safetensors.index.json"] if index else []), *(["model.safetensors"] if single else [])]
    fetched = set()
    snapshot = tmp_path / "models--acme--tiny" / "snapshots" / COMMIT

    def download(name, *, allow_patterns, revision=None):
        assert name == "acme/tiny"
        assert revision in (None, COMMIT)
        for file in huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            fetched.add(file)
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            content = (
                {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}} if "index" in file else {}
            )
            (snapshot / file).write_text(json.dumps(content))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        checkpoint.open_checkpoint("acme/tiny")
    assert {file for file in fetched if file.endswith((".safetensors", ".bin", ".onnx"))} == wanted
    assert "1_Pooling/config.json" in fetched
