"""Show what was run: trainings, evaluations, merges.

`inlay runs list` says which there were, `inlay runs show ID` all of one, `inlay runs compare ID ID` what differs. Each verb has
its own --help, and --json prints one object.
"""

import dataclasses
import datetime
from pathlib import Path
from typing import Annotated, Any

from inlay.errors import ConfigError, explain
from inlay.options.flags import Common
from inlay.options.types import Mark
from inlay.runs import database
from inlay.runs.record import Run
from inlay.screen import emit, fact, say

Number = Annotated[int, Mark(is_positional=True, metavar="ID")]

COMPARED = ("command", "base", "data", "settings", "machine", "versions", "scores")
"""The parts of two runs that are laid beside each other, in this order."""


def _database() -> database.Database:
    if (found := database.Database.found()) is None:
        raise ConfigError(explain("no runs are recorded", found="INLAY_RUNS=none", do="INLAY_RUNS=FILE"))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class List(Common):
    """The last runs, a line each."""

    last: int = 20
    """At most this many."""

    def run(self) -> int:
        held = _database()
        runs = held.runs(self.last)
        for run in runs:
            fact("", line(run))
        if not runs:
            say("runs", f"nothing in {held.path} yet: train, eval, compare, merge and quantize are recorded there")
        if self.json:
            emit({"path": str(held.path), "runs": [as_json(run) for run in runs]})
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Show(Common):
    """All that is known of a run."""

    id: Number
    """Its number, as `inlay runs` lists it."""

    def run(self) -> int:
        run = _database().run(self.id)
        fact("run", line(run))
        fact("command", said(run))
        if run.error:
            fact("error", run.error)
        for part in ("base", "adapter", "data", "settings", "scores", "findings", "notes", "machine", "versions"):
            for key, value in flat(getattr(run, part)).items():
                fact(part, f"{key}: {value}")
        for key, value in flat(run.forecast).items():
            fact("forecast", f"{key}: {value}")
        if run.curve:
            evaluated = [f"{point.step}: {point.held_out:.4f}" for point in run.curve if point.held_out is not None]
            fact(
                "curve",
                f"{run.curve[-1].step} steps" + (f" · held out after {', '.join(evaluated)}" if evaluated else ""),
            )
        if self.json:
            emit(as_json(run) | {"curve": [point._asdict() for point in run.curve]})
        return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(Common):
    """What differs between two runs, and what came of it."""

    first: Number
    """One, by its number."""

    second: Number
    """The other one."""

    def run(self) -> int:
        held = _database()
        one, other = held.run(self.first), held.run(self.second)
        found = differences(one, other)
        for run in (one, other):
            fact("run", line(run))
        for part, values in found.items():
            for key, (before, after) in values.items():
                fact(part, f"{key}: {before} → {after}")
        if not any(values for part, values in found.items() if part != "scores"):
            fact("settings", "all the same")
        if self.json:
            emit({"runs": [as_json(one), as_json(other)], "differs": found})
        return 0


def differences(one: Run, other: Run) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Part -> key -> (the first run's value, the second's), of what is not the same in both."""
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for part in COMPARED:
        pair = [flat(value if isinstance(value := getattr(run, part), dict) else {part: value}) for run in (one, other)]
        keys = [*pair[0], *(key for key in pair[1] if key not in pair[0])]
        found[part] = {key: (a, b) for key in keys if (a := pair[0].get(key)) != (b := pair[1].get(key))}
    return {part: values for part, values in found.items() if values}


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by the way that leads to them, with dots between."""
    if not isinstance(values, dict):
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def line(run: Run) -> str:
    """A run in one line: its number, when, what, over what, how it ended, what came of it."""
    when = datetime.datetime.fromtimestamp(run.started).strftime("%Y-%m-%d %H:%M")
    name = run.adapter.get("path") or run.adapter.get("name") or ""
    parts = [run.command, run.standing, run.base.get("name"), Path(name).name, run.data.get("source")]
    loss = run.scores.get("eval_loss", run.scores.get("loss"))
    parts += [f"loss {loss:.4f}" if isinstance(loss, float) else None, f"{run.seconds:,.0f} s" if run.ended else None]
    return f"{run.id:>4}  {when}  " + " · ".join(str(part) for part in parts if part)


def said(run: Run) -> str:
    """The command as it was typed, without what is secret."""
    return " ".join(["inlay", run.command, *run.arguments]) if run.arguments else f"{run.command}, from Python"


def as_json(run: Run) -> dict[str, Any]:
    """A run for `--json`."""
    own = {name: getattr(run, name) for name in (*database.PLAIN, *database.PARTS)}
    return {"id": run.id, **own, "outcome": run.standing}


VERBS, VERB = {"list": List, "show": Show, "compare": Compare}, "list"
"""What can be done, in the order of the help, and what is where nothing is said."""
