"""Registries and hubs that lie: about names, sizes, digests and addresses; signatures of others; nothing leaves its directory."""

import json
import os
import shutil
import threading
import time

import pytest

from inlay.errors import FormatError, InlayError, OutputError, TransferError, TrustError, UnknownNameError
from inlay.hub import files, manifest, oci, sign, transfer
from inlay.hub.manifest import Entry
from inlay.io import output
from tests.support import keys, shared
from tests.support.registries import Registry

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")  # huggingface_hub's own, of the library beneath it

CONTENT = b"good" * 1_000


@pytest.fixture(params=shared.NAMES)
def transport(request, monkeypatch):
    with shared.running(request.param, monkeypatch) as running:
        yield running


@pytest.fixture
def registry(monkeypatch):
    with shared.running("oci", monkeypatch) as running:
        yield running


def refused(transport, place, error=FormatError, match=None):
    """The pull is refused, and nothing is where it should not be."""
    before = {path for path in place.parent.rglob("*")}
    with pytest.raises(error, match=match) as found:
        with transport.pulled(place / "incoming"):
            pass
    assert isinstance(found.value, InlayError)
    assert {path for path in place.parent.rglob("*") if "incoming" not in path.parts} == before - {place / "incoming"}
    assert not [path for path in place.rglob("*") if path.is_dir() and path.name == "files"]
    return found.value


@pytest.fixture
def place(tmp_path):
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


NAMES = [
    "../outside", "a/../../outside", "/etc/passwd", "a//b", "a/", "", ".", "..", ".hidden/x", "a/.hidden", "a\\b", "C:x", "a\x00b",
    "a\nb", "a\x1b[2Jb", "con", "NUL.txt", "a/COM1", "x ", "x.", "a" * 300, "/".join("abcdefghi"), "‮x", 7, None, ["a"],
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_no_name_leads_elsewhere(transport, place, name):
    if name is None and transport.kind == "hf":
        name = False
    transport.lie("good", CONTENT, name=name)
    refused(transport, place, match="can't be the files of an adapter|this is no list of files")


def test_names_that_lie_within_are_taken():
    assert all(map(manifest.is_name, ["a", "a/b.c", "checkpoint-12/adapter_model.safetensors", "ü b.bin", "a-b_c.d"]))


@pytest.mark.parametrize("names", [("a", "A"), ("a", "a"), ("a", "a/b"), ("A/b", "a")])
def test_no_two_names_are_one_file(names):
    entries = [Entry(name, 3, f"sha256:{'a' * 64}", "/x") for name in names]
    with pytest.raises(FormatError, match=r"2 files|a file and a folder"):
        manifest.checked(entries, "x")


@pytest.mark.parametrize("size", [-1, 1.5, True, "7", None, 10**30, float("inf")], ids=repr)
def test_no_size_is_believed_that_can_not_be(transport, place, size):
    transport.lie("good", CONTENT, size=size)
    refused(transport, place, match="can't be the files of an adapter|this is no list of files")


def test_more_files_than_an_adapter_has_are_refused(registry, place):
    layer = {"size": 1, "digest": f"sha256:{'a' * 64}"}
    layers = [layer | {"annotations": {oci.TITLE: f"f{i}"}} for i in range(files.MAX_FILES + 1)]
    registry.server.put("team/support", "1", layers)
    refused(registry, place, match="1,001 files")
    registry.server.put("team/support", "1", [])
    refused(registry, place, match="0 files")


@pytest.mark.parametrize("digest", ["a" * 63, "../../x", "A" * 64, "a" * 64 + "/", 5])
def test_no_digest_is_a_path(registry, place, digest):
    registry.server.put("team/support", "1", [{"size": 1, "digest": digest, "annotations": {oci.TITLE: "x"}}])
    refused(registry, place, match="digest")
    assert [path for method, path, _ in registry.server.asked] == ["/v2/team/support/manifests/1"]


@pytest.mark.parametrize("content", [b"good" * 1_000, b"good"])  # the hub knows short files by what git calls them
def test_a_changed_byte_is_found(transport, place, content):
    transport.lie("good", content, gives=content[:-1] + b"x")
    refused(transport, place, match="what came is not what was said to be there")
    assert not [path for path in place.rglob("*") if path.is_file()]  # and is not kept to go on with


def test_what_is_longer_than_it_was_said_to_be_ends_there(transport, place):
    """A server that sends without end fills no disk."""
    sent = []

    def endless(request):
        if request.command != "GET" or not ("/blobs/" in request.route or "/resolve/" in request.route):
            return False
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        while len(sent) < 10_000:
            request.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent.append(65536)
        return True

    transport.lie("good", CONTENT)
    transport.server.rules.append(endless)
    refused(transport, place, match="sends more than it said")
    assert sum(sent) < 200_000_000
    assert not [path for path in place.rglob("*") if path.is_file()]


def test_an_answer_without_end_is_no_manifest(transport, place, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_ANSWER_BYTES", 100_000)
    transport.server.rules.append(lambda request: request.reply(200, b" " * 1_000_000))
    refused(transport, place, match="sends more than it said")


@pytest.mark.parametrize(
    "said",
    [
        b"", b"\x00", b"[]", b"null", b'{"layers": 5}', b'{"layers": [5]}', b'{"layers": [{}], "layers": []}', b"[" * 100_000,
        b'{"sha": "x", "siblings": []}', b'{"sha": "0", "siblings": [{"rfilename": "a", "lfs": 5}]}',
        b'{"manifests": [{"digest": "sha256:x"}]}', b'{"siblings": {"a": 1}, "sha": null, "layers": {"a": 1}}',
    ],
)  # fmt: skip
def test_what_is_no_listing_is_refused(transport, place, said):
    transport.server.rules.append(lambda request: request.reply(200, said))
    refused(transport, place, match="this is no manifest of files|this is no list of files|can't be the files")


@pytest.mark.parametrize(
    "location",
    [
        "http://example.com/x",
        "http://169.254.169.254/latest",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "//example.com/x",
        "http://[",
        "",
    ],
)
def test_a_redirect_to_where_others_listen_is_not_followed(transport, place, location):
    transport.lie("good", CONTENT)
    transport.server.rules.append(
        lambda r: ("/blobs/" in r.route or "/resolve/" in r.route) and r.reply(307, Location=location)
    )
    refused(transport, place, TransferError)


def test_a_redirect_elsewhere_on_this_machine_is_followed_without_a_password(transport, place):
    with Registry().running() as other:
        other.blobs[f"sha256:{shared.sha256(CONTENT)}"] = CONTENT
        address = f"http://{other.host}/v2/x/blobs/sha256:{shared.sha256(CONTENT)}"
        transport.lie("good", CONTENT)
        transport.server.rules.append(
            lambda r: ("/blobs/" in r.route or "/resolve/" in r.route) and r.reply(307, Location=address)
        )
        with transport.pulled(place / "incoming") as came:
            assert (came / "good").read_bytes() == CONTENT
        assert [headers.get("Authorization") for headers in other.asks("GET", "blobs")] == [None]


def test_redirects_end(transport, place):
    transport.server.rules.append(lambda r: r.reply(302, Location=r.path))
    refused(transport, place, TransferError, "from one address to the next")
    assert len(transport.server.asked) <= transfer.MAX_REDIRECTS + 2


def test_a_server_with_tls_does_not_lead_out_of_it(monkeypatch):
    channel = transfer.Channel("https://registry.example.com")
    sent = []
    monkeypatch.setattr(
        channel, "_send", lambda request, **given: sent.append(request.url) or pytest.fail("it was asked")
    )
    for url in ("http://registry.example.com/x", "http://127.0.0.1/x", "http://localhost/x"):
        with pytest.raises(TransferError, match="nothing is asked without TLS"):
            channel.ask("GET", url)
    assert sent == []


def test_a_token_is_not_asked_for_where_others_listen(registry, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.server.host: {"auth": "bWU6c2VjcmV0"}}}))
    realm = 'Bearer realm="http://example.com/token",service="x"'
    registry.server.rules.append(lambda request: request.reply(401, WWW_Authenticate=realm))
    with pytest.raises(TransferError, match=r"GET http://example.com/token"):
        registry.remote().listing()


@pytest.mark.parametrize("challenge", ["", "Bearer", "Basic", 'Bearer realm=""', "Digest x", 'Bearer realm="::"'])
def test_a_challenge_that_is_none_ends_it(registry, challenge):
    registry.server.rules.append(lambda request: request.reply(401, WWW_Authenticate=challenge))
    with pytest.raises(TransferError, match=r"refuses it to you|does not answer|nothing is asked"):
        registry.remote().listing()
    assert len(registry.server.asked) <= 3


def test_a_token_without_end_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(transfer, "MAX_ANSWER_BYTES", 100_000)
    with Registry("me:secret").running() as server:
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps({"auths": {server.host: {"auth": "bWU6c2VjcmV0"}}}))
        server.rules.append(lambda request: request.route == "/token" and request.reply(200, b" " * 1_000_000))
        with pytest.raises(FormatError, match="sends more than it said"):
            oci.Registry(oci.parse(f"oci://{server.host}/a:1")).listing()


@pytest.mark.parametrize(
    "part", ["bytes 0-3999/4000", "bytes 100-3998/4000", "bytes 100-3999/9999", "bytes 100-3999/*", "x", ""]
)
def test_a_part_of_something_else_is_not_put_behind_what_there_is(registry, place, part):
    registry.lie("good", CONTENT)
    registry.server.gives = 100
    registry.server.rules.append(
        lambda r: "Range" in r.headers and r.reply(206, b"y" * 3_900, **({"Content_Range": part} if part else {}))
    )
    with registry.pulled(place / "incoming") as came:
        assert (came / "good").read_bytes() == CONTENT


def test_content_that_is_packed_is_not_unpacked(registry, place):
    import gzip

    registry.lie("good", CONTENT)
    bomb = gzip.compress(b"\0" * 1_000)
    registry.server.rules.append(lambda r: "/blobs/" in r.route and r.reply(200, bomb, Content_Encoding="gzip"))
    refused(registry, place, (FormatError, TransferError))


@pytest.mark.parametrize("end", ["0-99999", "0--5", "0-x", "5-9", "bytes=0-99999999999"])
def test_an_upload_that_has_more_than_was_sent_ends(registry, tmp_path, end):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(CONTENT)
    registry.server.rules.append(
        lambda r: r.command == "PATCH" and r.body() and r.reply(202, Location=r.path, Range=end)
    )
    with pytest.raises(TransferError, match="loses what it is sent"):
        registry.push(tmp_path / "a")
    assert len(registry.server.asks("PATCH", "")) <= transfer.TRIES + 1


def test_nothing_is_sent_where_an_upload_leads_elsewhere(registry, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(CONTENT)
    registry.server.rules.append(lambda r: r.command == "POST" and r.reply(202, Location="http://example.com/upload"))
    with pytest.raises(TransferError, match="nothing is asked without TLS"):
        registry.push(tmp_path / "a")


def test_a_server_that_is_not_there_is_said_at_once(tmp_path):
    begun = time.monotonic()
    with pytest.raises(TransferError, match="this registry does not answer"):
        oci.Registry(oci.parse("oci://127.0.0.1:1/a:1")).listing()
    assert time.monotonic() - begun < 5


def test_a_name_that_is_not_there_is_said(transport, place):
    transport.server.rules.append(lambda request: request.reply(404, b"\x1b[2Jno"))
    error = refused(transport, place, UnknownNameError, "there is nothing of that name")
    assert "\x1b" not in str(error)


@pytest.mark.parametrize("status", [400, 403, 429, 500, 503])
def test_a_refusal_is_said(transport, place, status):
    transport.server.rules.append(lambda request: request.reply(status, b"because"))
    refused(transport, place, TransferError, f"{status} because")


@pytest.mark.parametrize("status", [401, 403])
def test_a_file_that_is_refused_is_asked_for_once(transport, place, status):
    transport.lie("good", CONTENT)
    transport.server.rules.append(
        lambda r: ("/blobs/" in r.route or "/resolve/" in r.route) and r.reply(status, b"because")
    )
    refused(transport, place, TransferError, f"refuses it to you[^$]*{status} because")
    assert len([path for _, path, _ in transport.server.asked if "/blobs/" in path or "/resolve/" in path]) == 1


def test_a_file_that_does_not_come_says_why(transport, place):
    transport.lie("good", CONTENT)
    transport.server.rules.append(
        lambda r: ("/blobs/" in r.route or "/resolve/" in r.route) and r.reply(500, b"because")
    )
    refused(transport, place, TransferError, "did not come whole[^$]*500 because[^$]*try again later")


@pytest.mark.filterwarnings("ignore:waiting for another process")
def test_who_has_waited_for_the_same_files_is_alone_with_them(registry, place):
    """The one who was waited for removes the directory: a lock on that one would keep nobody out."""
    registry.lie("good", CONTENT)
    inside, done = threading.Event(), threading.Event()

    def second():
        with registry.pulled(place / "incoming"):
            inside.set()
            done.wait(30)

    waiting = threading.Thread(target=second)
    with registry.pulled(place / "incoming"):
        waiting.start()
        assert not inside.wait(0.5)
    try:
        assert inside.wait(30)
        (directory,) = (place / "incoming").iterdir()
        with pytest.raises(OutputError, match="another process"), output.locked(directory):
            pass
        transfer.sweep(place / "incoming")
        assert (directory / "files" / "good").is_file()
    finally:
        done.set()
        waiting.join()


def test_links_are_not_sent(transport, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(FormatError, match="more than files"):
        transport.push(tmp_path / "a")
    assert not transport.server.asks("PATCH|PUT", "")


def signed(place):
    place.mkdir()
    (place / "weights").write_bytes(CONTENT)
    private, public = keys.pair(place.parent, "team")
    sign.sign(place, private)
    return place, public


@pytest.mark.parametrize(
    "what", ["empty", "text", "list", "bracket", "no key", "hint", "payload", "signature", "swapped", "long"]
)
def test_a_signature_that_is_none_is_refused(tmp_path, what, monkeypatch):
    place, public = signed(tmp_path / "a")
    path = place / sign.SIGNATURE
    said = json.loads(path.read_text())
    other = keys.pair(tmp_path, "other")[1]
    if what == "no key":
        said["verificationMaterial"] = {"certificate": {"rawBytes": "AA=="}}
    elif what == "hint":  # it says that it is of a key that is trusted
        said["verificationMaterial"]["publicKey"]["hint"] = sign.key_id(other)
        public = other
    elif what == "payload":  # other files under the same signature
        import base64

        payload = json.loads(base64.b64decode(said["dsseEnvelope"]["payload"]))
        payload["predicate"]["resources"] = []
        said["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    elif what == "signature":
        said["dsseEnvelope"]["signatures"] = []
    elif what == "swapped":
        other_place = tmp_path / "b"
        other_place.mkdir()
        (other_place / "weights").write_bytes(b"evil")
        sign.sign(other_place, tmp_path / "team.pem")
        said = json.loads((other_place / sign.SIGNATURE).read_text())
    texts = {"empty": "", "text": "\x00", "list": "[]", "bracket": "[" * 100_000, "long": " " * 11_000_000}
    path.write_text(texts.get(what, json.dumps(said)))
    with pytest.raises((TrustError, FormatError)):
        sign.required(place, [public], "it")


def test_a_signature_has_no_say_in_what_is_looked_at(tmp_path):
    """One that asks to leave the weights out, by a key that is trusted, is not one of the weights."""
    from model_signing import hashing, signing

    place, public = signed(tmp_path / "a")
    made = signing.Config().use_elliptic_key_signer(private_key=tmp_path / "team.pem")
    made.set_hashing_config(hashing.Config().set_ignored_paths(paths=[sign.SIGNATURE, "weights"]))
    made.sign(place, place / sign.SIGNATURE)
    with pytest.raises(TrustError, match="not of these files"):
        sign.required(place, [public], "it")


def test_a_hidden_file_is_none_of_the_signed(tmp_path):
    place, public = signed(tmp_path / "a")
    (place / ".cache").write_text("x")
    with pytest.warns(match="hidden files are left out"):
        assert sign.required(place, [public], "it")


def test_a_link_out_is_not_signed_for(tmp_path):
    place, public = signed(tmp_path / "a")
    shutil.move(place / "weights", tmp_path / "weights")
    (place / "weights").symlink_to(tmp_path / "weights")
    with pytest.raises((TrustError, FormatError)):
        sign.required(place, [public], "it")
    assert os.path.islink(place / "weights")
