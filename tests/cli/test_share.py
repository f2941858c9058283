"""`inlay sign`, `push`, `pull`, `verify`, and what they ask of keys, policies and licences wherever an adapter is used."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

import inlay
from inlay import cli, formats
from inlay.errors import TrustError
from inlay.hub import files, sign
from inlay.io import records
from inlay.serve import slots
from tests.support import bases, keys, shared
from tests.support.command import run, run_json

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's own, of the library beneath it

ASKED = [
    "--r",
    "2",
    "--max-steps",
    "2",
    "--learning-rate",
    "0.003",
    "--target-modules",
    "q_proj,v_proj",
    "--use-rslora",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    from inlay.cli import main

    home = tmp_path_factory.mktemp("home")
    base = bases.directory(home / "base")
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A base\n")
    (home / "rows").mkdir()
    (home / "rows" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Rows\n")
    bases.jsonl(home / "rows" / "rows.jsonl", bases.rows(20))
    assert main(["train", str(base), str(home / "rows" / "rows.jsonl"), "--output", str(home / "mine"), *ASKED]) == 0
    keys.pair(home, "team")
    keys.pair(home, "other")
    return home


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "mine", tmp_path / "mine")
    for name in ("base", "team.pem", "team.pub", "other.pem", "other.pub"):
        (tmp_path / name).symlink_to(home / name)
    return tmp_path


def policy(here, *rules):
    (here / "store").mkdir(exist_ok=True)
    (here / "store" / "trust.yaml").write_text("\n".join([*rules, '- {source: "*", signed: off}']))
    shutil.copy(here / "team.pub", here / "store" / "team.pub")


@pytest.mark.parametrize("kind", shared.NAMES)
def test_an_adapter_goes_and_comes(here, capsys, monkeypatch, kind):
    with shared.running(kind, monkeypatch) as transport:
        run_json(capsys, "sign", "mine", "--key", "team.pem")
        status, out, err = run(capsys, "push", "mine", transport.address)
        assert status == 0, err
        assert "with a signature of the key sha256" in err
        assert "not checked" in err
        assert "apache-2.0: hand on the licence" in out
        found = run_json(capsys, "pull", transport.address, "--require-signed-by", "team.pub", "--tag", "support@1")
    assert found["digest"] == files.digest_of(here / "mine")
    assert found["name"] == "support@1"
    assert list((here / "store" / "incoming").iterdir()) == []
    ask = ("generate", "base", "--adapter", "support@1", "--prompt", "x", "--max-new-tokens", 2)
    assert run(capsys, *ask, "--require-signed-by", "team.pub")[0] == 0
    status, _, err = run(capsys, *ask, "--require-signed-by", "other.pub")
    assert status == 1
    assert "support@1 is not signed by who is trusted" in err


def test_a_name_that_moves_says_what_it_was(here, capsys, monkeypatch):
    with shared.running("oci", monkeypatch) as transport:
        for text in ("one", "two"):
            (here / "mine" / "note.txt").write_text(text)
            run_json(capsys, "push", "mine", transport.address)
            status, _, err = run(capsys, "pull", transport.address)
            assert status == 0
    assert "support@1" in err
    assert "inlay store rollback support@1 goes back" in err


def test_what_is_pulled_does_not_need_the_other_names(here, capsys, monkeypatch):
    run_json(capsys, "store", "add", "mine", "--tag", "broken@1")
    (here / "store" / "tags" / "broken@1.json").write_text("{")
    with shared.running("oci", monkeypatch) as transport:
        transport.push(here / "mine")
        assert run_json(capsys, "pull", transport.address)["name"] == "support@1"


def test_what_is_no_adapter_does_not_come_into_the_store(here, capsys, monkeypatch):
    with shared.running("oci", monkeypatch) as transport:
        (here / "x").mkdir()
        (here / "x" / "note").write_text("x")
        transport.push(here / "x")
        status, _, err = run(capsys, "pull", transport.address)
        assert status == 1
        assert "is not an adapter" in err
        config = here / "mine" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 10**9}))
        transport.push(here / "mine")
        status, _, err = run(capsys, "pull", transport.address)
        assert status == 1
        assert "larger than any" in err
    assert run_json(capsys, "store", "list")["names"] == {}
    run_json(capsys, "store", "prune")
    assert list((here / "store" / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        "pull ADDRESS",
        "generate base --adapter support@1 --prompt x",
        "eval base ROWS --adapter support@1",
        "chat base --adapter support@1",
        "predict base ROWS --adapter support@1",
        "merge base support@1 --output out",
        "inspect support@1",
        "serve base --adapters support@1",
        "store add support@1 --tag other@1",
    ],
)
def test_a_policy_is_kept_by_every_command(here, home, capsys, monkeypatch, arguments):
    run_json(capsys, "store", "add", "mine", "--tag", "support@1")
    policy(
        here,
        "- {source: 'oci://*', signed: enforce, keys: [team.pub]}",
        "- {source: 'store://*', signed: enforce, keys: [team.pub]}",
    )
    with shared.running("oci", monkeypatch) as transport:
        transport.push(here / "mine")
        words = (
            arguments.replace("ADDRESS", transport.address).replace("ROWS", str(home / "rows" / "rows.jsonl")).split()
        )
        status, _, err = run(capsys, *words)
    assert status == 1
    assert "support:1 is not signed" in err or "store://support@1 is not signed by who is trusted" in err, err
    assert "trust.yaml asks for it" in err


def test_a_policy_is_kept_for_names_on_the_hub(here, capsys, monkeypatch):
    import huggingface_hub.constants

    snapshot = here / "hub" / "models--someone--support" / "snapshots" / ("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "hub"))
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    shutil.copytree(here / "mine", snapshot)
    assert formats.fetched("someone/support") == snapshot
    policy(here, "- {source: 'hf://someone/*', signed: enforce, keys: [team.pub]}")
    with pytest.raises(TrustError, match="hf://someone/support is not signed"):
        formats.read("someone/support")
    sign.sign(snapshot, here / "team.pem")
    assert formats.read("someone/support").rank == 2
    with pytest.raises(TrustError, match="hf://someone/support is not signed"):
        formats.fetched("someone/support", [here / "other.pub"])


def test_a_server_loads_what_is_signed_alone(here, capsys):
    base = inlay.load(here / "base")
    held = slots.Slots(base, lambda do: do(), slots.Limits(signed_by=(here / "team.pub",)))
    for load in (held.register, held.load):
        with pytest.raises(TrustError, match="mine is not signed by who is trusted"):
            load("mine", here / "mine")
    sign.sign(here / "mine", here / "team.pem")
    held.register("mine", here / "mine")
    assert held.names() == ["mine"]


def test_a_chat_takes_what_is_signed_alone(here, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("/adapter mine\n"))
    status, _, err = run(capsys, "chat", "base", "--max-new-tokens", 2, "--require-signed-by", "team.pub")
    assert status == 0
    assert "mine is not signed by who is trusted" in err


def test_a_stored_adapter_is_signed_as_a_copy(here, capsys):
    before = run_json(capsys, "store", "add", "mine", "--tag", "support@1")["digest"]
    run_json(capsys, "sign", "support@1", "--key", "team.pem")
    after = run_json(capsys, "store", "show", "support@1")
    assert after["digest"] != before
    assert sign.SIGNATURE in after["files"]
    assert not (here / "store" / "objects" / before / sign.SIGNATURE).exists()
    assert sign.required(Path(after["path"]), [here / "team.pub"], "it")


def test_only_what_is_ours_is_signed(here, capsys):
    for what in ("someone/support", "nowhere"):
        status, _, err = run(capsys, "sign", what, "--key", "team.pem")
        assert status == 1
        assert "only what is yours can be signed" in err


def test_verifying_says_who_signed(here, capsys):
    status, _, err = run(capsys, "verify", "mine")
    assert status == 1
    assert "there is nothing to verify this adapter by" in err
    assert "signature none" in " ".join(run(capsys, "verify", "mine", "--model", "base")[1].split())
    key = run_json(capsys, "sign", "mine", "--key", "team.pem")["key"]
    assert run_json(capsys, "verify", "mine")["signature"] == "unknown key"
    found = run_json(capsys, "verify", "mine", "--require-signed-by", "team.pub", "--model", "base")
    assert (found["signature"], found["key"], found["weights"]) == ("verified", key, "same")
    policy(here, "- {source: 'hf://*', signed: warn, keys: [team.pub]}")
    status, out, _ = run(capsys, "verify", "mine")
    assert status == 0
    assert "team.pub, the key sha256" in out
    (here / "mine" / "inlay.json").write_text("{}")
    status, _, err = run(capsys, "verify", "mine")
    assert status == 1
    assert "the signature is not of these files" in err


def test_a_licence_that_forbids_is_shown_and_refused(here, capsys, monkeypatch):
    record = records.read(here / "mine")
    record["data"]["license"] = "cc-by-nc-nd-4.0"
    records.write(here / "mine", record)
    with shared.running("oci", monkeypatch) as transport:
        status, out, err = run(capsys, "push", "mine", transport.address)
        assert status == 1
        assert "cc-by-nc-nd-4.0: what was made of it may not be shared (https://" in out
        assert "a licence forbids to share this adapter\n  found: data: cc-by-nc-nd-4.0" in err
        assert transport.server.asked == []
        assert run(capsys, "push", "mine", transport.address, "--despite-license")[0] == 0


def test_flags_of_the_hub_are_refused_for_a_registry(here, capsys):
    status, _, err = run(capsys, "push", "mine", "oci://localhost:1/a:1", "--private")
    assert status == 1
    assert "--private and --replace are of the hub" in err


def test_the_card_says_what_an_adapter_was_made_of(here):
    card = (here / "mine" / "README.md").read_text("utf-8")
    record = records.read(here / "mine")
    assert record["base"]["license"] == "apache-2.0"
    assert record["data"]["license"] == "cc-by-4.0"
    assert "license: apache-2.0\n" in card.partition("\n---\n")[0]
    for said in (
        f"| base | base · weights sha256 {record['base']['weights'][:16]} · licence: apache-2.0 |",
        f"| data | rows.jsonl · {record['data']['rows']} rows, sha256 {record['data']['sha256'][:16]} · licence: cc-by-4.0 |",
        "| method | lora · r=2",
        "| loss on held-out rows | ",
        f"```\n{record['training']['command']}\n```",
    ):
        assert said in card, card


def test_the_command_of_a_card_makes_the_same_run_again(here):
    record = records.read(here / "mine")
    program, command, *arguments = shlex.split(record["training"]["command"])
    assert (program, command) == ("inlay", "train")
    asked = ["base", "rows.jsonl", "--output", "DIR", *ASKED]
    read = [cli.read("train", given) for given in (arguments, asked)]
    assert read[0].dtype == record["training"]["dtype"]
    assert read[0].settings == read[1].settings
    assert read[0].adapter == read[1].adapter


def test_the_command_names_all_that_another_run_would_lack(here, home):
    base, rows = inlay.load(home / "base", dtype="float32", quantize="int8"), home / "rows" / "rows.jsonl"
    inlay.train(base, rows, output=here / "a", max_steps=1, eval_data=rows, progress=False)
    command = records.read(here / "a")["training"]["command"]
    assert "--eval-data rows.jsonl --quantize int8 --dtype float32" in command
    for name, how in {"b": {"source": bases.rows(20)}, "c": {"source": rows, "eval_data": bases.rows(20)}}.items():
        inlay.train(base, output=here / name, max_steps=1, progress=False, **how)
        assert records.read(here / name)["training"]["command"] is None
        assert "Made by:" not in (here / name / "README.md").read_text("utf-8")
