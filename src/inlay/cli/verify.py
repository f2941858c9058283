"""Prove which base an adapter is of, and who signed it."""

import dataclasses
from typing import Annotated, Any

from inlay import formats
from inlay.errors import ConfigError, explain
from inlay.evaluation import verify
from inlay.hub import sign, trust
from inlay.io.fingerprint import short
from inlay.options.flags import AdapterDirectory, Signed
from inlay.options.types import Mark
from inlay.screen import emit, fact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify(Signed):
    """Another base is an error; its weights are told apart by their digest, before anything is loaded. A signature is checked
    where its key is known: by --require-signed-by, or by the trust policy."""

    adapter: AdapterDirectory
    """The adapter: a directory, name@version in the store, or a name on the hub."""

    model: Annotated[str | None, Mark(metavar="MODEL")] = None
    """The base model: a folder, a GGUF file, or a name on the Hugging Face hub. Without one the signature alone is verified."""

    def run(self) -> int:
        """Look who signed it, compare, ask, say what was found."""
        directory = formats.fetched(self.adapter, self.require_signed_by, whole=True)
        signer = sign.verify(directory, (*self.require_signed_by, *trust.keys()))
        if signer is None and self.model is None:
            wrong, do = "there is nothing to verify this adapter by", "--model MODEL; inlay sign signs it"
            raise ConfigError(explain(wrong, found=f"{self.adapter}: no signature, and no --model", do=do))
        fact("signature", _by(signer))
        said: dict[str, Any] = {"adapter": self.adapter, "key": signer and signer.key}
        said |= {"signature": None if signer is None else "verified" if signer.path else "unknown key"}
        if self.model is not None:
            said |= self._compared(self.model)
        if self.json:
            emit(said)
        return 0

    def _compared(self, model: str) -> dict[str, Any]:
        found = verify.verify(self.adapter, model)
        fact("base", f"{found.base} · {found.fingerprint} · {_weights(found)}")
        if (answers := found.answers) is None:
            fact("answers", "none were kept when it was trained")
        else:
            apart = f"{answers.told_apart} are not the base's" if answers.told_apart else "the base gives the same ones"
            fact("answers", f"{answers.same} of {answers.asked} are those of its training; {apart}")
        return {
            "adapter": found.name,
            "base_fingerprint": found.fingerprint.weights,
            "weights": found.weights,
            "answers": None if answers is None else answers._asdict(),
        }


def _by(signer: sign.Signer | None) -> str:
    if signer is None:
        return "none: inlay sign"
    key = f"the key sha256 {short(signer.key)}"
    return f"{signer.path}, {key}" if signer.path else f"{key}, which is not known here: --require-signed-by KEY.pub"


def _weights(found: verify.Verified) -> str:
    if found.weights == "same":
        return "the weights that it was trained on"
    return f"the weights that it was trained on, in {found.weights}; answers differ a little"


Command = Verify
