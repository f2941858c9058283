"""Prove that an adapter is of a base: weights, tokenizer, answers."""

import dataclasses
from typing import Annotated

import tyro

from inlay.evaluation import verify
from inlay.options.flags import AdapterDirectory, Common
from inlay.screen import emit, fact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verify(Common):
    """Another base is an error; its weights are told apart by their digest, before anything is loaded."""

    adapter: AdapterDirectory
    """The adapter: a directory, name@version in the store, or a name on the hub."""

    model: Annotated[str, tyro.conf.arg(metavar="MODEL")]
    """The base: a directory, or a name on the hub."""

    def run(self) -> int:
        """Compare, ask, say what was found."""
        found = verify.verify(self.adapter, self.model)
        fact("base", f"{found.base} · {found.fingerprint} · {_weights(found)}")
        if (answers := found.answers) is None:
            fact("answers", "none were kept when it was trained")
        else:
            apart = f"{answers.told_apart} are not the base's" if answers.told_apart else "the base gives the same ones"
            fact("answers", f"{answers.same} of {answers.asked} are those of its training; {apart}")
        if self.json:
            emit(
                {
                    "adapter": found.name,
                    "base_fingerprint": found.fingerprint.weights,
                    "weights": found.weights,
                    "answers": None if answers is None else answers._asdict(),
                }
            )
        return 0


def _weights(found: verify.Verified) -> str:
    if found.weights == "same":
        return "the weights that it was trained on"
    return f"the weights that it was trained on, in {found.weights}; answers differ a little"


Command = Verify
