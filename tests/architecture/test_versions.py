"""The versions that stand in several places agree: Python's, and the pins against the ranges."""

import re
from pathlib import Path

import pytest
import yaml
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


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def faults(workflow, scripts, uses):
    """What is wrong with a workflow: rights that are not said, jobs without an end, scripts and workflows that are not there."""
    found = [] if workflow.get("permissions") == {"contents": "read"} else ["rights"]
    for name, job in workflow["jobs"].items():
        found += [f"{name}: no end"] if "uses" not in job and "timeout-minutes" not in job else []
        runs = " ".join(step.get("run", "") for step in job.get("steps", []))
        found += [f"{name}: no scripts/{path}" for path in re.findall(r"scripts/(\w+)", runs) if path not in scripts]
        used = job.get("uses", "./")
        found += [f"{name}: no {used}"] if used != "./" and used not in uses else []
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_few_rights_an_end_and_scripts_that_are_there(path):
    scripts = {script.name for script in (ROOT / "scripts").iterdir()}
    uses = {f"./.github/workflows/{other.name}" for other in WORKFLOWS}
    assert faults(yaml.safe_load(path.read_text("utf-8")), scripts, uses) == []


def test_a_fault_of_a_workflow_is_found():
    jobs = {"a": {"steps": [{"run": "scripts/test && scripts/gone"}]}, "b": {"uses": "./gone.yml"}}
    assert faults({"jobs": jobs}, {"test"}, {"./there.yml"}) == [
        "rights",
        "a: no end",
        "a: no scripts/gone",
        "b: no ./gone.yml",
    ]


def test_the_checks_run_on_every_python_that_is_promised():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yml").read_text("utf-8"))["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == PYTHONS
    assert {system.split("-")[0] for system in jobs["test"]["strategy"]["matrix"]["os"]} == {
        "ubuntu",
        "macos",
        "windows",
    }


def test_the_version_stands_alike_in_the_package_and_its_citation():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    project = PYPROJECT["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert project["description"].split(" on ")[0].split(",")[0].lower() in citation["title"]


def test_lint_before_a_commit_is_that_of_the_checks():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert f"ruff=={hooks[0]['rev'].removeprefix('v')}" in (ROOT / "constraints.txt").read_text("utf-8").splitlines()


HEADINGS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def test_the_changelog_has_the_headings_of_keep_a_changelog():
    lines = (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()
    releases = [line for line in lines if line.startswith("## ")]
    assert releases[0] == "## Unreleased"
    assert all(re.fullmatch(r"## \d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", line) for line in releases[1:])
    assert {line.removeprefix("### ") for line in lines if line.startswith("### ")} <= set(HEADINGS)
