"""What the prompts have in common that are learned through a network, which is dropped once they are."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from inlay.methods.contract import Params, PromptMethod
from inlay.methods.hooks import Finishes

Self = TypeVar("Self", bound="NetworkPrompt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkPrompt(PromptMethod, Finishes, abstract=True):
    """Virtual tokens that a network makes; once trained, they are kept in its place."""

    @abc.abstractmethod
    def encode(self, params: Params) -> Float[Tensor, "virtual numbers"]:
        """What the network makes of its tensors."""

    def virtual(self, params: Params) -> Float[Tensor, "virtual numbers"]:
        return params["prompt_embeddings"] if "prompt_embeddings" in params else self.encode(params)

    def finish(self, params: Mapping[str, Params]) -> dict[str, Params]:
        rest = {path: tensors for path, tensors in params.items() if path}
        return {"": {"prompt_embeddings": self.virtual(params[""]).detach()}, **rest}

    def finished(self: Self) -> Self:
        return self
