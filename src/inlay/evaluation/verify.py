"""Whether an adapter is of a base and says what it said when it was trained: what `inlay verify` finds, cheapest first.

    weights     the digest that the record names against the base's, which is remembered: milliseconds
    base        all else that `inlay.base.origin` compares: what the configuration decides, what the tokenizer does
    answers     those that were kept at the end of training, see `inlay.evaluation.golden`, asked again

Another base is refused by the first that finds one; the model is loaded for the other two.
"""

from pathlib import Path
from typing import Any, NamedTuple

from inlay import fields, formats, tasks
from inlay.base import origin
from inlay.base.load import load
from inlay.errors import CompatibilityError, FormatError, explain
from inlay.evaluation import golden
from inlay.formats.contract import AdapterFile
from inlay.gguf.opening import open_base
from inlay.io.checkpoint import Checkpoint
from inlay.io.fingerprint import Fingerprint, fingerprint, short


class Verified(NamedTuple):
    """What was found of an adapter and a base that belong together."""

    name: str
    base: str
    fingerprint: Fingerprint
    weights: str
    """What the base's weights are to those that it was trained on: the same, or the same in another precision."""
    answers: golden.Found | None
    """What came of the golden answers; None where none were kept."""


def weights(name: str, outline: AdapterFile, checkpoint: Checkpoint) -> tuple[str, Fingerprint]:
    """What a base's weights are to those that an adapter was trained on, by its record and their digest: (the same, or the same
    in another precision; the digest).

    **Arguments:**

    - `name`: what the adapter is called in a message.

    **Raises:**

    - `CompatibilityError`: they are others, or the record names none.
    """
    base, ours = outline.record.get("base", {}), fingerprint(checkpoint)
    found = origin.weights_of(base, ours)
    if found == "unknown":
        wrong, do = "nothing says which base this adapter was trained on", "an adapter that inlay train made says it"
        raise CompatibilityError(explain(wrong, found=f"{name}: no digest of a base in inlay.json", do=do))
    if found == "other":
        says = (
            f"weights sha256 {short(base['weights'])} ({base.get('name')}), {checkpoint.name} has {short(ours.weights)}"
        )
        wrong = f"{name} was trained on another base"
        raise CompatibilityError(explain(wrong, found=says, do="use the base it names"))
    return found, ours


def verify(adapter: str | Path, model: str | Path) -> Verified:
    """Compare an adapter with a base, and ask what was asked when it was trained.

    **Raises:**

    - `CompatibilityError`: it was trained on another base, or does not answer as it did.
    - `FormatError`: its files are broken.
    """
    outline, checkpoint = formats.outline(adapter), open_base(model)
    found, ours = weights(Path(adapter).name, outline, checkpoint)
    spec, labels = tasks.for_adapter(checkpoint, outline)
    base = load(checkpoint, task=spec, labels=labels)
    attached = base.attach(adapter)
    kept = attached.record.get(golden.KEY)
    answers = None
    if kept is not None:
        answers = golden.asked(base, attached.name, _checked(adapter, kept, base.model.config))
    if answers is not None and answers.same < answers.asked and found == "same":
        says = f"{answers.asked - answers.same} of {answers.asked} answers are others than when it was trained"
        do = "fetch adapter and base again; inlay store show says whether a stored adapter is as it was"
        raise CompatibilityError(explain(f"{attached.name} does not answer as it did", found=says, do=do))
    return Verified(attached.name, checkpoint.name, ours, found, answers)


def _checked(adapter: str | Path, kept: Any, config: Any) -> dict[str, Any]:
    """Golden answers out of a record: as many as prompts, at least one, none empty, all of tokens that the base has.

    **Raises:**

    - `FormatError`: they are something else.
    """
    parts = kept if isinstance(kept, dict) else {}
    values = {name: fields.fit(parts.get(name), tuple[tuple[int, ...], ...]) for name in golden.PARTS}
    whole = all(value is not fields.MISFIT for value in values.values())
    if whole:
        rows = [row for value in values.values() for row in value]
        counts, most = {len(value) for value in values.values()}, config.get_text_config().vocab_size
        whole = len(counts) == 1 and 0 not in counts and all(rows)
        whole = whole and all(0 <= token < most for row in rows for token in row)
    if not whole:
        wrong, do = "the golden answers of this adapter are damaged", "ask its author for a whole file"
        raise FormatError(explain(wrong, found=f"{adapter}: {golden.KEY} in inlay.json", do=do))
    return values
