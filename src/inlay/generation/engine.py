"""Answers to many requests at a time, over one base, each under its own adapter or none.

    step:  the scheduler says who runs with how many tokens
           one pass of the model over all of them in one row, each sequence with its adapter, its positions and its blocks
           the next token of every sequence whose tokens are all computed

It is the pass that trains: the log-probability of a token is the one that training computes for it.
"""

import itertools
import weakref
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import Tensor

from inlay.errors import CompatibilityError, ConfigError, explain
from inlay.generation.blocks import SIZE, Blocks
from inlay.generation.pages import Kept, Pages, Span
from inlay.generation.scheduler import Scheduler
from inlay.generation.sequence import Logprob, Request, Sequence
from inlay.model import attention, targets
from inlay.model.adapter import Adapter
from inlay.model.batch import PLAIN, Batch, Current, Router
from inlay.modules import trial

MAX_TOKENS = 512
"""Tokens of a step: more are hardly faster a token, and everybody who decodes waits for them."""

MAX_ROWS = 64
"""Sequences that run at a time."""


class Engine:
    """Sequences under way on a model: `add` requests, and `step` until they are over.

    **Arguments:**

    - `model`: a causal language model of `transformers`.
    - `router`: that of its adapters.
    - `cache_tokens`: of how many tokens keys and values are held at a time.
    - `max_rows`, `max_tokens`: how many sequences run at a time, and how many tokens a step has at most.

    **Raises:**

    - `CompatibilityError`: the model's attention is not one that this computes, which a trial finds.
    """

    def __init__(
        self,
        model: Any,
        router: Router,
        *,
        cache_tokens: int,
        max_rows: int = MAX_ROWS,
        max_tokens: int = MAX_TOKENS,
    ):
        self.model, self.router = model, router
        count = max(1, cache_tokens // SIZE)
        self.blocks, self.pages = Blocks(count), Pages(count)
        self.scheduler = Scheduler(self.blocks, self._owner, max_rows=max_rows, max_tokens=max_tokens)
        self._numbers, self._next_serial = itertools.count(), itertools.count()
        self._serials: weakref.WeakKeyDictionary[Adapter, int] = weakref.WeakKeyDictionary()
        """A number for each adapter that no other ever had: blocks outlive the adapters that made them."""
        self._check()

    def add(self, request: Request) -> Sequence:
        """Begin an answer.

        **Raises:**

        - `ConfigError`: prompt and answer need more of the cache than there is; or there is no prompt.
        """
        sequence = Sequence(request, next(self._numbers))
        room = self.blocks.count * SIZE
        if not sequence.tokens or sequence.most_tokens > room:
            found = f"{sequence.num_prompt:,} tokens and {request.max_new_tokens:,} new ones; the cache holds {room:,}"
            do = "a shorter prompt, or fewer new tokens" if sequence.tokens else "a prompt"
            raise ConfigError(explain("this request has no room", found=found, do=do))
        self.scheduler.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """End an answer that nobody waits for any more."""
        if sequence.ending is None:
            sequence.ending = "aborted"
            self.scheduler.remove(sequence)

    def run(self, requests: Iterable[Request]) -> Iterator[Sequence]:
        """Answer requests; the sequences, as they end."""
        for request in requests:
            self.add(request)
        while len(self.scheduler):
            yield from (sequence for sequence in self.step() if sequence.ending)

    @torch.no_grad()
    def step(self) -> list[Sequence]:
        """One pass of the model; the sequences that have a new token, or whose logits are no numbers."""
        chosen = self.scheduler.step()
        if not chosen:
            return []
        places, rows = self._asked(chosen)
        logits = self._logits(chosen, places)
        grown = []
        for (sequence, count), (first, last) in zip(chosen, rows, strict=True):
            self.scheduler.computed(sequence, count)
            if first == last:
                continue
            own = logits[first:last]
            if sequence.request.prompt_logprobs is not None:
                self._note_prompt(sequence, count, own)
            if not sequence.num_missing:
                self._extend(sequence, own[-1])
                grown.append(sequence)
        return grown

    def _asked(self, chosen: Many[tuple[Sequence, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """(the places whose logits are looked at, which of them are each sequence's)."""
        places: list[int] = []
        rows = []
        start = 0
        for sequence, count in chosen:
            first, start = len(places), start + count
            if sequence.request.prompt_logprobs is not None and sequence.num_computed < sequence.num_prompt:
                places += range(start - count, start)
            elif sequence.num_missing == count:
                places.append(start - 1)
            rows.append((first, len(places)))
        return places, rows

    def _logits(self, chosen: Many[tuple[Sequence, int]], places: Many[int]) -> Tensor:
        """The logits of some places of a step, (places, vocabulary) in float32."""
        device = targets.device_of(self.model)
        spans, ids, positions, start = [], list[int](), list[int](), 0
        for sequence, count in chosen:
            first = sequence.num_computed
            spans.append(Span(start, first, count, tuple(sequence.blocks)))
            ids += sequence.tokens[first : first + count]
            positions += range(first, first + count)
            start += count
        adapters = [sequence.request.adapter for sequence, _ in chosen]
        rows = adapters[0] if adapters[0] is not None and len(set(adapters)) == 1 else adapters
        batch = Batch(rows, [span.count for span in spans], brings=True, kept=Kept(self.pages, spans, device))
        keep = places if places else [0]
        with self.router.using(Current(None, batch)), self.router.passing(batch):
            out = type(self.model).forward(  # past what puts virtual tokens in front: they are there
                self.model,
                input_ids=torch.tensor(ids, device=device)[None],
                position_ids=torch.tensor(positions, device=device)[None],
                use_cache=False,
                logits_to_keep=torch.tensor(keep, device=device),
            )
        return out.logits[0].float()

    def _extend(self, sequence: Sequence, logits: Tensor) -> None:
        """Draw the next token of a sequence."""
        if not torch.isfinite(logits).any() or torch.isnan(logits).any():
            sequence.ending = "error"
        else:
            self._draw(sequence, logits)
        if sequence.ending:
            self.scheduler.remove(sequence)

    def _draw(self, sequence: Sequence, logits: Tensor) -> None:
        request, drawn_from = sequence.request, logits
        if request.constraint is not None:
            if (allowed := request.constraint.allowed(len(logits))) is None:
                sequence.ending = "error"
                return
            drawn_from = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        token = request.sampling.choose(drawn_from, request.tokens, sequence.answer, sequence.generator)
        if request.num_logprobs is not None:
            sequence.logprobs.append(_logprob(logits, token, request.num_logprobs))
        if request.constraint is not None:
            request.constraint.advance(token)
        sequence.append(token)

    def _note_prompt(self, sequence: Sequence, count: int, logits: Tensor) -> None:
        """Keep how likely the prompt's tokens were."""
        start = sequence.num_computed - count
        for row, place in enumerate(range(start + 1, start + count + 1)):
            if sequence.num_virtual < place < sequence.num_prompt and len(sequence.prompt_logprobs) < place:
                token, top = sequence.tokens[place], sequence.request.prompt_logprobs or 0
                sequence.prompt_logprobs.append(_logprob(logits[row], token, top))

    def _owner(self, sequence: Sequence) -> bytes:
        """What decides keys and values beside tokens: the adapter, and how often its tensors were changed."""
        adapter = sequence.request.adapter
        if adapter is None:
            return b"base"
        if (serial := self._serials.get(adapter)) is None:
            serial = self._serials[adapter] = next(self._next_serial)
        versions = sum(0 if tensor.is_inference() else tensor._version for tensor in adapter.tensors())
        return f"{serial}.{versions}".encode()

    def _check(self) -> None:
        """Compare what the model says with and without blocks, of two sequences that come in parts."""
        attention.adopt_(self.model, self.router)
        ids = trial.example(self.model, 2).repeat(1, SIZE)[:, : SIZE + 4]
        rows = [ids[0].tolist(), ids[1, :-2].tolist()]
        with self.router.using(PLAIN), trial.undisturbed(self.model), torch.no_grad():
            expected = [
                self.model(input_ids=torch.tensor([row], device=ids.device), use_cache=False).logits[0] for row in rows
            ]
            try:
                actual = self._in_parts(rows)
            except CompatibilityError:
                raise
            except Exception as error:  # any model's code may refuse in any way
                raise CompatibilityError(
                    explain(
                        "this model can't answer several requests at a time",
                        found=f"{type(self.model).__name__}: {type(error).__name__}: {str(error).splitlines()[0]}",
                        do="transformers' generate, one request at a time",
                    )
                ) from error
        for one, other in zip(actual, expected, strict=True):
            allowed = trial.TOLERANCE.get(self.model.dtype, 1e-3) * other.abs().max()
            if one.shape != other.shape or not (one - other).abs().max() <= allowed:
                raise CompatibilityError(
                    explain(
                        "this model answers otherwise when it answers several requests at a time",
                        found=f"{type(self.model).__name__}: logits {(one - other).abs().max():.3g} apart",
                        do="transformers' generate, one request at a time",
                    )
                )

    def _in_parts(self, rows: Many[Many[int]]) -> list[Tensor]:
        """The logits of rows of tokens, computed in a step for most of each and one for its last."""
        sequences = [Sequence(Request(tokens=tuple(row)), -1 - i) for i, row in enumerate(rows)]
        found: list[list[Tensor]] = [[] for _ in rows]
        for first, last in ((0, -2), (-2, -1), (-1, None)):
            counts = [len(row[first:last]) for row in rows]
            for one, count in zip(sequences, counts, strict=True):
                assert self.blocks.grow(one, one.num_computed + count), "a cache holds a trial"
            logits = self._logits(list(zip(sequences, counts, strict=True)), range(sum(counts)))
            for part, own, one, count in zip(logits.split(counts), found, sequences, counts, strict=True):
                own.append(part)
                one.num_computed += count
        for one in sequences:
            self.blocks.release(one)
        return [torch.cat(own) for own in found]


def _logprob(logits: Tensor, token: int, num_top: int) -> Logprob:
    values = logits.log_softmax(-1)
    top = values.topk(min(num_top, len(values)))
    return Logprob(token, float(values[token]), dict(zip(top.indices.tolist(), top.values.tolist(), strict=True)))
