"""The last layer of a decoder, whose output is looked at where the head is asked, and nowhere else.

    h = x + attention(norm(x))          for all tokens: keys and values come from each
    y = h + mlp(norm(h))                for the tokens that are asked for, where the MLP is most of a layer

A layer gets a `forward` of its own where it has the parts by their usual names; whether it then says what it said before is for
its caller to try. Queries and the output of attention are still made for all tokens: a model's own attention takes all.
"""

import types
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
"""The modules that such a layer has, and no others."""

Asked = Callable[[], Tensor | None]
"""The numbers of the tokens that are asked for, of the pass under way; None: all."""


def narrow_(body: nn.Module, asked: Asked) -> bool:
    """Give the last layer of a decoder the function above; False: it has none of these parts, or others."""
    layers = getattr(body, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    last = layers[-1]
    if set(last._modules) != set(PARTS) or "forward" in vars(last) or last._parameters:
        return False
    own = type(last).forward

    def forward(self: Any, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        places = asked()
        if places is None or given:
            return own(self, hidden_states, *given, **named)
        said = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **named)
        h = hidden_states.index_select(1, places) + said[0].index_select(1, places)
        return h + self.mlp(self.post_attention_layernorm(h))

    last.forward = types.MethodType(forward, last)
    return True
