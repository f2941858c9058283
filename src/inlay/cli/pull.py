"""Fetch an adapter from a registry or the Hugging Face hub."""

import dataclasses
from typing import Annotated

from inlay import formats
from inlay.errors import FormatError, explain
from inlay.hub import files, remotes, sign, store, transfer, trust
from inlay.io.fingerprint import short
from inlay.options.flags import Signed
from inlay.options.types import Mark
from inlay.screen import bar, emit, say, size

MAX_RANK = 65_536
"""The largest rank of an adapter that is pulled: no layer is as wide."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pull(Signed):
    """Names, sizes and digests are looked at before anything is fetched, and every file is digested; a transfer that broke off
    goes on where it ended. The trust policy says whose signature it needs: INLAY_TRUST, or trust.yaml in the store."""

    source: Annotated[str, Mark(is_positional=True, metavar="ADDRESS")]
    """oci://HOST/NAME:TAG, oci://HOST/NAME@sha256:DIGEST, or hf://OWNER/NAME, with @REVISION where it is not main."""

    tag: str | None = None
    """Its name in the store, as name@version; the last part of its own name with its tag or revision unless given."""

    def run(self) -> int:
        """List, fetch, check, keep."""
        remote, held = remotes.opened(self.source), store.Store(store.directory())
        name = remotes.local_name(remote.reference, self.tag)
        trust.policy()  # one that can't be followed is said before anything is fetched, and so is a key that is none
        for key in self.require_signed_by:
            sign.key_id(key)
        key, entries = remote.listing()
        place = remotes.incoming(held) / key.removeprefix(store.DIGEST_PREFIX)
        with bar("fetching", size) as update, transfer.fetched(remote.channel, entries, place, update) as directory:
            signer = trust.check(str(remote.reference), directory, self.require_signed_by)
            _check_rank(formats.outline(directory).rank)
            known = held.known(name)
            before = known.digest if known.history else None
            digest, _ = held.add(directory, name)
        by = f" · signed by {signer.path}" if signer and signer.path else ""
        text = f"{name} · sha256 {short(digest)} · {size(files.num_bytes(held.object(digest)))}{by}"
        if before not in (None, digest):
            text += f"\nit was {short(before)}: inlay store rollback {name} goes back"
        say("pulled", text)
        if self.json:
            emit({"source": str(remote.reference), "name": name, "digest": digest, "path": str(held.object(digest))})
        return 0


def _check_rank(rank: int) -> None:
    if rank > MAX_RANK:
        found, do = f"r={rank:,}, at most {MAX_RANK:,}", "ask its author"
        raise FormatError(explain("this adapter is larger than any", found=found, do=do))


Command = Pull
