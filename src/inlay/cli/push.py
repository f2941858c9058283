"""Share an adapter, through a registry or the Hugging Face hub."""

import dataclasses
from typing import Annotated, Any

from inlay import formats, licenses
from inlay.errors import CompatibilityError, ConfigError, explain
from inlay.hub import files, huggingface, remotes, sign
from inlay.io.fingerprint import short
from inlay.options.flags import AdapterDirectory, Common
from inlay.options.types import Mark
from inlay.screen import bar, emit, fact, say, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Push(Common):
    """What the licences of base and data say of sharing is shown first. What is there already is not sent again, and what broke
    off goes on where it ended. Passwords are those of `docker login` and `hf auth login`."""

    adapter: AdapterDirectory
    """The adapter: a directory, or name@version in the store."""

    target: Annotated[str, Mark(is_positional=True, metavar="ADDRESS")]
    """Where to: oci://HOST/NAME:TAG, or hf://OWNER/NAME, with @BRANCH where it is not main."""

    private: bool = False
    """A repository on the hub that is made for it is seen by its owner alone."""

    replace: bool = False
    """Files that the repository on the hub has, and the adapter has not, are removed."""

    despite_license: bool = False
    """Share it though a licence forbids that: you have other leave."""

    def run(self) -> int:
        """Show the licences, send, say where it is."""
        remote = remotes.opened(self.target)
        hub = {"private": self.private, "replace": self.replace}
        if not isinstance(remote, huggingface.Repository) and any(hub.values()):
            wrong, do = "--private and --replace are of the hub", "hf://OWNER/NAME; a registry keeps who may see what"
            raise ConfigError(explain(wrong, found=self.target, do=do))
        directory = formats.fetched(self.adapter)
        self._check_licenses(formats.outline(directory).record)
        signer, digest = sign.signer_of(directory), files.digest_of(directory)
        with bar("sending", size) as update:
            version = (
                remote.push(directory, **hub)
                if isinstance(remote, huggingface.Repository)
                else remote.push(directory, update)
            )
        by = (
            f"with a signature of the key sha256 {short(signer.key)}, not checked"
            if signer
            else "not signed: inlay sign"
        )
        say("pushed", f"{remote.reference} · sha256 {short(digest)} · {size(files.num_bytes(directory))} · {by}")
        if self.json:
            emit({"target": str(remote.reference), "version": version, "digest": digest})
        return 0

    def _check_licenses(self, record: dict[str, Any]) -> None:
        """Show what the licences say, and refuse what they forbid.

        **Raises:**

        - `CompatibilityError`: one does, and nobody has said that it may be shared.
        """
        parts = {part: record.get(part, {}) for part in ("base", "data")}
        for part, about in parts.items():
            name = about.get("name") or about.get("source") or "not known"
            fact(part, f"{name} · {licenses.told(about.get('license'))}")
        forbidding = [
            f"{part}: {about['license']}" for part, about in parts.items() if licenses.forbids(about.get("license"))
        ]
        if forbidding and not self.despite_license:
            wrong, do = "a licence forbids to share this adapter", "--despite-license, where you have other leave"
            raise CompatibilityError(explain(wrong, found=forbidding, do=do))


Command = Push
