"""What the gate found, on the screen."""

from inlay.gate.findings import Findings
from inlay.screen import say

COLUMNS = "unused-key"
"""The kind that training says where it says what its data is."""


def say_findings(findings: Findings | None, *, with_columns: bool = False) -> None:
    """A line for each kind of fault."""
    found = [each for each in findings.found if with_columns or each.kind != COLUMNS] if findings else []
    for i, finding in enumerate(found):
        say("" if i else "check", f"{finding.severity}: {finding}" if finding.severity == "error" else str(finding))
