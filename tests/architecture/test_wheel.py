"""The wheel and the sdist: what is in them, and that the wheel works where nothing else is installed."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:  # what is committed, so that a stray file can't make the build work
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    # without --wheel or --sdist, build makes the wheel from the sdist: that proves that the sdist can be built from
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    listed = subprocess.run(
        ["git", "ls-files", "src/inlay"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    package = {name.removeprefix("src/") for name in listed if (ROOT / name).is_file()}
    assert "inlay/cli/demo_base/model.safetensors" in package
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_can_be_built_from(built):
    names = [name.split("/", 1)[-1] for name in tarfile.open(built[1]).getnames()]
    for wanted in ("pyproject.toml", "LICENSE", "README.md", "src/inlay/cli/demo_base/model.safetensors"):
        assert wanted in names


def test_the_wheel_works_in_an_empty_environment(built, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    programs = tmp_path / "env" / "bin"
    # an empty folder, and nothing of the caller's path: the sources would answer in the wheel's place
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*command):
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True).stdout

    pip = (programs / "python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", built[0])
    installed = {line.split()[0] for line in run(*pip, "list").splitlines()[2:]}
    assert installed - {"pip", "setuptools"} == {"inlay"}
    assert "inlay COMMAND" in run(programs / "inlay", "--help")
    version, file = run(
        programs / "python", "-W", "error", "-c", "import inlay; print(inlay.__version__, inlay.__file__)"
    ).split()
    assert f"-{version}-" in built[0].name
    assert tmp_path in Path(file).parents
