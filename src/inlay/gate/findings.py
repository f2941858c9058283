"""What the gate finds: for each kind of fault how many rows have it, and where the first of them stand.

    findings = gate.examined(...)
    findings.errors, findings.warnings          the kinds that were found, the gravest first
    findings.as_dict()                          for a record, a report, --json

No text of a row is in it: names, places and counts alone, so that what may be personal data goes nowhere.
"""

import dataclasses
from collections import Counter
from typing import Any, Literal

from inlay.errors import DataError, explain

Severity = Literal["error", "warning"]
Check = Literal["off", "warn", "error"]
"""How strict the gate is: it looks at nothing; errors stop a run and warnings are counted; warnings stop it too."""

NUM_PLACES = 10
"""As many places are kept of each kind."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    words: str
    """What rows of it do, behind their number."""
    do: str
    """What mends them."""
    severity: Severity = "warning"
    is_dropped: bool = False
    """`inlay data check --fix` leaves such rows out."""


KINDS: dict[str, Kind] = {
    "unreadable": Kind(
        "can't be read as they stand", "mend or remove these rows, or --fix OUT", severity="error", is_dropped=True
    ),
    "untrainable": Kind(
        "have nothing that can be trained on", "mend or remove these rows, or --fix OUT", "error", is_dropped=True
    ),
    "evaluated": Kind(
        "are trained on and evaluated: they measure nothing new", "take them out of one of the two", is_dropped=True
    ),
    "nearly-evaluated": Kind(
        "are evaluated and trained on nearly as they stand", "look at both, and take them out of one"
    ),
    "duplicate": Kind("say what an earlier row says", "remove all but one, or --fix OUT", is_dropped=True),
    "near-duplicate": Kind("say nearly what an earlier row says", "look at both, and keep one"),
    "contradiction": Kind("answer a prompt that another row answers otherwise", "keep the right answer"),
    "left-out": Kind("are longer than max_length and left out", "a larger --max-length, or --too-long window"),
    "truncated": Kind("are longer than max_length: windows cut their answers", "a larger --max-length"),
    "no-end": Kind("have an answer without an end token", "a chat template that ends its answers"),
    "doubled-start": Kind("begin with two start tokens", "a chat template or texts without one of them"),
    "unknown-token": Kind("have characters that the tokenizer can't write", "another base, or other characters"),
    "lossy": Kind("come back from the tokenizer as another text", "another tokenizer, or other characters"),
    "empty-prompt": Kind("have an empty prompt", "fill it in, or use the form text"),
    "role-order": Kind("have turns in an order that no talk has", "one question, one answer, by turns"),
    "control-character": Kind("have control characters", "remove them"),
    "replacement-character": Kind("have characters that were lost in decoding (U+FFFD)", "decode the source again"),
    "mojibake": Kind("have text that was decoded wrongly (such as Ã© for é)", "decode the source as UTF-8"),
    "unused-key": Kind("have columns that are not used", "rename what should be read"),
    "e-mail": Kind("have e-mail addresses", "see that they may be learned"),
    "card-number": Kind("have numbers of payment cards", "see that they may be learned"),
    "phone-number": Kind("have phone numbers", "see that they may be learned"),
}
"""Every kind, the gravest first."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The rows of one kind."""

    kind: str
    """A key of `KINDS`."""
    num_rows: int
    places: tuple[str, ...]
    """Where the first `NUM_PLACES` stand, such as train.jsonl:12; for two alike, the later one."""
    about: str = ""
    """What else there is to say, in a few words; never text of a row."""

    @property
    def severity(self) -> Severity:
        """An error stops a run."""
        return KINDS[self.kind].severity

    def __str__(self) -> str:
        first = ", ".join(self.places[:3]) + (" ..." if self.num_rows > 3 and self.places else "")
        about = f" ({self.about})" if self.about else ""
        return f"{self.num_rows:,} rows {KINDS[self.kind].words}{about}{f': {first}' if first else ''}"


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that the gate found in the rows of a run, or of a file."""

    num_rows: int
    """Rows that were looked at, those that are held out among them."""
    found: tuple[Finding, ...]
    """One for each kind that was found, in the order of `KINDS`."""
    seconds: float = 0.0
    """How long the gate looked."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What stops a run."""
        return tuple(finding for finding in self.found if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is counted."""
        return tuple(finding for finding in self.found if finding.severity == "warning")

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it: the kinds by their names, without what no row has."""
        kinds = {finding.kind: _as_dict(finding) for finding in self.found}
        return {"rows": self.num_rows, "seconds": round(self.seconds, 3), "found": kinds}

    def stopping(self, check: Check) -> tuple[Finding, ...]:
        """What stops a run with this check."""
        return {"off": (), "warn": self.errors, "error": self.found}[check]

    def enforce(self, check: Check) -> None:
        """Refuse rows with what stops a run.

        **Raises:**

        - `DataError`: there is such; the message names every kind.
        """
        stopping = self.stopping(check)
        if stopping:
            what = dict.fromkeys(KINDS[finding.kind].do for finding in stopping)
            more = "" if self.errors else "; --check warn trains on them as they are"
            wrong = "the rows have faults that stop the run"
            raise DataError(explain(wrong, found=[str(f) for f in stopping], do="; ".join([*what][:3]) + more))


def _as_dict(finding: Finding) -> dict[str, Any]:
    about = {"about": finding.about} if finding.about else {}
    return {"severity": finding.severity, "rows": finding.num_rows, "places": list(finding.places), **about}


class Tally:
    """Findings while they are counted."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._places: dict[str, list[str]] = {}
        self._about: dict[str, str] = {}

    def add(self, kind: str, *places: str, num_rows: int = 1) -> None:
        """Count rows of a kind; `places` are where the first of them stand."""
        self._counts[kind] += num_rows
        known = self._places.setdefault(kind, [])
        known += places[: NUM_PLACES - len(known)]

    def about(self, kind: str, text: str) -> None:
        """Say more of a kind."""
        self._about[kind] = text

    def findings(self, num_rows: int, seconds: float) -> Findings:
        """What was counted."""
        found = [
            Finding(kind, self._counts[kind], tuple(self._places[kind]), self._about.get(kind, ""))
            for kind in KINDS
            if self._counts[kind]
        ]
        return Findings(num_rows, tuple(found), seconds)
