"""The versions that stand in several places agree: Python's, and the pins against the ranges."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings tomli
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
OLDEST = PYPROJECT["project"]["requires-python"].removeprefix(">=")
PYTHONS = [f"3.{minor}" for minor in range(int(OLDEST.split(".")[1]), 15)]


def named():
    """What pyproject.toml asks for, with the extras."""
    project = PYPROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), PYPROJECT["build-system"]["requires"]]
    return [Requirement(line) for lines in lists for line in lines]


def disagreements(requirements, constraints, python):
    """Requirements without exactly one exact pin for this Python, and pins outside the range that users get."""
    pins = {}
    for line in constraints.splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python}):
                pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    found = [f"{name} is pinned {len(pinned)} times" for name, pinned in pins.items() if len(pinned) > 1]
    for wanted in requirements:
        pinned = pins.get(canonicalize_name(wanted.name), [])
        if not pinned:
            found.append(f"{wanted.name} is not pinned")
        for pin in pinned:
            exact = re.fullmatch(r"==([^,*]+)", str(pin.specifier))
            if not exact or not wanted.specifier.contains(Version(exact[1])):
                found.append(f"{pin} is no exact version of {wanted}")
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_named_package_is_pinned_within_its_range(python):
    assert disagreements(named(), (ROOT / "constraints.txt").read_text("utf-8"), python) == []


@pytest.mark.parametrize(
    ("constraints", "problem"),
    [
        ("", "a is not pinned"),
        ("a>=2", "no exact version"),
        ("a==1", "no exact version"),
        ('a==2; python_version >= "3.11"', "a is not pinned"),
        ("a==2\nA==2", "pinned 2 times"),
    ],
)
def test_a_planted_disagreement_is_found(constraints, problem):
    assert problem in disagreements([Requirement("a>=2")], constraints, "3.10")[0]


def test_the_oldest_python_is_the_same_everywhere():
    assert PYPROJECT["tool"]["pyright"]["pythonVersion"] == OLDEST
    major, minor = OLDEST.split(".")
    assert f"sys.version_info < ({major}, {minor})" in (ROOT / "scripts" / "_env").read_text("utf-8")
    for name in ("scripts/_env", "README.md", "CONTRIBUTING.md"):
        stated = re.findall(r"Python (3\.\d+)", (ROOT / name).read_text("utf-8"))
        assert set(stated) == {OLDEST}, f"{name} says {stated}"
