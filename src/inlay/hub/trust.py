"""Whose signature an adapter needs, by where it comes from: the trust policy.

    - source: oci://registry.example.com/*      a pattern: * stands for any characters, ? for one
      signed: enforce                           off, warn or enforce
      keys: [team.pub]                          public keys, beside this file
    - source: hf://*
      signed: warn
      keys: [team.pub, acme.pub]
    - source: "*"                               the last rule says what becomes of all else
      signed: off

The first rule that fits a source counts; one without a version fits all versions. Sources are what is fetched by name:
`store://NAME@VERSION`, `hf://OWNER/NAME`, `oci://HOST/NAME:TAG`; a directory has none. For what the store has, by name, digest
or path, the rules of all names hold that point to it. The policy lies where `INLAY_TRUST` says, else as `trust.yaml` in the
store; where none is, nothing is asked. A policy that can't be read is an error, and nothing is fetched.
"""

import dataclasses
import fnmatch
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from inlay import fields
from inlay.errors import FormatError, TrustError, explain, few
from inlay.hub import oci, sign, store
from inlay.hub.sign import Signer
from inlay.io import json_files

LEVELS = ("off", "warn", "enforce")
"""What can be asked of a source: nothing; that it is said; that it is so."""

FILE = "trust.yaml"
MAX_POLICY_BYTES = 100_000


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is asked of the sources that a pattern fits."""

    source: str
    signed: str
    """One of `LEVELS`."""
    keys: tuple[Path, ...] = ()

    def fits(self, source: str) -> bool:
        """The pattern fits, with a version or without; capitals count neither in the names of hosts nor on the hub."""
        pattern = oci.plain(self.source.lower()).replace("[", "[[]")  # * and ? alone stand for others
        source = oci.plain(source.lower())
        any_version = re.sub(r":[^/]*$", "", source.partition("@")[0])
        return any(fnmatch.fnmatchcase(spelt, pattern) for spelt in (source, any_version))


def place() -> Path:
    """Where the policy lies, if there is one."""
    return Path(os.environ.get("INLAY_TRUST") or store.directory() / FILE).expanduser().absolute()


def policy() -> tuple[Rule, ...]:
    """The rules, in order; none where there is no policy.

    **Raises:**

    - `FormatError`: it can't be read, or says what can't be.
    """
    path = place()
    if not os.path.lexists(path) and not os.environ.get("INLAY_TRUST"):
        return ()
    try:
        content = json_files.read_bytes(path, MAX_POLICY_BYTES)
        found = yaml.load(content, _Once)
    except OSError as error:
        raise _wrong([f"{path}: {error.strerror}"]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _wrong([f"{path}: {' '.join(str(error).split())[:300]}"]) from None
    rules = found if isinstance(found, list) else []
    problems = [f"{path}: rule {i}: {why}" for i, rule in enumerate(rules, 1) for why in _faults(rule)]
    if not problems and (not rules or rules[-1]["source"] != "*"):
        problems = [f'{path}: no last rule for "*", which says what becomes of all else']
    if problems:
        raise _wrong(problems)
    return tuple(Rule(r["source"], _level(r["signed"]), _keys(path, r.get("keys", []))) for r in rules)


def keys() -> tuple[Path, ...]:
    """All keys that the policy names."""
    return tuple(dict.fromkeys(key for rule in policy() for key in rule.keys))


def rule_of(source: str) -> Rule:
    """The rule for a source."""
    return next((rule for rule in policy() if rule.fits(source)), Rule("*", "off"))


def check(source: str, directory: Path, require: Sequence[Path] = ()) -> Signer | None:
    """Refuse what has come from a source where its rule, or who asked for it, wants a signature that it lacks.

    **Arguments:**

    - `require`: keys of which one must have signed it, whatever the policy says.

    **Returns:**

    Who signed it, where that was asked for.

    **Raises:**

    - `TrustError`: nobody who is trusted there has signed these files.
    - `FormatError`: the policy or the signature can't be read.
    """
    rule = rule_of(source)
    signer = None
    if rule.signed != "off":
        try:
            signer = sign.required(directory, rule.keys, source)
        except (TrustError, FormatError) as error:
            if rule.signed == "enforce":
                do = f"{error.hint}; {place()} asks for it"
                raise TrustError(explain(error.wrong, found=error.found, do=do)) from None
            warnings.warn(f"{error.wrong}: {'; '.join(error.found)}", stacklevel=2)
    return sign.required(directory, require, source) if require else signer


def check_stored(directory: Path) -> None:
    """Refuse an object of the store as `check` does, under the rules of all names that point to it.

    **Raises:** what `check` does.
    """
    names = store.Store(store.directory()).names_of(directory.name) if policy() else []
    for each in names or [f"{store.DIGEST_PREFIX}{directory.name}"]:
        check(f"store://{each}", directory)


class _Once(yaml.SafeLoader):
    """YAML whose names stand once in their mapping."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if twice := sorted({str(name) for name in names if names.count(name) > 1}):
            raise FormatError(f"line {node.start_mark.line + 1}: {', '.join(twice)} stands twice")
        return super().construct_mapping(node, deep)


def _faults(rule: Any) -> list[str]:
    if not isinstance(rule, dict):
        return [f"{fields.shown(rule)} is no rule"]
    faults = [
        f"{fields.shown(name)} is nothing that a rule has" for name in rule if name not in ("source", "signed", "keys")
    ]
    if not isinstance(rule.get("source"), str) or not rule["source"]:
        faults.append("source: which pattern?")
    level, named = _level(rule.get("signed")), rule.get("keys", [])
    if level not in LEVELS:
        faults.append(f"signed: {fields.shown(level)}, not {', '.join(LEVELS)}")
    if not isinstance(named, list) or not all(isinstance(key, str) and key for key in named):
        faults.append("keys: no list of files")
    elif level != "off" and not named:
        faults.append(f"signed: {level}, by whom? keys: [KEY.pub]")
    return faults


def _level(said: Any) -> Any:
    """What a rule asks; YAML takes the word `off` for false."""
    return "off" if said is False else said


def _keys(path: Path, named: Sequence[str]) -> tuple[Path, ...]:
    return tuple(path.parent / Path(key).expanduser() for key in named)


def _wrong(found: list[str]) -> FormatError:
    do = '- {source: "*", signed: off}, the last rule, asks nothing; see docs/guides/share.md'
    return FormatError(explain("the trust policy can't be followed, and nothing is fetched", found=few(found), do=do))
