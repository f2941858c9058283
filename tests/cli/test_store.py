"""`inlay store`, and name@version wherever a command takes an adapter."""

import json

import pytest

import inlay
from inlay.errors import ConfigError
from inlay.formats.peft import TENSORS
from tests.support import homes
from tests.support.command import run, run_json


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return homes.trained(tmp_path_factory.mktemp("home"))


@pytest.fixture
def kept(home, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    run_json(capsys, "store", "add", home / "one", "--tag", "support@1")
    return tmp_path


def test_the_life_of_a_name(kept, home, capsys):
    first = run_json(capsys, "store", "show", "support@1")
    assert set(first["files"]) == {path.name for path in (home / "one").iterdir()}
    status, _, err = run(capsys, "store", "add", home / "two", "--tag", "support@1")
    assert status == 0
    assert "inlay store rollback support@1 goes back" in err
    second = run_json(capsys, "store", "show", "support@1")["digest"]
    assert second != first["digest"]
    assert run_json(capsys, "store", "tag", "support@1", "support@2")["digest"] == second
    assert run_json(capsys, "store", "rollback", "support@1")["digest"] == first["digest"]
    assert run_json(capsys, "store", "pin", "support@1")["pinned"] is True
    assert run(capsys, "store", "remove", "support@1")[0] == 1
    run_json(capsys, "store", "remove", "support@2")
    assert run_json(capsys, "store", "prune", "--keep", 0)["removed"] == [second]
    listed = run_json(capsys, "store", "list")
    assert list(listed["names"]) == ["support@1"]
    assert run(capsys, "store", "path", "support@1")[1].strip() == first["path"]
    assert run_json(capsys, "store", "get", "support@1", "--output", kept / "out")["digest"] == first["digest"]
    assert (kept / "out" / TENSORS).read_bytes() == (home / "one" / TENSORS).read_bytes()


def test_what_is_no_adapter_is_not_kept(kept, home, capsys):
    status, _, err = run(capsys, "store", "add", home / "base", "--tag", "base@1")
    assert status == 1
    assert "is not an adapter" in err


def test_a_damaged_name_is_in_the_way_of_no_other(kept, home, capsys):
    (kept / "store" / "tags" / "broken@1.json").write_text("{")
    assert run(capsys, "store", "add", home / "two", "--tag", "support@1")[0] == 0
    assert run(capsys, "store", "add", home / "two")[0] == 0
    status, _, err = run(capsys, "store", "add", home / "two", "--tag", "broken@1")
    assert status == 1
    assert "broken@1.json" in err


def test_differences_are_shown(kept, home, capsys):
    found = run_json(capsys, "store", "diff", "support@1", home / "two")["differences"]
    assert "training.steps: 2 → 3" in found["inlay.json"]
    assert "tensors differ" in found[TENSORS][0]
    status, out, err = run(capsys, "store", "diff", "support@1", home / "one")
    assert (status, out) == (0, "")
    assert "the same files" in err
    assert run_json(capsys, "store", "diff", "support@1", home / "one") == {"differences": {}}


def test_one_entry_of_a_history_is_now(kept, home, capsys):
    for name in ("two", "one"):
        run_json(capsys, "store", "add", home / name, "--tag", "support@1")
    run_json(capsys, "store", "tag", "support@1", "other@1")
    marks = [line.endswith("· now") for line in history(capsys)]
    assert marks == [False, False, True]
    run_json(capsys, "store", "rollback", "support@1")
    assert [line.rpartition("· ")[2] for line in history(capsys)][1:] == ["now", "undone"]


def history(capsys):
    _, out, _ = run(capsys, "store", "show", "support@1")
    return [line for line in out.splitlines() if line.startswith("history")]


def test_a_number_below_nothing_is_refused(kept, capsys):
    status, _, err = run(capsys, "store", "prune", "--keep", -1)
    assert status == 2
    assert "--keep must be at least 0" in err


@pytest.mark.parametrize(
    "arguments",
    [
        "inspect support@1",
        "export base support@1 --output out --for peft",
        "merge base support@1 --output out",
        "generate base --adapter support@1 --adapter support@1 --prompt x --max-new-tokens 2",
        "eval base rows.jsonl --adapter support@1",
        "train base rows.jsonl --from support@1 --output out --max-steps 1",
    ],
)
def test_every_command_takes_a_name(kept, home, capsys, monkeypatch, arguments):
    for name in ("base", "rows.jsonl"):
        (kept / name).symlink_to(home / name)
    status, _, err = run(capsys, *arguments.split())
    assert status == 0, err
    if "--from" in arguments:
        assert json.loads((kept / "out" / "inlay.json").read_text())["from"]["name"] == "support@1"


def test_a_conversation_and_a_server_take_a_name(kept, home, capsys, monkeypatch):
    import io

    from inlay.cli import serve
    from inlay.serve import slots

    monkeypatch.setattr("sys.stdin", io.StringIO("/adapter support@1\n/adapter support@2\nsay 3\n"))
    status, _, err = run(capsys, "chat", home / "base", "--max-new-tokens", 2)
    assert status == 0
    assert "support@1 · " in err or "active    support@1" in err
    assert "the store has no adapter of that name" in err
    directory = run_json(capsys, "store", "path", "support@1")["path"]
    found = serve._named(("support@1", "x=support@1"))
    assert {name: str(path) for name, path in found.items()} == {"support": directory, "x": directory}
    assert all(slots._NAME.fullmatch(name) for name in found)
    digest = f"sha256:{directory[-64:]}"
    assert str(serve._named((f"x={digest}",))["x"]) == directory
    with pytest.raises(ConfigError, match=f"--adapters NAME={digest}"):
        serve._named((digest,))
    run_json(capsys, "store", "tag", "support@1", "support@2")
    with pytest.raises(ConfigError, match="--adapters other=support@2"):
        serve._named(("support@1", "support@2"))


def test_python_takes_a_name(kept, home):
    base = inlay.load(home / "base")
    assert base.attach("support@1").name == "support@1"
    assert base.attach("support@1").name == "support@1"  # the same adapter again
    with pytest.raises(ConfigError):
        base.attach(home / "two", "support@1")
