"""The summed loss of some rows under the adapters that are active, without wasted work.

    hidden = body(the rows, one after the other)        no padding; each row attends to itself alone (`inlay.core.attention`)
    loss   = sum over labelled t of -log softmax(head(hidden[t]))[label[t]]      the head sees no other position

What rows begin with alike is computed once (`inlay.packing.shared`), and what lies behind the attention of the last layer for
labelled tokens alone (`inlay.modules.last`).

The body is the model's own, with our attention in its layers (`inlay.model.attention`).

Not every model can be called so: some scale or cap what their head says, some carry a state from token to token. Each base is
tried once, on two documents of a few tokens; where the results differ, its rows go through the whole model as a padded batch.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from inlay.core.cross_entropy import cross_entropy_sum, head_cross_entropy_sum
from inlay.core.recompute import recomputing
from inlay.errors import CompatibilityError
from inlay.layout import targets
from inlay.methods import hooks
from inlay.model import attention
from inlay.model.adapted import Adapted
from inlay.model.batch import Batch, is_packing, passing
from inlay.model.prompts import virtual_ids
from inlay.modules import trial
from inlay.modules.fused import fuse_rotation_
from inlay.modules.last import narrow_
from inlay.packing import rows as batch
from inlay.packing import shared
from inlay.packing.lying import Lying
from inlay.packing.shared import Family
from inlay.tasks import _memory as memory
from inlay.tasks.contract import Loaded
from inlay.text.mask import Example

T = TypeVar("T")

PROBE_LENGTHS = (5, 3)
"""Tokens of the documents that a base is tried on."""

PROBE_LOGITS = 100.0
"""Size of what the head is made to say: beyond the caps that models have, which small logits would not meet."""

FEWEST_UNASKED = 64
"""Tokens without a label, at least: of fewer less is saved than it takes to leave them out."""

_can_narrow: weakref.WeakKeyDictionary[Loaded, bool] = weakref.WeakKeyDictionary()
_can_share: weakref.WeakKeyDictionary[Loaded, bool] = weakref.WeakKeyDictionary()
_reasons: weakref.WeakKeyDictionary[Loaded, str | None] = weakref.WeakKeyDictionary()


def loss_of(base: Loaded, examples: Sequence[Example]) -> Tensor:
    """The summed loss of some rows, in nats, under the adapters that are active."""
    return losses_of(base, [examples])[0]


def losses_of(base: Loaded, groups: Sequence[Sequence[Example]]) -> list[Tensor]:
    """The summed loss of each of some groups of rows, which go through the model together."""
    examples, sizes = [example for group in groups for example in group], [len(group) for group in groups]
    if not is_packed(base):
        made, device = batch.collate(examples), targets.device_of(base.model)
        logits = base.model(input_ids=made.input_ids.to(device), use_cache=False).logits
        pairs = zip(logits.split(sizes), made.labels.to(device).split(sizes), strict=True)
        return [cross_entropy_sum(some, labels) for some, labels in pairs]
    if len(groups) == 1 and (found := _families(base, examples)):
        try:
            return _losses(base, batch.pack_families(found))
        except CompatibilityError:
            _can_share[base] = False
    rows = [base.active] * len(examples) if isinstance(base.active, str | None) else base.active
    packed = batch.pack(examples, [virtual_ids(None if row is None else base.adapters[row]) for row in rows])
    lengths = iter(packed.lengths)
    return _losses(base, packed, [sum(itertools.islice(lengths, size)) for size in sizes])


def _losses(base: Loaded, packed: batch.Packed, tokens: Sequence[int] | None = None) -> list[Tensor]:
    """The summed loss of packed rows, or of each of several numbers of their tokens."""
    parts = packed.labels.split([*tokens] if tokens else len(packed.labels))
    labels = [part[part != batch.IGNORE] for part in parts]
    (positions,) = torch.where(packed.labels != batch.IGNORE)
    hidden = _hidden_at(base, packed, positions)
    pairs = zip(hidden.split([len(part) for part in labels]), labels, strict=True)
    return [_head_loss(base, some, part.to(some.device)) for some, part in pairs]


def parts(base: Loaded, examples: Sequence[Example], max_tokens: int | None) -> Iterator[list[Example]]:
    """The rows in groups that go through the model together, by default of as many tokens as suit it; see `batch.parts`."""
    most, found = max_tokens or memory.micro_batch_tokens(base), _families(base, examples)
    room = 0.0 if max_tokens else shared.ROOM
    return shared.parts(found, most, room) if found else batch.parts(examples, most, padded=not is_packed(base))


def num_computed(base: Loaded, examples: Sequence[Example]) -> int:
    """How many tokens go through the model for these rows together, without padding."""
    found = _families(base, examples)
    return shared.num_tokens(found) if found else batch.num_tokens(examples)


def _families(base: Loaded, examples: Sequence[Example]) -> list[Family]:
    """The rows by what they begin with, where something is shared and the base and its adapter can; else nothing."""
    active = base.active
    if len(examples) < 2 or not isinstance(active, str | None) or not is_packed(base):
        return []
    adapter = None if active is None else base.adapters[active]
    if adapter and (adapter.num_virtual or hooks.input_dropout(adapter.method)):
        return []
    found = shared.families(examples)
    return found if any(family.shared for family in found) and _shares(base) else []


def _shares(base: Loaded) -> bool:
    """Rows can go on from a part that they share, in this base: tried once."""
    return _tried_once(_can_share, base, _is_the_same)


def _is_the_same(base: Loaded) -> bool:
    """Branches of a few tokens are computed as rows of their own are."""
    if targets.device_of(base.model).type == "meta":
        return True  # an outline can't be called
    head = base.linears[base.head or ""]
    first, second = (row.input_ids for row in _probe(head.out_features))
    rows = [Example([*first, *rest], [0] * len(first) + [1] * len(rest), "probe") for rest in (second, first[::-1])]
    made, plain = batch.pack_families([Family(rows, len(first) - 1)]), batch.pack(rows)
    try:
        actual, expected = _hidden(base, made), _hidden(base, plain)
    except Exception:  # any model's code may refuse in any way
        return False
    (here,), (there,) = (torch.where(one.labels != batch.IGNORE) for one in (made, plain))
    allowed = trial.TOLERANCE.get(expected.dtype, 1e-3) * expected.abs().max()
    return bool((actual[here] - expected[there]).abs().max() <= allowed)


def _tried_once(known: MutableMapping[Loaded, T], base: Loaded, trial: Callable[[Loaded], T]) -> T:
    """What a trial of the plain base says, which is made when it is first asked for and leaves no trace."""
    if base not in known:
        with torch.no_grad(), base.using(None), torch.random.fork_rng(devices=[]):
            known[base] = trial(base)
    return known[base]


def is_packed(base: Loaded) -> bool:
    """The rows are packed, not padded."""
    return unpacked_because(base) is None


def unpacked_because(base: Loaded) -> str | None:
    """Why rows go through this base as a padded batch, in a few words; None where they are packed."""
    return _tried_once(_reasons, base, _problem)


def _hidden_at(base: Loaded, packed: batch.Packed, positions: Tensor) -> Tensor:
    """The last hidden states of some positions."""
    if _narrows(base, len(packed.labels), len(positions)):
        return _hidden(base, packed, positions)
    hidden = _hidden(base, packed)
    return hidden[positions.to(hidden.device)]


def _hidden(base: Loaded, packed: batch.Packed, asked: Tensor | None = None) -> Tensor:
    """The last hidden states (t, width) of documents in one row; of `asked` positions, where the last layer is narrowed."""
    body, device = base.model.base_model, targets.device_of(base.model)
    is_large = memory.activation_bytes(base, len(packed.input_ids)) >= memory.RECOMPUTE_BYTES
    lying = Lying(packed.lengths, packed.parents, None if asked is None else asked.to(device))
    current = base.router.batch or Batch([None] * len(packed.lengths))
    with (
        base.router.passing(current.like(lying)),
        recomputing(is_large),
    ):
        out = body(
            input_ids=packed.input_ids[None].to(device),
            position_ids=packed.position_ids[None].to(device),
            use_cache=False,
        )
    return out.last_hidden_state[0]


def _narrows(base: Loaded, num_tokens: int, num_asked: int) -> bool:
    """The last layer need not say all of these tokens, and can say some: that is tried once.

    Without gradients it says all: initialisers look at what goes into every map.
    """
    current = base.router.batch
    is_several = current is not None and current.num_rows is not None
    saves = num_asked and num_tokens - num_asked >= FEWEST_UNASKED
    if is_several or not saves or not torch.is_grad_enabled():
        return False
    return _tried_once(_can_narrow, base, _is_narrowed)


def _asked() -> Tensor | None:
    """The tokens that the head is asked about, in the pass under way; None: all."""
    current = passing()
    return None if current is None or current.lying is None else current.lying.asked


def _is_narrowed(base: Loaded) -> bool:
    """The last layer gets another function, and says of some tokens what it says of all."""
    if not narrow_(base.model.base_model, _asked):
        return False
    made = batch.pack(_probe(base.linears[base.head or ""].out_features))
    places = torch.arange(1, len(made.labels), 2)
    try:
        expected, actual = _hidden(base, made)[places], _hidden(base, made, places)
    except Exception:  # any model's code may refuse in any way
        return False
    allowed = trial.TOLERANCE.get(expected.dtype, 1e-3) * expected.abs().max()
    return actual.shape == expected.shape and bool((actual - expected).abs().max() <= allowed)


def _head_loss(base: Loaded, hidden: Tensor, labels: Tensor) -> Tensor:
    """The loss of positions that all have a label."""
    head = base.model.get_output_embeddings()
    linear = base.linears.get(base.head or "")
    if isinstance(head, Adapted) or linear is None or not linear.is_plain:
        return cross_entropy_sum(head(hidden[None])[0], labels)
    return head_cross_entropy_sum(hidden, linear.matrix, linear.bias, labels, linear.product_dtype(hidden))


def _problem(base: Loaded) -> str | None:
    """What is wrong with the packed way for this model, found by going both ways."""
    head = base.linears.get(base.head or "")
    if head is None:
        return "it has no linear output head"
    if attention.of(base.model.config) != "sdpa":
        return f"its attention is {attention.of(base.model.config)}"
    if getattr(base.model.config.get_text_config(), "attention_chunk_size", None):
        return "it attends in chunks"  # counted from the start of a row, whatever the positions say
    if targets.device_of(base.model).type == "meta":
        return None  # an outline can't be called
    attention.adopt_(base.model, base.router)  # without it, the masks of packed rows do the same
    fuse_rotation_(base.model.base_model, is_packing)
    examples = _probe(head.out_features)
    asked: list[tuple[Tensor, Tensor]] = []  # (what the head was given, what it was made to say)

    def instead(module: Any, given: Any, out: Tensor) -> Tensor:
        asked.append((given[0], PROBE_LOGITS * torch.randn(out.shape).to(out)))
        return asked[-1][1]

    hook = head.module.register_forward_hook(instead)
    try:
        logits = base.model(
            input_ids=batch.collate(examples).input_ids.to(targets.device_of(base.model)), use_cache=False
        ).logits
        packed = batch.pack(examples)
        actual = _hidden(base, packed)
    except Exception as error:  # any model's code may refuse in any way; the padded batch then says what is wrong
        return f"it can't be called so ({type(error).__name__})"
    finally:
        hook.remove()
    given, said = asked[-1]
    if not torch.equal(logits, said.to(logits.dtype)):
        return "it changes what its head says"
    expected = torch.cat([given[row, :length] for row, length in enumerate(packed.lengths)])
    allowed = trial.TOLERANCE.get(expected.dtype, 1e-3) * expected.abs().max()
    if actual.shape != expected.shape or not (actual - expected).abs().max() <= allowed:
        return "its tokens see more than the row that they are in"
    return None


def _probe(vocabulary: int) -> list[Example]:
    """Documents whose tokens differ."""
    numbers = itertools.count(1)
    rows = [tuple(7 * next(numbers) % vocabulary for _ in range(length + 1)) for length in PROBE_LENGTHS]
    return [Example(row, tuple(True for _ in row), "probe") for row in rows]
