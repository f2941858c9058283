"""The store of adapters: digests that anybody can compute, names that move and come back, kills and crowds that lose nothing."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from inlay.errors import CompatibilityError, ConfigError, FormatError, OutputError, UnknownNameError
from inlay.hub import diff, files, store, tags
from inlay.hub.store import Store
from inlay.io import output
from tests.support import forks, kills

SHELL = "find . -type f | cut -c3- | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum | sha256sum"
"""What `inlay.hub.files` says that a digest is, for a shell."""

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "store.md"


def adapter(place, text="one"):
    """A directory of files, one of them in a folder, whose content `text` decides."""
    (place / "deep").mkdir(parents=True, exist_ok=True)
    (place / "adapter_config.json").write_text(json.dumps({"r": 3, "said": text}))
    (place / "deep" / "ü b.bin").write_bytes(text.encode() * 4099)
    return place


def entry(digest):
    """What a name keeps of an object that it was given to."""
    return {"digest": digest, "date": "2026-01-31T12:00:00Z"}


@pytest.fixture
def held(tmp_path, monkeypatch):
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "store"))
    return Store(store.directory())


def hidden(held):
    return [path.name for path in held.root.rglob("*") if output.PARTIAL in path.name]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="no sha256sum here")
def test_a_digest_is_what_the_shell_says(tmp_path):
    place = adapter(tmp_path / "a")
    said = subprocess.run(["sh", "-c", SHELL], cwd=place, capture_output=True, text=True, check=True).stdout
    assert said.split()[0] == files.digest_of(place)


def test_the_command_that_is_documented_is_the_one_that_is_tried():
    for text in (files.__doc__, GUIDE.read_text("utf-8")):
        assert f"`{SHELL}`" in text


def test_what_is_kept_comes_back_and_stays(held, tmp_path):
    source = adapter(tmp_path / "a")
    digest, tag = held.add(source, "support@1")
    assert tag.digest == digest == files.digest_of(source)
    assert held.get("support@1", tmp_path / "out") == digest
    assert files.digest_of(tmp_path / "out") == digest
    adapter(source, "others")  # a file that somebody goes on writing to
    held.check(digest)
    path = held.path("support@1")
    assert path == held.path(f"sha256:{digest[:8]}") == store.find("support@1")
    assert all(not file.stat().st_mode & 0o222 for file in [path, *path.rglob("*")])
    assert hidden(held) == []


@pytest.mark.parametrize("kernel", ["copies", "copies nothing"])
def test_what_is_copied_in_many_pieces_has_its_digest(tmp_path, monkeypatch, kernel):
    for name, value in (("_CHUNK_BYTES", 3), ("_PIECE_BYTES", 7)):
        monkeypatch.setattr(files, name, value)
    if kernel == "copies nothing":
        monkeypatch.setattr(sys, "platform", "another")
    source, target = adapter(tmp_path / "a"), tmp_path / "b"
    target.mkdir()
    assert files.copy(source, target, files.listed(source), 0o440) == files.digest_of(source) == files.digest_of(target)
    assert {path.stat().st_mode & 0o777 for path in target.rglob("*") if path.is_file()} == {0o440 & ~output._umask()}


def test_what_the_kernel_can_not_copy_is_copied(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refused, raising=False)
    source, target = adapter(tmp_path / "a"), tmp_path / "b"
    target.mkdir()
    assert files.copy(source, target, files.listed(source)) == files.digest_of(source) == files.digest_of(target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is full")
def test_a_full_disk_is_said(tmp_path):
    with (adapter(tmp_path / "a") / "deep/ü b.bin").open("rb", 0) as read, open("/dev/full", "wb", 0) as written:
        with pytest.raises(OSError, match="No space"):
            files._copy_piece(read, written)


def test_a_disk_that_fails_before_the_end_is_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE_BYTES", 7)
    monkeypatch.setattr(files, "_CHUNK_BYTES", 7)
    synced = []

    def failing(path):
        synced.append(path)
        if len(synced) == 1:  # what a system says of a write that was lost it says once
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(output, "sync_one", failing)
    (tmp_path / "b").mkdir()
    with pytest.raises(OSError, match="Input/output"):
        files.copy(adapter(tmp_path / "a"), tmp_path / "b", ["deep/ü b.bin"])


def test_the_same_files_are_one_object_and_other_files_another(held, tmp_path):
    digests = [held.add(adapter(tmp_path / name, text), f"{name}@1")[0] for name, text in ("ax", "bx", "cy")]
    assert digests[0] == digests[1] != digests[2]
    assert held.digests() == sorted({*digests})


@given(st.lists(st.sampled_from(["a", "b", "c", "back"]), max_size=12))
def test_rolling_back_is_undoing(steps):
    tag, undo = tags.Tag("support@1"), []
    for step in steps:
        if step != "back":
            tag = tag.moved(step)
            undo += [step] if undo[-1:] != [step] else []
        elif len(undo) > 1:
            tag = tag.undone()
            undo.pop()
        else:
            with pytest.raises((ConfigError, IndexError)):
                tag.undone()
        if undo:
            assert tag.digest == undo[-1]
            assert tag.last(100) == {entry.digest for entry in tag.history}  # nothing is taken out


def test_a_pinned_name_stays(held, tmp_path):
    digest, _ = held.add(adapter(tmp_path / "a"), "support@1")
    held.pin("support@1")
    assert held.add(tmp_path / "a", "support@1")[0] == digest  # the same files change nothing
    for change in (
        lambda: held.add(adapter(tmp_path / "b", "two"), "support@1"),
        lambda: held.rollback("support@1"),
        lambda: held.remove("support@1"),
    ):
        with pytest.raises(ConfigError, match="this name is pinned"):
            change()
    assert held.named("support@1").digest == digest
    held.pin("support@1", False)
    held.remove("support@1")
    assert held.tags() == []


def test_pruning_keeps_what_names_point_to_or_pointed_to_last(held, tmp_path):
    made = [held.add(adapter(tmp_path / text, text), "support@1")[0] for text in "abcde"]
    loose, _ = held.add(adapter(tmp_path / "f", "f"))
    assert set(held.prune(keep=3, dry_run=True)) == {*made[:2], loose}
    assert len(held.digests()) == 6
    assert set(held.prune(keep=3)) == {*made[:2], loose}
    assert held.digests() == sorted(made[2:])
    for digest in made[3:1:-1]:
        assert held.rollback("support@1").digest == digest
    with pytest.raises(UnknownNameError, match="the store has no such adapter"):
        held.rollback("support@1")
    assert held.named("support@1").digest == made[2]
    assert held.prune(keep=0) == sorted(made[3:])


@pytest.mark.parametrize("what", ["dangling", "unreadable", "vanished"])
def test_nothing_is_pruned_while_a_name_can_not_be_read(held, tmp_path, monkeypatch, what):
    for text in "ab":
        held.add(adapter(tmp_path / text, text), f"{text}@1")
    path = held.root / "tags" / "b@1.json"
    if what == "vanished":
        listed = Path.iterdir
        monkeypatch.setattr(Path, "iterdir", lambda folder: [*listed(folder), folder / "c@1.json"])
    else:
        path.unlink()
        path.symlink_to("nowhere") if what == "dangling" else path.mkdir()
    with pytest.raises(FormatError, match=r"[bc]@1\.json"):
        held.prune(keep=0)
    assert len(held.digests()) == 2


def test_a_name_that_is_removed_meanwhile_is_not_listed(held, tmp_path, monkeypatch):
    held.add(adapter(tmp_path / "a"), "a@1")
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: [*listed(folder), folder / "b@1.json"])
    assert [tag.name for tag in held.tags()] == ["a@1"]


def test_a_name_is_not_rolled_back_to_what_is_being_pruned(held, tmp_path, monkeypatch):
    for text in "ab":
        held.add(adapter(tmp_path / text, text), "a@1")

    def rollback():
        with pytest.raises(UnknownNameError):
            held.rollback("a@1")

    other, discard = threading.Thread(target=rollback), Store._discard

    def slow(self, digest):
        other.start()
        other.join(0.3)  # long enough for one that does not wait
        discard(self, digest)

    monkeypatch.setattr(Store, "_discard", slow)
    held.prune(keep=0)
    other.join(30)
    assert held.path("a@1").is_dir()


@pytest.mark.parametrize(
    "name",
    ["..@1", "a@..", "../a@1", "a/b@1", "A@1", "@1", "a@", "a", "a@1@2", "a@1\n", ".a@1", "a" * 70 + "@1", "a @1"],
)
def test_names_that_could_be_something_else_are_refused(held, tmp_path, name):
    with pytest.raises(ConfigError, match="this can't be the name"):
        held.add(adapter(tmp_path / "a"), name)
    assert held.digests() == []


def test_a_source_that_is_a_path_or_a_name_on_the_hub_is_none_of_the_stores(held, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter(tmp_path / "a@1")
    assert [store.find(name) for name in ("a@1", "./b@1", "org/b@1", "mine", tmp_path / "b@1")] == [None] * 5
    with pytest.raises(UnknownNameError, match="no adapter of that name"):
        store.find("b@1")


@pytest.mark.parametrize("what", ["link", "folder", "pipe", "name", "empty", "many"])
def test_directories_of_more_than_files_are_refused(held, tmp_path, what, monkeypatch):
    place, outside = adapter(tmp_path / "a"), tmp_path / "secret"
    outside.mkdir()
    (outside / "key").write_text("secret")
    if what == "link":
        (place / "x").symlink_to(outside / "key")
    elif what == "folder":
        (place / "x").symlink_to(outside)
    elif what == "pipe":
        os.mkfifo(place / "x")
    elif what == "name":
        (place / "x\ny").write_text("")
    elif what == "empty":
        shutil.rmtree(place)
        place.mkdir()
    else:
        monkeypatch.setattr(files, "MAX_FILES", 1)
    with pytest.raises(FormatError):
        held.add(place, "a@1")
    assert held.tags() == []
    assert held.digests() == []


def test_links_within_the_hubs_cache_are_followed_and_hidden_files_left_out(held, tmp_path):
    plain = adapter(tmp_path / "a")
    snapshot = tmp_path / "models--org--mine" / "snapshots" / ("0" * 40)
    adapter(snapshot)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot / "adapter_config.json").rename(snapshot.parents[1] / "blobs" / "x")
    (snapshot / "adapter_config.json").symlink_to("../../blobs/x")
    (snapshot / ".cache").mkdir()
    (snapshot / ".cache" / "note").write_text("")
    with pytest.warns(match=r"hidden files are left out: \.cache"):
        assert held.add(snapshot)[0] == files.digest_of(plain)


def test_damage_is_seen(held, tmp_path):
    digest, _ = held.add(adapter(tmp_path / "a"), "a@1")
    file = held.path("a@1") / "deep" / "ü b.bin"
    file.chmod(0o644)
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(FormatError, match="damaged"):
        held.get("a@1", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert held.digests() == [digest]


@pytest.mark.parametrize("what", ["changed", "missing", "more", "whole"])
def test_adding_again_puts_a_fresh_copy_in_the_place_of_a_damaged_one(held, tmp_path, what):
    digest, _ = held.add(adapter(tmp_path / "a"), "a@1")
    path = held.path("a@1")
    inode, folder = path.stat().st_ino, path / "deep"
    folder.chmod(0o755)
    (folder / "ü b.bin").chmod(0o644)
    if what == "changed":
        (folder / "ü b.bin").write_text("x")
    elif what == "missing":
        (folder / "ü b.bin").unlink()
    elif what == "more":
        (folder / "more").write_text("x")
    assert held.add(tmp_path / "a", "a@1")[0] == digest
    held.check(digest)
    assert (path.stat().st_ino == inode) is (what == "whole")
    assert all(not file.stat().st_mode & 0o222 for file in [path, *path.rglob("*")] if what != "whole")
    assert hidden(held) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", FormatError),
        ('{"format": 1, "name": "a@1", "pinned": false, "history": []}', FormatError),
        ('{"format": 1, "name": "b@1", "pinned": false, "history": [{"digest": "x", "date": "y"}]}', FormatError),
        ('{"format": 1, "name": "a@1", "pinned": false, "history": [{"digest": 3, "date": "y"}]}', FormatError),
        ('{"format": 2}', CompatibilityError),
        *[
            (json.dumps({"format": 1, "name": "a@1", "pinned": False, "history": history}), FormatError)
            for bad in ("../../secret", "x", "A" * 64, "a" * 64 + "\n", "/" * 64)
            for history in ([entry(bad)], [entry(bad), entry("a" * 64)])
        ],
    ],
)
def test_a_damaged_name_is_refused(held, tmp_path, text, error):
    held.add(adapter(tmp_path / "a"), "a@1")
    (held.root / "tags" / "a@1.json").write_text(text)
    with pytest.raises(error, match=r"a@1\.json"):
        held.path("a@1")


def test_a_store_that_can_not_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="INLAY_STORE"):
        Store(tmp_path / "file" / "store").add(adapter(tmp_path / "a"), "a@1")


def test_differences_are_named(tmp_path):
    one, other = adapter(tmp_path / "a"), adapter(tmp_path / "b", "two")
    (other / "README.md").write_text("")
    found = diff.differences(one, other)
    assert found["README.md"] == ["only in the second"]
    assert found["adapter_config.json"] == ["said: 'one' → 'two'"]
    assert set(found) == {"README.md", "adapter_config.json", "deep/ü b.bin"}
    assert diff.differences(one, one) == {}


@pytest.mark.parametrize(
    ("value", "other", "differ"), [(2, 3, True), (2, float("nan"), True), (float("nan"),) * 2 + (False,)]
)
def test_tensors_that_are_not_finite_differ_from_those_that_are(tmp_path, value, other, differ):
    for name, last in (("a", value), ("b", other)):
        adapter(tmp_path / name)
        tensors = {"x": torch.tensor([3.0, last]), "y": torch.tensor([5.0])}
        save_file(tensors, tmp_path / name / "t.safetensors", {"of": name})
    (said,) = diff.differences(tmp_path / "a", tmp_path / "b")["t.safetensors"]
    assert said.startswith("1 of 2 tensors differ" if differ else "written otherwise, with the same tensors")
    assert "nan" not in said


KILLED = f"""{kills.AT_A_CHANGE}
from inlay.hub.store import Store
from pathlib import Path
root, at, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
held = Store(root)
sys.addaudithook(watch)
exec(what)
print(seen)
"""
"""What is done to a store, ended by SIGKILL before its n-th change of the file system."""


def killed(held, at, what):
    process = forks.Process(KILLED, held.root, at, what, stdout=subprocess.PIPE)
    out, _ = process.communicate(timeout=60)
    return None if process.returncode else int(out)


@pytest.mark.parametrize("what", ["add", "rollback", "prune", "remove"])
def test_a_kill_at_any_write_loses_nothing(tmp_path, what):
    one, two, three = (adapter(tmp_path / text, text) for text in ("one", "two", "three"))
    code = {
        "add": f"held.add(Path({str(three)!r}), 'a@1')",
        "rollback": "held.rollback('a@1')",
        "prune": "held.prune(keep=0)",
        "remove": "held.remove('b@1')",
    }[what]
    at, done = 0, None
    while done is None:
        at += 1
        assert at < 200
        held = Store(tmp_path / f"store{at}")
        digests = [held.add(place, "a@1")[0] for place in (one, two)]
        held.add(one, "b@1") if what != "prune" else None
        done = killed(held, at, code)
        for digest in held.digests():
            held.check(digest)
        points = held.named("a@1").digest
        third = files.digest_of(three)
        assert points in {"add": (digests[1], third), "rollback": digests}.get(what, digests[1:])
        assert set(held.digests()) >= ({*digests} if what != "prune" else {digests[1]})
        held.path("a@1")
        held.add(three, "c@1")
        held.pin("a@1", False)
        held.prune()
        assert hidden(held) == [], at
        held.check(points)
    assert at > {"add": 10, "prune": 4}.get(what, 1)


CROWD = """
import contextlib, sys, time
from inlay.errors import ConfigError
from inlay.hub.store import Store
from pathlib import Path
held, place, number = Store(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])
while not (place / "go").exists():
    time.sleep(0.001)
for round in range(6):
    held.add(place / f"{number % 3}{round}", "shared@1")
    held.add(place / f"{number}{round}", f"own{number}@{round}")
    held.tag(f"gone{number}@{round}", held.digest(f"own{number}@{round}"))
    held.remove(f"gone{number}@{round}")
    with contextlib.suppress(ConfigError):  # there may be nothing before
        held.rollback("shared@1")
    held.tags()
    if number == 0:
        held.prune(keep=100)
"""


def test_many_processes_lose_nothing(tmp_path):
    held, number = Store(tmp_path / "store"), 5
    for process in range(number):
        for turn in range(6):
            adapter(tmp_path / f"{process}{turn}", f"{process}{turn}")
    crowd = [
        forks.Process(CROWD, held.root, tmp_path, process, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for process in range(number)
    ]
    (tmp_path / "go").write_text("")
    for process in crowd:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    for process in range(number):
        for turn in range(6):
            assert held.digest(f"own{process}@{turn}") == files.digest_of(tmp_path / f"{process}{turn}")
    assert len(held.tags()) == number * 6 + 1
    held.path("shared@1")
    shared = {entry.digest for entry in held.named("shared@1").history}
    assert shared == {files.digest_of(tmp_path / f"{process}{turn}") for process in range(3) for turn in range(6)}
    for digest in held.digests():
        held.check(digest)
    assert hidden(held) == []
