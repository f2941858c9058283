"""Real registries, the command of `model_signing`, and `oras`: what they make is read here, and what is made here they read."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inlay.hub import files, oci, sign, transfer
from tests.support import keys
from tests.support.registries import Registry

REGISTRY = shutil.which("docker-registry")

CONFIG = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def adapter(place, size=3_000_017):
    (place / "deep").mkdir(parents=True)
    (place / "adapter_config.json").write_text('{"r": 3}')
    (place / "deep" / "weights.safetensors").write_bytes(os.urandom(size))
    return place


@contextlib.contextmanager
def debians(place):
    """Debian's docker-registry on a free port: its host."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (place / "config.yml").write_text(CONFIG.format(root=place / "kept", port=port))
    process = subprocess.Popen(
        [REGISTRY, "serve", place / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def watched(channel, monkeypatch):
    """The parts that are asked for from now on."""
    asked, send = [], channel._send
    monkeypatch.setattr(channel, "_send", lambda r, **how: asked.append(r.headers.get("Range")) or send(r, **how))
    return asked


@pytest.mark.slow
@pytest.mark.skipif(not REGISTRY, reason="no docker-registry here: apt-get install docker-registry")
def test_a_real_registry_keeps_an_adapter(tmp_path, monkeypatch):
    source = adapter(tmp_path / "a")
    with debians(tmp_path) as host:
        remote = oci.Registry(oci.parse(f"oci://{host}/team/support:1"))
        version = remote.push(source)
        assert remote.push(source) == version
        for reference in (f"oci://{host}/team/support:1", f"oci://{host}/team/support@{version}"):
            remote = oci.Registry(oci.parse(reference))
            digest, entries = remote.listing()
            assert digest == version
            large = max(entries, key=lambda entry: entry.size)
            begun = tmp_path / "incoming" / digest[7:] / large.digest[7:]
            begun.parent.mkdir(parents=True)
            begun.write_bytes((source / large.name).read_bytes()[:1_000_003])  # as an interrupted transfer leaves it
            asked = watched(remote.channel, monkeypatch)
            with transfer.fetched(remote.channel, entries, begun.parent) as place:
                assert files.digest_of(place) == files.digest_of(source)
            assert "bytes=1000003-" in asked


@pytest.mark.slow
@pytest.mark.skipif(not REGISTRY, reason="no docker-registry here: apt-get install docker-registry")
def test_an_upload_to_a_real_registry_that_broke_is_sent(tmp_path, monkeypatch):
    source, broken = adapter(tmp_path / "a"), []
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0)
    with debians(tmp_path) as host:
        remote = oci.Registry(oci.parse(f"oci://{host}/team/support:1"))
        send = remote.channel._send

        def breaks(request, **how):
            """The large upload breaks off once, after a million bytes, as a lost connection does."""
            if request.method == "PATCH" and int(request.headers["Content-Length"]) > 2_000_000 and not broken:
                broken.append(request.url)
                body = request.body.read(1_000_000)
                name, _, port = host.partition(":")
                with socket.create_connection((name, int(port))) as raw:
                    path = request.url.partition(host)[2]
                    head = f"PATCH {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
                    raw.sendall(f"{head}Content-Length: 3000017\r\n\r\n".encode() + body)
                    time.sleep(0.3)
                raise transfer.TransferError("broken")
            return send(request, **how)

        monkeypatch.setattr(remote.channel, "_send", breaks)
        remote.push(source)
        assert broken
        digest, entries = remote.listing()
        with transfer.fetched(remote.channel, entries, tmp_path / "incoming" / digest[7:]) as place:
            assert files.digest_of(place) == files.digest_of(source)


def test_oras_pulls_what_is_pushed_and_what_it_pushes_is_pulled(tmp_path, monkeypatch):
    import oras.client

    source = adapter(tmp_path / "a")
    with Registry().running() as server:
        oci.Registry(oci.parse(f"oci://{server.host}/team/support:1")).push(source)
        client = oras.client.OrasClient(hostname=server.host, insecure=True)
        client.pull(target=f"{server.host}/team/support:1", outdir=str(tmp_path / "out"))
        assert files.digest_of(tmp_path / "out") == files.digest_of(source)
        monkeypatch.chdir(source)
        named = ["adapter_config.json:application/json"]
        client.push(target=f"{server.host}/team/other:1", files=named, disable_path_validation=True)
        remote = oci.Registry(oci.parse(f"oci://{server.host}/team/other:1"))
        digest, entries = remote.listing()
        with transfer.fetched(remote.channel, entries, tmp_path / "incoming" / digest[7:]) as place:
            assert (place / "adapter_config.json").read_text() == '{"r": 3}'


def model_signing(*arguments):
    command = Path(sys.executable).with_name("model_signing")
    return subprocess.run([command, *map(str, arguments)], capture_output=True, text=True)


def test_the_command_of_model_signing_verifies_what_is_signed_here(tmp_path):
    private, public = keys.pair(tmp_path, "team")
    place = adapter(tmp_path / "a", 1_009)
    sign.sign(place, private)
    asked = ("verify", "key", place, "--signature", place / sign.SIGNATURE, "--public_key", public)
    found = model_signing(*asked)
    assert found.returncode == 0, found.stdout + found.stderr
    (place / "adapter_config.json").write_text("{}")
    assert model_signing(*asked).returncode != 0


def test_what_the_command_of_model_signing_signs_is_verified_here(tmp_path):
    private, public = keys.pair(tmp_path, "team")
    place = adapter(tmp_path / "a", 1_009)
    found = model_signing("sign", "key", place, "--signature", place / sign.SIGNATURE, "--private_key", private)
    assert found.returncode == 0, found.stdout + found.stderr
    assert sign.required(place, [public], "it").path == public
