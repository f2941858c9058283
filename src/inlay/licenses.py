"""What licences say of sharing what was made of a thing, and where a card says under which one it lies.

An adapter is made of a base and of data. Whether it is a derivative of them in the sense of the law is for courts to say; here
the careful reading counts: what a licence says of derivatives holds for it. This is a reminder, and no advice of a lawyer.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Licence(NamedTuple):
    """What a licence says of sharing what was made of a thing."""

    permits: bool
    says: str
    """In words: what it asks, or forbids."""
    source: str
    """The section that says so."""


_CC = "https://creativecommons.org/licenses"
_ND = "what was made of it may not be shared"
_NC = "only without commercial ends"
_SA = "what was made of it lies under the same licence"
_BY = "name the author"

KNOWN = {
    "apache-2.0": Licence(True, "hand on the licence and the notices", "section 4"),
    "mit": Licence(True, "hand on the notice", "the second paragraph"),
    "bsd-2-clause": Licence(True, "hand on the notice", "clauses 1 and 2"),
    "bsd-3-clause": Licence(True, "hand on the notice", "clauses 1 to 3"),
    "cc0-1.0": Licence(True, "nothing is asked", "section 2"),
    "cc-by-3.0": Licence(True, _BY, f"{_CC}/by/3.0/legalcode, sections 3 and 4(b)"),
    "cc-by-4.0": Licence(True, _BY, f"{_CC}/by/4.0/legalcode, sections 2(a)(1) and 3(a)"),
    "cc-by-sa-3.0": Licence(True, f"{_BY}; {_SA}", f"{_CC}/by-sa/3.0/legalcode, section 4(b)"),
    "cc-by-sa-4.0": Licence(True, f"{_BY}; {_SA}", f"{_CC}/by-sa/4.0/legalcode, section 3(b)"),
    "cc-by-nc-3.0": Licence(True, f"{_BY}; {_NC}", f"{_CC}/by-nc/3.0/legalcode, section 4(b)"),
    "cc-by-nc-4.0": Licence(True, f"{_BY}; {_NC}", f"{_CC}/by-nc/4.0/legalcode, section 2(a)(1)"),
    "cc-by-nc-sa-4.0": Licence(
        True, f"{_BY}; {_NC}; {_SA}", f"{_CC}/by-nc-sa/4.0/legalcode, sections 2(a)(1) and 3(b)"
    ),
    "cc-by-nd-3.0": Licence(False, _ND, f"{_CC}/by-nd/3.0/legalcode, section 3"),
    "cc-by-nd-4.0": Licence(False, _ND, f"{_CC}/by-nd/4.0/legalcode, section 2(a)(1)(B)"),
    "cc-by-nc-nd-3.0": Licence(False, _ND, f"{_CC}/by-nc-nd/3.0/legalcode, section 3"),
    "cc-by-nc-nd-4.0": Licence(False, _ND, f"{_CC}/by-nc-nd/4.0/legalcode, section 2(a)(1)(B)"),
    "llama2": Licence(
        True, "hand on the agreement and its notice", "LLAMA 2 Community License Agreement, section 1(b)"
    ),
    "llama3": Licence(
        True,
        'hand on the agreement; "Built with Meta Llama 3"; a name that begins with Llama 3',
        "META LLAMA 3 Community License Agreement, section 1(b)",
    ),
    **dict.fromkeys(
        ["llama3.1", "llama3.2", "llama3.3"],
        Licence(
            True,
            'hand on the agreement; "Built with Llama"; a name that begins with Llama',
            "Llama 3.x Community License Agreement, section 1(b)",
        ),
    ),
    "gemma": Licence(True, "hand on the terms and the limits of use", "Gemma Terms of Use, section 3.1"),
    "bigscience-bloom-rail-1.0": Licence(True, "hand on the limits of use", "section 4"),
    "creativeml-openrail-m": Licence(True, "hand on the limits of use", "section 4"),
}
"""By what cards call them: the identifiers of the Hugging Face hub, which are those of SPDX in small letters."""

CARDS = ("README.md", "README.base.md")
"""Where a card lies: beside a model or data, and in a copy of a model that has a card of its own."""

_MAX_CARD_BYTES, _MAX_LENGTH = 1_000_000, 100
_HEAD = re.compile(r"---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)


def of_card(directory: Path) -> str | None:
    """The licence that the card in a directory names in its head; None where it names none, or can't be read.

    A card that says `other` names it beside, as `license_name`.
    """
    for path in (directory / name for name in CARDS):
        try:
            if not path.is_file() or path.stat().st_size > _MAX_CARD_BYTES:
                continue
            head = _HEAD.match(path.read_text("utf-8-sig"))
            said: Any = yaml.safe_load(head[1]) if head else None
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue
        if isinstance(said, dict) and said.get("license"):
            return _named(said)
    return None


def _named(said: dict[str, Any]) -> str | None:
    """The licence of a card, in one line; None where it is no text and no list of texts, which aliases make endless."""
    named = said["license"]
    if named == "other" and "license_name" in said:
        named = said["license_name"]
    names = named if isinstance(named, list) else [named]
    if not all(isinstance(name, str) for name in names):
        return None
    return in_one_line(", ".join(names))


def in_one_line(text: str) -> str | None:
    """What somebody calls a licence, as records have it; None where that is nothing."""
    return " ".join(text.lower().split())[:_MAX_LENGTH] or None


def told(name: str | None) -> str:
    """A licence in a line: its name, and what it says of sharing."""
    if not name:
        return "no licence is stated"
    known = KNOWN.get(name.lower())
    return f"{name}: {known.says} ({known.source})" if known else f"{name}: not known here, read it"


def forbids(name: str | None) -> bool:
    """It is known that nothing that was made of a thing under this licence may be shared."""
    return any(not KNOWN[part].permits for part in (name or "").lower().split(", ") if part in KNOWN)
