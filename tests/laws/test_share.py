"""Adapters that travel: what comes is what went, through any break; who signed it is known, and nothing else is."""

import hashlib
import json
import os
import shutil
import threading
import warnings
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from inlay import licenses
from inlay.errors import CompatibilityError, ConfigError, FormatError, TransferError, TrustError, UnknownNameError
from inlay.hub import files, manifest, oci, remotes, sign, transfer, trust
from inlay.hub.store import Store
from tests.support import keys, shared

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's own, of the library beneath it


def adapter(place, size=300_007):
    (place / "deep").mkdir(parents=True)
    (place / "adapter_config.json").write_text('{"r": 3}')
    (place / "deep" / "weights.safetensors").write_bytes(os.urandom(size))
    return place


@pytest.fixture(params=shared.NAMES)
def transport(request, monkeypatch):
    with shared.running(request.param, monkeypatch) as running:
        yield running


@pytest.fixture
def pair(tmp_path):
    return keys.pair(tmp_path, "team")


def test_what_is_pushed_comes_back_to_the_byte(transport, tmp_path):
    source = adapter(tmp_path / "a")
    transport.push(source)
    with transport.pulled(tmp_path / "incoming") as place:
        assert files.digest_of(place) == files.digest_of(source)
        assert sorted(files.listed(place)) == sorted(files.listed(source))
    assert list((tmp_path / "incoming").iterdir()) == []


@pytest.mark.parametrize("gives", [1, 100_000, 300_006])
@pytest.mark.parametrize("has_parts", [True, False])
def test_a_broken_transfer_goes_on(transport, tmp_path, gives, has_parts):
    source = adapter(tmp_path / "a")
    transport.push(source)
    transport.server.gives, transport.server.has_parts = gives, has_parts
    transport.server.asked.clear()
    with transport.pulled(tmp_path / "incoming") as place:
        assert files.digest_of(place) == files.digest_of(source)
    ranges = [headers["Range"] for _, _, headers in transport.server.asked if "Range" in headers]
    assert ranges == [f"bytes={gives}-"]


def test_what_has_come_is_not_fetched_again_by_the_next_process(transport, tmp_path, monkeypatch):
    source = adapter(tmp_path / "a")
    transport.push(source)
    monkeypatch.setattr(transfer, "TRIES", 0)
    transport.server.rules.append(lambda request: "Range" in request.headers and (request.cut() or True))
    transport.server.gives = 200_000
    with pytest.raises(TransferError, match=r"did not come whole\n  found: 200,000 of 300,007 bytes"):
        with transport.pulled(tmp_path / "incoming"):
            pass
    transport.server.rules.clear()
    transport.server.asked.clear()
    with transport.pulled(tmp_path / "incoming") as place:
        assert files.digest_of(place) == files.digest_of(source)
    fetched = [
        headers.get("Range")
        for _, path, headers in transport.server.asked
        if "api/models" not in path and "manifests" not in path
    ]
    assert fetched == ["bytes=200000-"]


def test_a_broken_upload_goes_on(monkeypatch, tmp_path):
    with shared.running("oci", monkeypatch) as transport:
        transport.server.takes = 123_456
        transport.push(adapter(tmp_path / "a"))
        sent = [headers.get("Content-Range") for headers in transport.server.asks("PATCH", "uploads")]
        assert "123456-300006/300007" not in sent  # the distribution specification has no total
        assert "123456-300006" in sent
        before = len(transport.server.asks("PATCH", "uploads"))
        transport.push(tmp_path / "a")  # and what is there is not sent again
        assert len(transport.server.asks("PATCH", "uploads")) == before
        with transport.pulled(tmp_path / "incoming") as place:
            assert files.digest_of(place) == files.digest_of(tmp_path / "a")


def test_several_processes_may_pull_one_adapter(transport, tmp_path):
    source, found = adapter(tmp_path / "a"), []
    transport.push(source)

    def pull():
        with transport.pulled(tmp_path / "incoming") as place:
            found.append(files.digest_of(place))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one that waits says so
        threads = [threading.Thread(target=pull) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [files.digest_of(source)] * 3


def test_the_hub_is_not_given_to_others(monkeypatch, tmp_path):
    with shared.running("hf", monkeypatch) as transport:
        transport.push(adapter(tmp_path / "a"))
        (tmp_path / "a" / "more").write_text("x")
        transport.push(tmp_path / "a")
        (tmp_path / "a" / "more").unlink()
        with pytest.raises(CompatibilityError, match="has more"):
            transport.push(tmp_path / "a")
        assert "more" in transport.server.files
        transport.push(tmp_path / "a", replace=True, private=True)
        assert sorted(transport.server.files) == files.listed(tmp_path / "a")
        assert transport.server.made[-1]["visibility"] == "private"


def test_who_has_no_account_is_told(monkeypatch, tmp_path):
    with shared.running("hf", monkeypatch) as transport:
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        for ask in (transport.push, lambda place: transport.remote().listing()):
            with pytest.raises(TransferError, match="hf auth login"):
                ask(adapter(tmp_path / "a") if not (tmp_path / "a").exists() else tmp_path / "a")


def test_a_signature_is_of_its_files_and_its_key(tmp_path, pair):
    place, (private, public) = adapter(tmp_path / "a"), pair
    _, other = keys.pair(tmp_path, "other")
    assert sign.signer_of(place) is None
    assert sign.verify(place, [public]) is None
    signed = sign.sign(place, private)
    assert sign.verify(place, [other, public]) == (signed.key, public)
    assert sign.verify(place, [other]) == sign.verify(place, []) == (signed.key, None)
    assert sign.key_id(public) == signed.key == hashlib.sha256(public.read_bytes()).hexdigest()
    with pytest.raises(TrustError, match=f"signed by another key, sha256 {signed.key}"):
        sign.required(place, [other], "mine")
    (place / sign.SIGNATURE).unlink()
    with pytest.raises(TrustError, match="there is no signature"):
        sign.required(place, [public], "mine")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_every_curve_signs(tmp_path, curve, monkeypatch):
    private, public = keys.pair(tmp_path, "team", curve, password="open")
    place = adapter(tmp_path / "a")
    with pytest.raises(ConfigError, match=sign.PASSWORD):
        sign.sign(place, private)
    monkeypatch.setenv(sign.PASSWORD, "open")
    sign.sign(place, private)
    assert sign.required(place, [public], "mine").path == public


@pytest.mark.parametrize("what", ["changed", "more", "missing", "renamed", "swapped"])
def test_any_other_file_breaks_a_signature(tmp_path, pair, what):
    place, (private, public) = adapter(tmp_path / "a"), pair
    sign.sign(place, private)
    weights = place / "deep" / "weights.safetensors"
    if what == "changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif what == "more":
        (place / "inlay.json").write_text("{}")
    elif what == "missing":
        weights.unlink()
    elif what == "renamed":
        weights.rename(weights.with_name("others.safetensors"))
    else:  # the signature of another adapter by the same key
        other = adapter(tmp_path / "b")
        sign.sign(other, private)
        shutil.copy(other / sign.SIGNATURE, place / sign.SIGNATURE)
    with pytest.raises(TrustError, match="the signature is not of these files"):
        sign.verify(place, [public])


def test_a_signature_travels_and_is_kept(transport, tmp_path, pair):
    place, (private, public) = adapter(tmp_path / "a"), pair
    sign.sign(place, private)
    transport.push(place)
    held = Store(tmp_path / "store")
    with transport.pulled(tmp_path / "incoming") as came:
        digest, _ = held.add(came, "support@1")
    assert sign.required(held.object(digest), [public], "support@1").path == public


def test_signing_again_takes_the_place_of_the_first(tmp_path, pair):
    place, (_, other) = adapter(tmp_path / "a"), keys.pair(tmp_path, "other")
    sign.sign(place, pair[0])
    (place / "adapter_config.json").write_text('{"r": 5}')
    sign.sign(place, tmp_path / "other.pem")
    assert sign.required(place, [other], "mine")


@pytest.mark.parametrize(
    ("key", "error"),
    [("team.pub", ConfigError), ("nothing", UnknownNameError), ("rsa.pem", ConfigError), (".", FormatError)],
)
def test_what_is_no_key_signs_nothing(tmp_path, pair, key, error):
    keys.pair(tmp_path, "rsa", "rsa")
    place = adapter(tmp_path / "a")
    with pytest.raises(error):
        sign.sign(place, tmp_path / key)
    assert not (place / sign.SIGNATURE).exists()
    with pytest.raises(ConfigError):
        sign.key_id(tmp_path / "rsa.pub")


POLICY = """
- source: oci://registry.example.com/*
  signed: enforce
  keys: [team.pub]
- source: "hf://acme/*"
  signed: warn
  keys: [team.pub]
- {source: 'oci://[::1]:5000/*', signed: enforce, keys: [team.pub]}
- {source: 'hf://one/tell', signed: warn, keys: [team.pub]}
- {source: 'hf://two/tell@v1', signed: warn, keys: [team.pub]}
- source: "*"
  signed: off
"""


@pytest.fixture
def policy(tmp_path, pair, monkeypatch):
    def write(text):
        (tmp_path / "trust.yaml").write_text(text)

    monkeypatch.setenv("INLAY_TRUST", str(tmp_path / "trust.yaml"))
    write(POLICY)
    return write


@pytest.mark.parametrize(
    ("source", "level"),
    [
        ("oci://registry.example.com/team/a:1", "enforce"),
        ("oci://REGISTRY.example.com/team/a:1", "enforce"),
        ("oci://registry.example.com.evil.org/a:1", "off"),
        ("hf://Acme/support", "warn"),
        ("hf://acme-evil/support", "off"),
        ("oci://[::1]:5000/a:1", "enforce"),
        ("oci://:5000/a:1", "off"),
        ("oci://registry.example.com:443/team/a:1", "enforce"),
        ("oci://registry.example.com./team/a:1", "enforce"),
        ("oci://registry.example.com.:443/team/a:1", "enforce"),
        ("oci://registry.example.com:5000/team/a:1", "off"),
        ("hf://one/tell", "warn"),
        ("hf://one/tell@v2", "warn"),
        ("hf://one/tell@refs/pr/1", "warn"),
        ("hf://one/telling", "off"),
        ("hf://two/tell@v1", "warn"),
        ("hf://two/tell@v2", "off"),
        ("store://support@1", "off"),
    ],
)
def test_the_first_rule_that_fits_counts(policy, source, level):
    assert trust.rule_of(source).signed == level


def test_a_policy_is_kept(policy, tmp_path, pair, recwarn):
    place, strict = adapter(tmp_path / "a"), "oci://registry.example.com/a:1"
    with pytest.raises(TrustError, match="not signed by who is trusted") as error:
        trust.check(strict, place)
    assert str(trust.place()) in error.value.hint
    with pytest.warns(match="hf://acme/a is not signed by who is trusted"):
        assert trust.check("hf://acme/a", place) is None
    assert trust.check("hf://other/a", place) is None
    keys.pair(tmp_path, "other")
    sign.sign(place, tmp_path / "other.pem")
    with pytest.raises(TrustError, match="signed by another key"):
        trust.check(strict, place)
    sign.sign(place, pair[0])
    assert trust.check(strict, place).path == pair[1]
    assert trust.check("hf://acme/a", place).path == pair[1]
    with pytest.raises(TrustError):  # who asks for more gets it, whatever the policy says
        trust.check("hf://other/a", place, [tmp_path / "other.pub"])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", 'no last rule for "\\*"'),
        ("- {source: 'hf://*', signed: off}", 'no last rule for "\\*"'),
        ("source: x", 'no last rule for "\\*"'),
        ("- {source: '*', signed: enforce}", "by whom"),
        ("- {source: '*', signed: maybe}", "maybe"),
        ("- {source: '*', signed: true, keys: [a]}", "True"),
        ("- {source: '*', sign: enforce}", "'sign' is nothing"),
        ("- {source: '*', signed: enforce, signed: off}", "signed stands twice"),
        ("- {source: '*', signed: warn, keys: team.pub}", "no list of files"),
        ("- {signed: off}", "which pattern"),
        ("- '*'", "is no rule"),
        ("- {source: '*'", "line"),
        ("- {source: '*', signed: !!python/object:os.system off}", "line"),
    ],
)
def test_a_policy_that_can_not_be_followed_stops_everything(policy, tmp_path, text, found):
    policy(text)
    with pytest.raises(FormatError, match=found):
        trust.check("hf://x/y", adapter(tmp_path / "a"))


def test_a_policy_that_is_named_and_not_there_stops_everything(policy, tmp_path):
    (tmp_path / "trust.yaml").unlink()
    with pytest.raises(FormatError, match="No such file"):
        trust.policy()


def test_a_policy_lies_in_the_store(tmp_path, monkeypatch):
    monkeypatch.delenv("INLAY_TRUST", raising=False)
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "store"))
    assert trust.policy() == ()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "trust.yaml").write_text("- {source: '*', signed: off}")
    assert [rule.source for rule in trust.policy()] == ["*"]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("oci://reg.example.com/team/support:1.2", "support@1.2"),
        ("oci://localhost:5000/support:V1", "support@v1"),
        ("hf://Someone/Support", "support@main"),
        ("hf://Someone/Support@v1", "support@v1"),
    ],
)
def test_an_adapter_is_called_as_it_was(address, name):
    parse = oci.parse if address.startswith("oci") else remotes.huggingface.parse
    assert str(parse(address)).lower() == address.lower()
    assert remotes.local_name(parse(address), None) == name
    assert remotes.local_name(parse(address), "other@2") == "other@2"


def test_a_revision_that_can_not_be_a_version_needs_a_name():
    with pytest.raises(ConfigError, match="--tag name@version"):
        remotes.local_name(remotes.huggingface.parse("hf://acme/tell@refs/pr/1"), None)


def test_a_digest_needs_a_name():
    with pytest.raises(ConfigError, match="--tag"):
        remotes.local_name(oci.parse(f"oci://localhost/support@sha256:{'a' * 64}"), None)


@pytest.mark.parametrize(
    "address",
    [
        "oci://reg.example.com/support", "oci://reg.example.com/../x:1", "oci://reg.example.com/A:1", "oci:///a:1",
        "oci://user:pw@reg.example.com/a:1", "oci://reg.example.com/a:1#x", "oci://reg.example.com/a:1\n",
        "oci://reg.example.com/a@sha256:12", "hf://a", "hf://a/b/c", "hf://a/..", "hf://a/b@../x", "https://x/y", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError):
        remotes.opened(address)


def test_a_digest_of_the_manifest_is_what_comes(monkeypatch, tmp_path):
    with shared.running("oci", monkeypatch) as transport:
        version = transport.push(adapter(tmp_path / "a"))
        pinned = transport.address.rpartition(":")[0] + f"@{version}"
        digest, entries = remotes.opened(pinned).listing()
        assert digest == version
        assert [entry.name for entry in entries] == files.listed(tmp_path / "a")
        manifests = transport.server.manifests
        manifests["team/support", version] = (b" " + manifests["team/support", version][0], "x")
        with pytest.raises(FormatError, match="what came is not what was said to be there"):
            remotes.opened(pinned).listing()


def test_what_broken_transfers_left_is_swept(tmp_path):
    (tmp_path / "incoming" / "a").mkdir(parents=True)
    with transfer.output.locked(tmp_path / "incoming"):
        transfer.sweep(tmp_path / "incoming")
    assert list((tmp_path / "incoming").iterdir()) == []
    transfer.sweep(tmp_path / "nothing")


@pytest.mark.parametrize("card", ["README.md", "README.base.md"])
def test_a_card_names_its_licence(tmp_path, card):
    (tmp_path / card).write_text("---\nlicense: Apache-2.0\ntags: [x]\n---\n\n# A model\n")
    assert licenses.of_card(tmp_path) == "apache-2.0"


BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghi"))
"""Aliases of aliases: some hundred bytes that unfold to 86 million texts."""


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("# no head\n", None),
        ("---\nlicense: [cc-by-nd-4.0, mit]\n---\n", "cc-by-nd-4.0, mit"),
        ("---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("---\nlicense: [[mit]]\n---\n", None),
        (f"---\n{BOMB}license: *i\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("---\nlicense: !!python/object:os.system x\n---\n", None),
        ("---\ntags: x\n---\nlicense: mit\n", None),
        ("﻿---\r\nlicense: mit\r\n---\r\n", "mit"),
    ],
)
def test_what_a_card_says_is_read_and_no_more(tmp_path, text, name):
    (tmp_path / "README.md").write_bytes(text.encode())
    assert licenses.of_card(tmp_path) == name


def test_what_forbids_sharing_is_known():
    assert {name for name in licenses.KNOWN if licenses.forbids(name)} == {
        name for name in licenses.KNOWN if "-nd-" in name
    }
    assert licenses.forbids("mit, CC-BY-ND-4.0")
    assert not licenses.forbids(None)
    assert not licenses.forbids("my-own")
    assert all(known.source for known in licenses.KNOWN.values())
    assert licenses.told(None) == "no licence is stated"


def test_entries_of_a_manifest_are_json_of_no_other_meaning():
    good = manifest.Entry("a", 3, f"sha256:{'a' * 64}", "/x")
    assert manifest.checked([good, good._replace(name=".gitattributes")], "x") == [good]
    assert json.loads(json.dumps(good)) == list(good)
