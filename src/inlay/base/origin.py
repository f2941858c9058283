"""Whether an adapter was made for this base: by what its record says, and where it has none, by the name that it gives.

    the weights, the tokenizer                  another one is refused
    what the configuration decides, roles       likewise: the same weights compute something else with other heads or epsilon
    the same weights, quantised or in another   a note: answers differ a little
    dtype
    the same, where the adapter began with      refused: beside other weights it would add that once more
    what the weights lost as they were
    quantised
    the chat template, the tokens that end      a note
    no record, and the name of another base     refused where both are names of the hub, else a note: a folder may have any name

Records of older versions lack some of it; what is not there is not compared.
"""

import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from inlay.core.pooling import MEAN
from inlay.errors import CompatibilityError, explain, few
from inlay.formats.contract import AdapterFile
from inlay.gguf.opening import license_of, stored_as
from inlay.io import meaning
from inlay.io.checkpoint import Checkpoint, hub_name, name_others
from inlay.io.fingerprint import Fingerprint, short
from inlay.methods import hooks
from inlay.methods.contract import Method
from inlay.model.adapter import Adapter
from inlay.tasks.contract import TaskSpec


@runtime_checkable  # the tests check it where they check shapes
class Known(Protocol):
    """What is compared of a base."""

    checkpoint: Checkpoint

    @cached_property
    def fingerprint(self) -> Fingerprint: ...

    @cached_property
    def computes(self) -> dict[str, Any]: ...


BEGAN_WITH, RESIDUAL = "began_with", "residual"
"""What an adapter's record says of its base where the adapter began with what that lost as it was quantised."""


def about(base: Known, adapter: Adapter | None = None) -> dict[str, Any]:
    """What an adapter's record says of its base."""
    known = {"name": base.checkpoint.name, **base.fingerprint.as_dict(), **stored_as(base.checkpoint)}
    known |= {"license": said} if (said := license_of(base.checkpoint)) else {}
    known |= {BEGAN_WITH: RESIDUAL} if adapter is not None and began_with_residual(adapter.record) else {}
    return {"base": known, meaning.KEY: base.computes}


def begun(method: Method) -> dict[str, Any]:
    """The record of an adapter that `method` begins."""
    start = hooks.starts(method)
    return {"base": {BEGAN_WITH: RESIDUAL}} if start is not None and start.source == RESIDUAL else {}


def began_with_residual(record: Mapping[str, Any]) -> bool:
    """By its record an adapter holds what its base lost as it was quantised, and fits no other than that base."""
    return record.get("base", {}).get(BEGAN_WITH) == RESIDUAL


def check_task(name: str, record: dict[str, Any], spec: TaskSpec, labels: tuple[str, ...]) -> None:
    """Refuse an adapter whose record says that it was trained for another task, or for other classes.

    **Raises:**

    - `CompatibilityError`: it does.
    """
    about = record.get("task") or {}
    theirs, classes = about.get("name", spec.name), tuple(about.get("labels") or labels)
    if theirs != spec.name:
        raise CompatibilityError(
            explain(
                f"{name} was trained for another task",
                found=f"{theirs}; this base was loaded for {spec.name}",
                do=f'--task {theirs} where the command has it, or inlay.load(MODEL, task="{theirs}")',
            )
        )
    if classes != labels:
        raise CompatibilityError(
            explain(
                f"{name} was trained for other classes",
                found=f"{', '.join(classes)}; this base has {', '.join(labels)}",
                do=f"inlay.load(MODEL, task={theirs!r}, labels={list(classes)!r})",
            )
        )


def check_pooling(name: str, record: dict[str, Any], pooling: str) -> None:
    """Refuse an adapter whose record says that its vectors were made in another way than this base makes them.

    **Raises:**

    - `CompatibilityError`: it does.
    """
    theirs = (record.get("task") or {}).get("pooling", MEAN)
    if theirs != pooling:
        raise CompatibilityError(
            explain(
                f"{name} was trained with another pooling",
                found=f"{theirs}; this base has {pooling}",
                do="the base that it was trained on, with the same modules.json, or train it again",
            )
        )


def weights_of(
    trained_on: Mapping[str, Any], base: Fingerprint
) -> Literal["same", "another precision", "other", "unknown"]:
    """What the weights of a base are to those that a record says an adapter was trained on."""
    if trained_on.get("weights") in (None, base.weights):
        return "same" if trained_on.get("weights") else "unknown"
    ours, parts = base.as_dict(), ("weights", "quantized_from", "rounded")
    is_same = not {trained_on.get(part) for part in parts}.isdisjoint({ours.get(part) for part in parts} - {None})
    return "another precision" if is_same else "other"


def check(
    name: str,
    file: AdapterFile,
    base: Any,  # `Known`: one with a weight that is NaN refuses to be known, and a protocol asks
    force: bool,
) -> None:
    """Refuse an adapter that was made for another base, unless `force` says otherwise.

    **Raises:**

    - `CompatibilityError`: it was trained on other weights, with another tokenizer or configuration, or names another model.
    - `FormatError`: a weight of the base is NaN.
    """
    trained_on, ours = file.record.get("base", {}), base.fingerprint.chat_template
    if not trained_on:
        _check_name(name, file.model.name, base, force)
    other_precision = _is_other_precision(trained_on, base)
    problems = [] if force else _problems(trained_on, file.record.get(meaning.KEY, {}), base, other_precision)
    if problems:
        raise CompatibilityError(
            explain(
                f"{name} was trained on another base",
                found=few(problems),
                do="use the base it names, or pass --force to run it anyway: answers will be wrong in ways that look right",
            )
        )
    is_wrong = other_precision and began_with_residual(file.record)
    if is_wrong and not force:
        raise CompatibilityError(
            explain(
                f"{name} began with what its base lost as it was quantised, and fits that quantised base alone",
                found=f"sha256 {short(trained_on.get('weights'))}; this base has {short(base.fingerprint.weights)}",
                do="--quantize nf4, or the folder that inlay quantize writes; --force: answers will be wrong",
            )
        )
    if other_precision:
        theirs = f"{trained_on.get('name')}, sha256 {short(trained_on.get('weights'))}"
        answers = "be wrong" if is_wrong else "differ a little"
        _say(f"{name} was trained on the same weights in another precision ({theirs}): answers will {answers}")
    if trained_on.get("chat_template", ours) != ours:
        _say(
            f"{name} was trained with another chat template ({short(trained_on['chat_template'])}, this base has "
            f"{short(ours)}): prompts will not look as they did in training"
        )
    ends = file.record.get(meaning.KEY, {}).get("ends")
    if ends is not None and ends != base.computes["ends"]:
        _say(f"answers ended at the tokens {ends} where {name} was trained, and end at {base.computes['ends']} here")


def _problems(
    trained_on: Mapping[str, Any], computed: Mapping[str, Any], base: Known, other_precision: bool
) -> list[str]:
    ours = base.fingerprint
    same_file = trained_on.get("tokenizer") in (None, ours.tokenizer)
    parts = ["weights"] if not other_precision and trained_on.get("weights") is not None else []
    parts += [] if "tokenizer" in computed or same_file else ["tokenizer"]
    found = [
        f"{part} sha256 {short(trained_on[part])} ({trained_on.get('name')}), this base ({base.checkpoint.name}) has "
        f"{short(getattr(ours, part))}"
        for part in parts
        if trained_on[part] != getattr(ours, part)
    ]
    return found + (meaning.differences(computed, base.computes, same_file) if computed else [])


def _is_other_precision(trained_on: Mapping[str, Any], base: Known) -> bool:
    """An adapter's base is not this one, but both are the same weights, in another dtype or quantised."""
    return weights_of(trained_on, base.fingerprint) == "another precision"


def _check_name(name: str, named: str | None, base: Known, force: bool) -> None:
    """What an adapter without a record of its base calls it, against what the base is called."""
    if not named or _is_named(named, base):
        return
    if name_others(named, base.checkpoint.reference) and not force:
        raise CompatibilityError(
            explain(
                f"{name} names another base",
                found=f"{named}, and this is {hub_name(base.checkpoint.reference)}; it has no inlay.json that would say more",
                do=f"{named} as the base, or --force where this one is the same under another name",
            )
        )
    _say(
        f"{name} says that it belongs to {named}, and this base is {base.checkpoint.name}; it brings no fingerprint, so that "
        "nothing tells whether they are the same"
    )


def _is_named(named: str, base: Known) -> bool:
    """The base at hand goes by this name, or is at this path."""
    reference = base.checkpoint.reference
    theirs, ours = hub_name(named), hub_name(reference)
    if theirs and ours:
        return theirs.lower() == ours.lower()
    if not theirs and Path(named).is_dir() and Path(named).resolve() == Path(reference):
        return True
    return Path(theirs or named).name.lower() == Path(ours or reference).name.lower()


def _say(text: str) -> None:
    warnings.warn(text, stacklevel=5)
