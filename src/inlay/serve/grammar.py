"""Answers of a form: JSON of a schema, a regular expression, a choice or a grammar, through llguidance.

    allowed = tokens that some text of the form goes on with;  where the form is complete, also those that end an answer

What a grammar may cost is bounded by llguidance's own limits; one that goes beyond them ends its own answer.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from inlay.errors import ConfigError, explain

Kind = Literal["json", "regex", "choice", "grammar"]
MAX_CHARACTERS = 200_000
"""The longest schema, expression or grammar that is read."""


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Any) -> Any:
    """A tokenizer as llguidance knows it."""
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer)


def compiled(kind: Kind, form: Any, tokenizer: Any) -> Any:
    """A form as what follows it; reads no answer yet, and each answer takes a copy.

    **Arguments:**

    - `form`: a schema as an object for json, a list of texts for choice, else a text; a grammar is one of Lark's.

    **Raises:**

    - `ConfigError`: it is no such form, or too large.
    """
    vocabulary = _vocabulary(tokenizer)
    import llguidance

    matcher = llguidance.LLMatcher
    try:
        length = len(json.dumps(form))
        schema = matcher.grammar_from_json_schema(form) if kind == "json" else ""
    except (ValueError, RecursionError) as error:
        raise _refused(str(error)[:300]) from None
    if length > MAX_CHARACTERS:
        raise _refused(f"more than {MAX_CHARACTERS:,} characters")
    if kind == "json":
        grammar = schema
    elif kind == "regex":
        grammar = matcher.grammar_from_regex(form)
    elif kind == "choice":
        grammar = matcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in form))
    else:
        grammar = matcher.grammar_from_lark(form)
    made = matcher(vocabulary, grammar, log_level=0)
    if made.is_error():
        raise _refused(" ".join(made.get_error().split())[:300])
    return made


def _refused(reason: str) -> ConfigError:
    return ConfigError(explain("answers can't be held to this form", found=reason, do="a simpler schema or grammar"))


class Guide:
    """The constraint of one answer; see `inlay.generation.sequence.Constraint`.

    **Arguments:**

    - `form`: from `compiled`.
    - `ends`: the tokens that may end an answer, once it is of the form.
    """

    def __init__(self, form: Any, ends: Sequence[int]):
        self._matcher = form.deep_copy()
        self._ends = torch.tensor(sorted(ends))
        self._end_ids = frozenset(ends)
        self.problem = ""
        """Why no token could follow, where none could."""

    def allowed(self, num_tokens: int) -> Tensor | None:
        """Which tokens may come next, booleans (num_tokens,)."""
        found = torch.zeros(num_tokens, dtype=torch.bool)
        if not self._matcher.is_stopped():
            bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
            each = (bits[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1  # (bytes, 8)
            some = each.flatten()[:num_tokens].bool()
            found[: len(some)] = some
        if self._matcher.is_error():
            self.problem = " ".join(self._matcher.get_error().partition("<state>")[0].split())[:300]
            return None
        found[self._ends[self._ends < num_tokens]] = self._matcher.is_accepting()
        return found if found.any() else None

    def advance(self, token: int) -> None:
        """Go on behind a token."""
        if token not in self._end_ids:
            self._matcher.consume_token(token)
