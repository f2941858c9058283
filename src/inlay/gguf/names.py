"""What the tensors of a GGUF file are called in `transformers`, by architecture, and whose rows were put in another order.

    blk.7.attn_q.weight   <->   model.layers.7.self_attn.q_proj.weight

llama.cpp rotates neighbouring numbers of a head, and models of `transformers` a number of the first half with one of the
second. So its converter puts the rows of q and k of Llama's family in another order, head by head:

    file[2 c + h] = weight[h n / 2 + c],   h = 0, 1,   0 <= c < n / 2,   n the numbers of a head

`rows` undoes that, on whatever lies in rows: numbers, packed blocks, B of a low-rank change. Architectures whose rotation
llama.cpp has in both ways are left as they are.

An architecture is one value here; what is not here is refused by name, since a wrong guess computes something all the same. So
is Gemma, whose files hold 1 + w for the weights w of norms and whose embeddings are scaled.

Source: `convert_hf_to_gguf.py` and `gguf-py/gguf/tensor_mapping.py` of llama.cpp.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from inlay.errors import CompatibilityError, explain
from inlay.fields import shown

_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(\w+)\.(weight|bias)")
_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,3})\.([\w.]+)\.(weight|bias)")

HEADS, KV_HEADS = "attention.head_count", "attention.head_count_kv"
"""Values of a file, after the architecture's name: the heads of queries, and of keys and values."""

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
"""The modules beside the layers; a file without `output` has a tied head."""

_PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TWO_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What is known of the files of one architecture."""

    name: str
    """What `general.architecture` calls it."""
    model_type: str
    """What `transformers` calls a model of it."""
    modules: Mapping[str, str]
    """The modules of a layer: in the file -> in `transformers`."""
    turned: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Modules of a layer whose rows stand in another order -> the value that has their heads."""

    def transformers_name(self, name: str) -> str:
        """What `transformers` calls the tensor that a file calls `name`.

        **Raises:**

        - `CompatibilityError`: files of this architecture have no such tensor.
        """
        module, _, end = name.rpartition(".")
        if module in _OUTSIDE and end == "weight":
            return f"{_OUTSIDE[module]}.weight"
        found = _BLOCK.fullmatch(name)
        if found is None or found[2] not in self.modules:
            raise self._unknown(name)
        return f"model.layers.{found[1]}.{self.modules[found[2]]}.{found[3]}"

    def file_name(self, name: str) -> str:
        """What a file calls the tensor that `transformers` calls `name`.

        **Raises:**

        - `CompatibilityError`: models of this architecture have no such tensor that a file could hold.
        """
        module, _, end = name.rpartition(".")
        outside = {ours: theirs for theirs, ours in _OUTSIDE.items()}
        if module in outside and end == "weight":
            return f"{outside[module]}.weight"
        found, own = _LAYER.fullmatch(name), {ours: theirs for theirs, ours in self.modules.items()}
        if found is None or found[2] not in own:
            raise self._unknown(name)
        return f"blk.{found[1]}.{own[found[2]]}.{found[3]}"

    def turned_by(self, name: str) -> str | None:
        """The value of a file that has the number of heads within which the rows of its tensor `name` were put in another
        order; None where they were not."""
        found = _BLOCK.fullmatch(name)
        return self.turned.get(found[2]) if found else None

    def _unknown(self, name: str) -> CompatibilityError:
        wrong = f"it is not known what this tensor of a {self.name} file is"
        do = f"the model in another form: tensors of layers are {', '.join(self.modules)}"
        return CompatibilityError(explain(wrong, found=shown(name), do=do))


_LLAMA_ROWS = {"attn_q": HEADS, "attn_k": KV_HEADS}

ARCHITECTURES = {
    known.name: known
    for known in (
        Architecture("llama", "llama", _PROJECTIONS | _TWO_NORMS, _LLAMA_ROWS),
        Architecture("qwen2", "qwen2", _PROJECTIONS | _TWO_NORMS),
        Architecture("qwen3", "qwen3", _PROJECTIONS | _TWO_NORMS | _HEAD_NORMS),
    )
}
"""The architectures that are known for certain, by the name that files have for them."""

_SAME_FILES = {"mistral": "llama"}
"""Models of `transformers` whose files are of another's architecture."""


def architecture(name: object) -> Architecture:
    """The architecture that a file calls `name`.

    **Raises:**

    - `CompatibilityError`: it is not known here.
    """
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    raise _strange(f"general.architecture is {shown(name)}", ARCHITECTURES)


def architecture_of(model_type: object) -> Architecture:
    """The architecture of the files that models of this type of `transformers` are converted to.

    **Raises:**

    - `CompatibilityError`: it is not known here.
    """
    by_type = {known.model_type: known for known in ARCHITECTURES.values()}
    by_type |= {other: ARCHITECTURES[name] for other, name in _SAME_FILES.items()}
    if isinstance(model_type, str) and model_type in by_type:
        return by_type[model_type]
    raise _strange(f"model_type is {shown(model_type)}", by_type)


def rows(out: int, heads: int) -> Int[Tensor, " out"]:
    """The rows of a file's weight in the order of `transformers`: `weight = file[rows(...)]`.

    **Raises:**

    - `CompatibilityError`: so many heads do not divide these rows, or have an odd number of them.
    """
    if heads < 1 or out % (2 * heads):
        found, do = f"{out} rows, {heads} heads", "fetch the file again, or convert the model again"
        raise CompatibilityError(explain("the rows of this weight are no whole heads", found=found, do=do))
    return torch.arange(out).view(heads, out // heads // 2, 2).transpose(1, 2).reshape(-1)


def file_rows(out: int, heads: int) -> Int[Tensor, " out"]:
    """The inverse of `rows`: `file = weight[file_rows(...)]`."""
    return rows(out, heads).argsort()


def _strange(found: str, known: Iterable[str]) -> CompatibilityError:
    wrong, do = "GGUF files of this architecture are not known here", f"one of {', '.join(sorted(known))}"
    return CompatibilityError(explain(wrong, found=found, do=do))
