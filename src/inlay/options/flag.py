"""What a flag is: plain values, from which its help is written and a command line is read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

TEXT, PATH, WHOLE, NUMBER, SWITCH, OFF = "text", "path", "int", "float", "switch", "off"
"""The kinds of values; a switch has none, and one that is on unless given is called `--no-NAME` (OFF)."""


class Flag(NamedTuple):
    """One flag, or one argument that stands without."""

    name: str
    """What it fills, as configuration files call it: `learning_rate`."""
    help: str
    kind: str = TEXT
    metavar: str = ""
    default: str = ""
    """As help shows it; empty where there is nothing to show."""
    choices: tuple[str, ...] = ()
    plugins: str = ""
    """The group of entry points whose names are choices too."""
    has_commas: bool = False
    """Several choices may be given, with commas between."""
    num_values: int = 1
    """How many values it has; 0: any number."""
    repeats: bool = False
    """It may be given several times, and has all the values."""
    is_map: bool = False
    """Its values are pairs: a name, and a value of its kind."""
    is_positional: bool = False
    is_required: bool = False
    frees: tuple[str, ...] = ()
    """What need not be given where this is."""
    only_with: tuple[str, ...] = ()
    """All that may be given where this is; anything where it is empty."""
    short: str = ""
    """A second name, such as `-v`."""

    @property
    def typed(self) -> str:
        """What is typed for it: `--learning-rate`; of an argument without a flag, what help calls it."""
        if self.is_positional:
            return self.metavar
        return ("--no-" if self.kind == OFF else "--") + self.name.replace("_", "-")

    def takes(self, brought: Sequence[str] = ()) -> str:
        """What stands behind it, for help; of choices also those that other packages have `brought`."""
        if self.kind in (SWITCH, OFF):
            return ""
        names = [*self.choices, *(name for name in brought if name not in self.choices)]
        one = "{" + ",".join(names) + "}" + ",..." * self.has_commas if names else self.metavar
        return f"[{one} ...]" if self.num_values == 0 and not self.is_positional else one


class Described(NamedTuple):
    """What help says of a command, of one of its verbs, or of a method."""

    about: str
    flags: tuple[Flag, ...] = ()
    verbs: tuple[tuple[str, "Described"], ...] = ()
    """What can be done, each with flags of its own."""
    verb: str = ""
    """What is done where no verb is given; empty where one has to be."""

    def as_json(self) -> Any:
        """The values that are not the usual ones."""
        values: dict[str, Any] = {"about": self.about}
        if self.verbs:
            values["verbs"] = {name: verb.as_json() for name, verb in self.verbs}
        if self.verb:
            values["verb"] = self.verb
        usual = Flag("", "")._asdict()
        values["flags"] = [
            {key: value for key, value in flag._asdict().items() if value != usual[key]} for flag in self.flags
        ]
        return values


def from_json(values: Any) -> Described:
    """What `as_json` wrote."""
    return Described(
        values["about"],
        tuple(_flag(flag) for flag in values["flags"]),
        tuple((name, from_json(verb)) for name, verb in values.get("verbs", {}).items()),
        values.get("verb", ""),
    )


def _flag(values: dict[str, Any]) -> Flag:
    read: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Flag(**read)


FILE = Path(__file__).with_name("flags.json")
"""What the commands and methods of this version are, as `scripts/make_flags.py` found them: help and usage need no more than
that, while to import a command is to import torch. A test sees to it that the file is right."""


def stored(kind: str, name: str) -> Described | None:
    """A command or a method (`kind`: commands, methods) by the file; None where it knows none of that name."""
    values = json.loads(FILE.read_text("utf-8"))[kind].get(name)
    return None if values is None else from_json(values)


def names(kind: str) -> Sequence[str]:
    """The commands or methods that the file knows."""
    return list(json.loads(FILE.read_text("utf-8"))[kind])
