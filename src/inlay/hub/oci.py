"""An adapter in an OCI registry, where container images lie: a layer for each file, under its name, and a manifest of them.

    {"schemaVersion": 2, "artifactType": "application/vnd.inlay.adapter.v1",
     "config": the empty object, "layers": [{"mediaType": ..., "digest": "sha256:...", "size": 605312,
     "annotations": {"org.opencontainers.image.title": "adapter_model.safetensors"}}, ...]}

Source: the image and distribution specifications of the Open Container Initiative, 1.1. `oras pull` writes the same files.
`oras` reads what `docker login` has kept and gets tokens for it; the rest is asked here, see `inlay.hub.transfer`.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import urlsplit

from inlay import extras
from inlay.errors import ConfigError, FormatError, InlayError, TransferError, UnknownNameError, explain
from inlay.hub import files, manifest, transfer
from inlay.hub.manifest import Entry
from inlay.io import json_files

ARTIFACT = "application/vnd.inlay.adapter.v1"
"""What the manifest says that it is of."""

TITLE = "org.opencontainers.image.title"
"""The annotation of a layer that is the name of its file."""

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_EMPTY, _EMPTY_TYPE = b"{}", "application/vnd.oci.empty.v1+json"
_FILE = "application/octet-stream"

_NAME = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"oci://(?P<host>[A-Za-z0-9.-]+(?::[1-9]\d*)?|\[::1\](?::[1-9]\d*)?)/(?P<name>{_NAME}(?:/{_NAME})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))",
    re.ASCII,
)


class Reference(NamedTuple):
    """What an adapter in a registry is called."""

    host: str
    name: str
    version: str
    """Its tag, or the digest of its manifest."""

    def __str__(self) -> str:
        between = "@" if ":" in self.version else ":"
        return f"oci://{self.host}/{self.name}{between}{self.version}"


def plain(address: str) -> str:
    """An address without what leads nowhere else: a dot that ends its host, and the port of TLS where that is spoken."""
    host, slash, rest = address.removeprefix("oci://").partition("/")
    if not address.startswith("oci://") or not slash:
        return address
    host, port, number = host.rpartition(":") if re.search(r":[^\]]*$", host) else (host, "", "")
    host = host.removesuffix(".")
    is_tls = number == "443" and not transfer.is_loopback(host.strip("[]").lower())
    return f"oci://{host}{'' if is_tls else port + number}/{rest}"


def parse(text: str) -> Reference:
    """`oci://HOST/NAME:TAG`, or with `@sha256:DIGEST`.

    **Raises:**

    - `ConfigError`: it is not of that form.
    """
    match = _REFERENCE.fullmatch(plain(text))
    if not match:
        wrong, do = "this names no adapter in a registry", "oci://HOST/NAME:TAG, in small letters"
        raise ConfigError(explain(wrong, found=repr(text), do=do))
    return Reference(match["host"].lower(), match["name"], match["tag"] or match["digest"])


class Registry:
    """The repository in a registry that a reference names."""

    def __init__(self, reference: Reference):
        extras.need("oras", "a registry")
        import oras.provider

        host = urlsplit(f"//{reference.host}").hostname or ""
        is_plain = transfer.is_loopback(host)
        self.reference, self._url = reference, f"/v2/{reference.name}"
        self._oras = oras.provider.Registry(reference.host, insecure=is_plain)
        self._token: Mapping[str, str] = {}
        address = f"{'http' if is_plain else 'https'}://{reference.host}"
        self.channel = transfer.Channel(address, lambda: self._token, self._renewed, self._oras.session)

    def listing(self) -> tuple[str, list[Entry]]:
        """(The digest of the manifest, the files that it names), none of which has been fetched.

        **Raises:**

        - `UnknownNameError`, `TransferError`: see `inlay.hub.transfer.Channel.read`.
        - `FormatError`: it is no manifest of files, or none of an adapter can be.
        """
        url, asked = f"{self._url}/manifests/{self.reference.version}", {"Accept": _MANIFEST}
        content = self.channel.read(url, asked)
        digest = _digest(content)
        if ":" in self.reference.version and digest != self.reference.version:
            wrong, do = "what came is not what was said to be there", "ask who keeps this registry"
            raise FormatError(explain(wrong, found=f"{self.reference}: {digest}", do=do))
        try:
            layers = json_files.parse(content)["layers"]
            entries = [self._entry(layer) for layer in layers]
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            found = f"{self.reference}: {type(error).__name__}: {str(error)[:200]}"
            do = "the tag of an adapter: inlay push, or oras push, made it"
            raise FormatError(explain("this is no manifest of files", found=found, do=do)) from None
        return digest, manifest.checked(entries, str(self.reference))

    def push(self, directory: Path, progress: transfer.Progress = transfer.unheard) -> str:
        """Put the files of a directory there: the digest of their manifest. What the registry has already is not sent again.

        **Raises:**

        - `TransferError`: the registry refuses, or the transfer broke.
        """
        names = files.listed(directory)
        digests = files.digests(directory, names)
        layers, total = [], sum((directory / name).stat().st_size for name in names)
        for name in names:
            progress(sum(layer["size"] for layer in layers), total)
            path = directory / name
            layers.append(
                self._put_blob(_FILE, f"sha256:{digests[name]}", path.stat().st_size, lambda at=path: at.open("rb"))
            )
            layers[-1]["annotations"] = {TITLE: name}
        said = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "artifactType": ARTIFACT,
            "config": self._put_blob(_EMPTY_TYPE, _digest(_EMPTY), len(_EMPTY), lambda: io.BytesIO(_EMPTY)),
            "layers": layers,
        }
        content = json.dumps(said, indent=1).encode()
        self._done(
            "PUT", f"{self._url}/manifests/{self.reference.version}", 201, {"Content-Type": _MANIFEST}, lambda: content
        )
        return _digest(content)

    def _entry(self, layer: Any) -> Entry:
        name: Any = (layer.get("annotations") or {}).get(TITLE)
        return Entry(name, layer.get("size"), layer.get("digest"), f"{self._url}/blobs/{layer.get('digest')}")

    def _put_blob(self, kind: str, digest: str, size: int, opened: Callable[[], BinaryIO]) -> dict[str, Any]:
        """Put a content there, unless it is there: what a manifest says of it."""
        with contextlib.closing(self.channel.ask("HEAD", f"{self._url}/blobs/{digest}")) as answer:
            is_there = answer.status_code == 200
        if not is_there:
            place = self._send(size, opened)
            self._done("PUT", f"{place}{'&' if '?' in place else '?'}digest={digest}", 201)
        return {"mediaType": kind, "digest": digest, "size": size}

    def _standing(self, place: str | None = None) -> tuple[str, int]:
        """An upload that is under way, or begins, or begins anew where the registry has forgotten it: (its place, its bytes).

        Docker's registry forgets one that broke off, and calls none of its bytes `0-0`.
        """
        try:
            place, end = self._done(*(("GET", place, 204) if place else ("POST", f"{self._url}/blobs/uploads/", 202)))
        except UnknownNameError:
            if place is None:
                raise
            return self._standing()
        return place, end if end > 1 else 0

    def _send(self, size: int, opened: Callable[[], BinaryIO]) -> str:
        """Send a content in one piece, and what is missing of it where that broke off: where the upload is then."""
        (place, start), failed = self._standing(), 0
        while start < size:
            begins = {"Content-Range": f"{start}-{size - 1}"} if start else {}
            try:
                with opened() as file:
                    file.seek(start)
                    place, end = self._done("PATCH", place, 202, {"Content-Type": _FILE, **begins}, lambda at=file: at)
            except TransferError:
                if failed == transfer.TRIES:
                    raise
                time.sleep(transfer.PAUSE_SECONDS * failed)
                place, end = self._standing(place)
            failed = failed + 1 if end <= start else 0
            if end > size or failed > transfer.TRIES:
                found = f"{self.reference}: it has {end:,} bytes of {size:,}"
                raise TransferError(explain("this registry loses what it is sent", found=found, do="try again later"))
            start = end
        return place

    def _done(
        self,
        method: str,
        url: str,
        status: int,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Any] = lambda: None,
    ) -> tuple[str, int]:
        """What an answer says of an upload: (where it goes on, how many bytes are there)."""
        with contextlib.closing(self.channel.ask(method, url, headers=headers, body=body)) as answer:
            self.channel.expect(answer, status)
            end = re.fullmatch(r"(?:bytes=)?0-(\d{1,15})", answer.headers.get("Range", ""))
            return transfer.place_of(answer), int(end[1]) + 1 if end else 0

    def _renewed(self, answer: Any) -> bool:
        """Whether `docker login` has kept what it asks for, or anybody gets a token."""
        import oras.auth

        challenge = answer.headers.get("Www-Authenticate", "")
        auth = oras.auth.get_auth_backend(
            "basic" if challenge.lower().startswith("basic") else "token", self.channel.session
        )
        folder = os.environ.get("DOCKER_CONFIG")  # which oras itself does not look for
        kept = [str(Path(folder) / "config.json")] if folder else None
        try:
            auth.load_configs(self._oras.get_container(f"{self.reference.host}/{self.reference.name}"), kept)
            self._token, again = auth.authenticate_request(answer, {})
        except InlayError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError):  # a challenge or a token that is none
            return False
        return again


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
