"""What a command did, in plain values: what the database keeps, the page draws and the trackers are told.

Nothing secret is kept: flags that take a key, a token or a password lose their value, and so does what looks like one wherever
it stands.
"""

import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from inlay.runs import provenance

RUNNING, DONE, STOPPED, FAILED, KILLED = "running", "done", "stopped", "failed", "killed"
"""How a run stands, or ended; killed is what was running when its process went."""


class Point(NamedTuple):
    """What is known after a step."""

    step: int
    loss: float | None
    """Per supervised token, in nats; None for the start."""
    held_out: float | None = None
    seconds: float | None = None
    """Of steps and evaluations so far."""
    tokens: int | None = None
    """So far."""


@dataclasses.dataclass
class Run:
    """A command that was run. Each part but the curve is a value as JSON can hold it."""

    command: str
    arguments: list[str] = dataclasses.field(default_factory=list)
    id: int | None = None
    """Its number in the database; None while it has no row."""
    started: float = dataclasses.field(default_factory=time.time)
    ended: float | None = None
    outcome: str = RUNNING
    error: str = ""
    """The headline of what it failed with."""
    process: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, Any] = dataclasses.field(default_factory=dict)
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Its name and fingerprint."""
    adapter: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Its path and digest."""
    data: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Its path, digest and number of rows."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    forecast: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`predicted` and, at the end, `outcome`: the same keys."""
    findings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the gate found in the data; see `inlay.gate.findings.Findings.as_dict`."""
    samples: dict[str, Any] = dataclasses.field(default_factory=dict)
    """`prompts`, and the `answers` to them after each of some steps; held-out `rows` with their losses before and after."""
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What else there is to say: the command that makes it again, a run that overfits."""
    curve: list[Point] = dataclasses.field(default_factory=list)
    num_saved: int = 0
    """So many points of the curve are in the database."""
    is_begun: bool = False
    """Something is known of it, so that it has a row."""
    is_taken: bool = False
    """Somebody fills it alone; see `inlay.runs.recording.taken`."""
    is_warned: bool = False
    """Its row could not be written, and that was said."""

    @property
    def standing(self) -> str:
        """How it stands now: what still was running when its process went was killed."""
        return KILLED if self.outcome == RUNNING and provenance.is_gone(self.process) else self.outcome

    @property
    def seconds(self) -> float:
        """From its beginning to its end, or until now."""
        return (self.ended or time.time()) - self.started


_SECRET_FLAG = re.compile(r"(?i)--(?:[\w-]*-)?(?:keys?|token|secrets?|passwords?|credentials?)")
_SECRETS = re.compile(
    r"(?<=://)[^/@\s\"']+@|hf_[\w-]{12,}|\b(?:sk-|gh[pousr]_|glpat-|xox[a-z]-)[\w-]{12,}|\bAKIA[A-Z0-9]{16}\b|\beyJ[\w-]{10,}\.[\w.-]{10,}"
)
"""Whoever logs in with an address, and what services give as keys."""

LEFT_OUT = "***"


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command as they may be kept."""
    kept: list[str] = []
    for argument in arguments:
        flag, given, _ = argument.partition("=")
        if kept and _SECRET_FLAG.fullmatch(kept[-1]):
            kept.append(LEFT_OUT)
        elif given and _SECRET_FLAG.fullmatch(flag):
            kept.append(f"{flag}={LEFT_OUT}")
        else:
            kept.append(cleaned(argument))
    return kept


def cleaned(text: str) -> str:
    """A text without what looks like a key."""
    return _SECRETS.sub(LEFT_OUT, text)
