"""Sign an adapter with a key of yours."""

import dataclasses
import tempfile
from pathlib import Path

from inlay import formats
from inlay.errors import ConfigError, explain
from inlay.hub import sign, store
from inlay.io.fingerprint import short
from inlay.options.flags import AdapterDirectory, Common
from inlay.screen import emit, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sign(Common):
    """The signature, model.sig, lies beside the files that it is of. What the store has never changes: there a name is given to
    a signed copy. A key of your own: openssl ecparam -name prime256v1 -genkey -noout -out key.pem; the half that others need:
    openssl ec -in key.pem -pubout -out key.pub. INLAY_KEY_PASSWORD opens a key that has a password."""

    adapter: AdapterDirectory
    """The adapter: a directory of yours, or name@version in the store."""

    key: Path
    """The private key, as PEM, on the curve P-256, P-384 or P-521."""

    def run(self) -> int:
        """Sign, say under which key."""
        kept = store.find(self.adapter)
        if kept is None and not Path(self.adapter).expanduser().is_dir():
            wrong, do = "only what is yours can be signed", "a directory, or name@version in the store"
            raise ConfigError(explain(wrong, found=f"{self.adapter} is no directory here", do=do))
        formats.outline(self.adapter)
        signer = sign.sign(Path(self.adapter).expanduser(), self.key) if kept is None else self._stored()
        say("sign", f"{self.adapter} · signed by the key sha256 {short(signer.key)}")
        if self.json:
            emit({"adapter": self.adapter, "key": signer.key})
        return 0

    def _stored(self) -> sign.Signer:
        held = store.Store(store.directory())
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / "signed"
            held.get(self.adapter, copy)
            for folder in [copy, *copy.rglob("*")]:
                folder.chmod(folder.stat().st_mode | 0o200)
            signer = sign.sign(copy, self.key)
            is_name = not self.adapter.startswith(store.DIGEST_PREFIX)
            digest, _ = held.add(copy, self.adapter if is_name else None)
        say("store", f"{self.adapter if is_name else 'without a name'} · sha256 {short(digest)}")
        return signer


Command = Sign
