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
from inlay.generation import replay
from inlay.generation.blocks import SIZE, Blocks
from inlay.generation.pages import Kept, Pages, Span
from inlay.generation.scheduler import Scheduler
from inlay.generation.sequence import Request, Sequence, logprob
from inlay.layout import targets
from inlay.model import attention
from inlay.model.adapter import Adapter, Sum
from inlay.model.batch import PLAIN, Batch, Current, Plan, Router, is_packing
from inlay.modules import trial
from inlay.modules.fused import fuse_rotation_

MAX_TOKENS = 512
"""Tokens of a step: more are hardly faster a token, and everybody who decodes waits for them."""

MAX_ROWS = 64
"""Sequences that run at a time."""

NUM_PLANS = 4
"""How many sets of rows and adapters are remembered, with what was recorded of them."""


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
        self._plans = _Plans()
        self._numbers, self._next_serial = itertools.count(), itertools.count()
        self._serials: weakref.WeakKeyDictionary[Adapter, int] = weakref.WeakKeyDictionary()
        """A number for each adapter that no other ever had: blocks outlive the adapters that made them."""
        if problem := problem_of(model, router):
            raise CompatibilityError(
                explain(
                    "this model can't answer several requests at a time",
                    found=f"{type(model).__name__}: {problem}",
                    do="base.generate, which asks one after the other",
                )
            )

    def add(self, request: Request) -> Sequence:
        """Begin an answer.

        **Raises:**

        - `ConfigError`: prompt and answer need more of the cache than there is; or there is no prompt.
        """
        sequence = Sequence(request, next(self._numbers))
        self.enter(sequence)
        return sequence

    def enter(self, sequence: Sequence) -> None:
        """The same for a sequence of a request, whose number says when it came."""
        request = sequence.request
        room = self.blocks.count * SIZE
        if not sequence.tokens or sequence.most_tokens > room:
            found = f"{sequence.num_prompt:,} tokens and {request.max_new_tokens:,} new ones; the cache holds {room:,}"
            do = "a shorter prompt, or fewer new tokens" if sequence.tokens else "a prompt"
            raise ConfigError(explain("this request has no room", found=found, do=do))
        self.scheduler.add(sequence)

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
        grown: list[Sequence] = []
        for part in _passes(self.scheduler.step()):
            self._pass(part, grown)
        return grown

    def _pass(self, chosen: Many[tuple[Sequence, int]], grown: list[Sequence]) -> None:
        """A pass for some sequences of a step; those that have a new token go into `grown`."""
        asked = [
            range(count) if _wants_prompt(one) else range(count - 1, count) if one.num_missing == count else range(0)
            for one, count in chosen
        ]
        logits = _logits(self.model, self.router, self.pages, self._plans, chosen, asked)
        for (sequence, count), own in zip(chosen, logits.split([len(places) for places in asked]), strict=True):
            is_prompt = _wants_prompt(sequence)
            self.scheduler.computed(sequence, count)
            if is_prompt:
                self._note_prompt(sequence, count, own)
            if not sequence.num_missing:
                sequence.extend(own[-1])
                grown.append(sequence)
                if sequence.ending:
                    self.scheduler.remove(sequence)

    def _note_prompt(self, sequence: Sequence, count: int, logits: Tensor) -> None:
        """Keep how likely the prompt's tokens were."""
        start = sequence.num_computed - count
        for row, place in enumerate(range(start + 1, start + count + 1)):
            if sequence.num_virtual < place < sequence.num_prompt and len(sequence.prompt_logprobs) < place:
                token, top = sequence.tokens[place], sequence.request.prompt_logprobs or 0
                sequence.prompt_logprobs.append(logprob(logits[row], token, top))

    def _owner(self, sequence: Sequence) -> bytes:
        """What decides keys and values beside tokens: its adapters, and how often their tensors were changed."""
        return repr([(self._serial(one), one.version, weight) for one, weight in _parts(sequence)]).encode()

    def _serial(self, adapter: Adapter) -> int:
        if (serial := self._serials.get(adapter)) is None:
            serial = self._serials[adapter] = next(self._next_serial)
        return serial


def _wants_prompt(sequence: Sequence) -> bool:
    """How likely the tokens of its prompt are is asked for, and they are not all computed."""
    return sequence.request.prompt_logprobs is not None and sequence.num_computed < sequence.num_prompt


def _parts(sequence: Sequence) -> tuple[tuple[Adapter, float], ...]:
    """The adapters of a sequence, each with its weight."""
    adapter = sequence.request.adapter
    return adapter.parts if isinstance(adapter, Sum) else () if adapter is None else ((adapter, 1.0),)


def _passes(chosen: Many[tuple[Sequence, int]]) -> list[list[tuple[Sequence, int]]]:
    """The sequences of a step in groups that share a pass: all, but for adapters that have tensors instead of a module's own.

    A module is called once with one set of tensors; these adapters' sequences take a pass for each adapter.
    """
    passes: dict[Adapter | None, list[tuple[Sequence, int]]] = {}
    for one, count in chosen:
        adapter = one.request.adapter
        alone = adapter if isinstance(adapter, Adapter) and adapter.replaces else None
        passes.setdefault(alone, []).append((one, count))
    return list(passes.values())


class _Plans:
    """The batches of passes, which know each other where nothing but the tokens has changed: most steps of decoding.

    A few are kept, since a request that comes is computed in passes of its own before the others go on.
    """

    def __init__(self) -> None:
        self._known: list[tuple[Any, Batch]] = []
        """(what has to be the same, the last batch where it was), the latest last."""

    def batch(self, sequences: Many[Sequence], counts: Many[int], kept: Kept) -> Batch:
        """The batch of rows of so many tokens each."""
        parts = [[(one, one.bound, one.version, weight) for one, weight in _parts(sequence)] for sequence in sequences]
        key = parts, counts, kept.asked, kept.width
        for place, (known, last) in enumerate(self._known):
            if known == key and last.kept is not None:
                batch = last.again(kept)
                kept.take_places_(last.kept)
                self._known.append((self._known.pop(place)[0], batch))
                return batch
        adapters = [sequence.request.adapter for sequence in sequences]
        is_one = isinstance(adapters[0], Adapter) and len(set(adapters)) == 1
        rows: Any = adapters[0] if is_one else adapters
        batch = Batch(rows, counts, brings=True, kept=kept)
        if kept.is_newest:
            batch.plan = Plan()
            held = [known for known in self._known if all(adapter.is_attached for adapter in known[1].adapters)]
            self._known = [*held[1 - NUM_PLANS :], (key, batch)]
        return batch


def _logits(
    model: Any,
    router: Router,
    pages: Pages,
    plans: _Plans,
    chosen: Many[tuple[Sequence, int]],
    asked: Many[range],
) -> Tensor:
    """The logits that are asked for of a step's tokens, (tokens, vocabulary) in float32.

    `asked`: which of its tokens, for each sequence.
    """
    device = targets.device_of(model)
    spans, ids, positions, keep, start = [], list[int](), list[int](), list[int](), 0
    for (sequence, count), places in zip(chosen, asked, strict=True):
        first = sequence.num_computed
        spans.append(Span(start, first, count, tuple(sequence.blocks)))
        ids += sequence.tokens[first : first + count]
        positions += range(first, first + count)
        keep += [start + place for place in places]
        start += count
    counts = [len(places) for places in asked]
    if not keep:  # the head computes something in any case
        keep, counts = [0], [1, *[0] * (len(counts) - 1)]
    sequences = [sequence for sequence, _ in chosen]
    batch = plans.batch(sequences, [span.count for span in spans], Kept(pages, spans, counts, device))
    with router.using(Current(None, batch)), router.passing(batch):
        out = type(model).forward(  # past what puts virtual tokens in front: they are there
            model,
            input_ids=torch.tensor(ids, device=device)[None],
            position_ids=torch.tensor(positions, device=device)[None],
            use_cache=False,
            logits_to_keep=torch.tensor(keep, device=device),
        )
    return out.logits[0, : sum(map(len, asked))].float()


_problems: weakref.WeakKeyDictionary[Any, str | None] = weakref.WeakKeyDictionary()


def problem_of(model: Any, router: Router) -> str | None:
    """Why the engine can't compute a model, in a few words, found by a trial once; None where it can."""
    if model not in _problems:
        with router.using(PLAIN), trial.undisturbed(model), torch.no_grad():
            _problems[model] = _problem(model, router)
    return _problems[model]


def _problem(model: Any, router: Router) -> str | None:
    """What is wrong with passes over blocks for this model: two sequences that come in parts, against the plain pass."""
    attention.adopt_(model, router)
    fuse_rotation_(model.base_model, is_packing)
    replay.adopt_(model.base_model)
    ids = trial.example(model, 2).repeat(1, SIZE)[:, : SIZE + 8]
    rows = [ids[0].tolist(), ids[1, :-2].tolist()]
    try:
        expected = [trial.called(model, torch.tensor([row], device=ids.device)).logits[0].float() for row in rows]
        actual = _in_parts(model, router, rows)
    except CompatibilityError as error:
        return error.found[0]
    except Exception as error:  # any model's code may refuse in any way
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
    for one, other in zip(actual, expected, strict=True):
        allowed = trial.TOLERANCE.get(model.dtype, 1e-3) * other.abs().max()
        if one.shape != other.shape or not (one - other).abs().max() <= allowed:
            return f"its logits are {(one - other).abs().max():.3g} apart where its tokens come in parts"
    return None


def _in_parts(model: Any, router: Router, rows: Many[Many[int]]) -> list[Tensor]:
    """The logits of rows of tokens, computed in a step for most of each and one for each of its last four."""
    sequences = [Sequence(Request(tokens=tuple(row)), number) for number, row in enumerate(rows)]
    blocks = Blocks(2 * len(rows))
    pages, plans = Pages(blocks.count), _Plans()
    found: list[list[Tensor]] = [[] for _ in rows]
    for first, last in ((0, -4), (-4, -3), (-3, -2), (-2, -1), (-1, None)):
        counts = [len(row[first:last]) for row in rows]
        for one, count in zip(sequences, counts, strict=True):
            assert blocks.grow(one, one.num_computed + count), "there are blocks for all"
        logits = _logits(model, router, pages, plans, list(zip(sequences, counts, strict=True)), [*map(range, counts)])
        for part, own, one, count in zip(logits.split(counts), found, sequences, counts, strict=True):
            own.append(part)
            one.num_computed += count
    return [torch.cat(own) for own in found]
