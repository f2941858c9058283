"""Both transports, over servers of the test's own: what holds for one holds for the other."""

import contextlib
import dataclasses
from typing import Any

import huggingface_hub.constants as constants

from inlay.hub import remotes, transfer
from tests.support.registries import Hub, Registry, git, sha256

NAMES = ("oci", "hf")


@dataclasses.dataclass
class Transport:
    """A server and the address of an adapter on it."""

    kind: str
    server: Any

    @property
    def address(self):
        return f"oci://{self.server.host}/team/support:1" if self.kind == "oci" else f"hf://{self.server.NAME}"

    def remote(self):
        return remotes.opened(self.address)

    def push(self, directory, **how):
        return self.remote().push(directory, **how)

    @contextlib.contextmanager
    def pulled(self, incoming):
        remote = self.remote()
        key, entries = remote.listing()
        with transfer.fetched(remote.channel, entries, incoming / key.removeprefix("sha256:")) as place:
            yield place

    def lie(self, name, content, /, **lies):
        """Have a file, and say of it what is not so: another `name`, another `size`; or give another content: `gives`."""
        gives, size = lies.get("gives", content), lies.get("size", len(content))
        name = lies.get("name", name)
        if self.kind == "oci":
            digest = f"sha256:{sha256(content)}"
            self.server.blobs[digest] = gives
            layer = {"size": size, "digest": digest, "annotations": {"org.opencontainers.image.title": name}}
            self.server.put("team/support", "1", [layer])
            return
        said = self.server.sibling(name, content) | {"size": size}
        if "lfs" in said:
            said["lfs"]["size"] = size
        answer = {"sha": self.server.commit, "siblings": [said]}
        self.server.rules.append(lambda r: "/api/models/" in r.route and self.server._said(r, answer))
        self.server.files = {name if isinstance(name, str) else "x": gives}


@contextlib.contextmanager
def running(kind, monkeypatch):
    """A transport for as long as the block."""
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0)
    with (Registry() if kind == "oci" else Hub()).running() as server:
        if kind == "hf":
            monkeypatch.setattr(constants, "ENDPOINT", f"http://{server.host}")
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
            monkeypatch.setenv("HF_TOKEN", server.token)
        yield Transport(kind, server)


__all__ = ["NAMES", "Transport", "git", "running", "sha256"]
