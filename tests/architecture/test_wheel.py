"""The wheel and the sdist: what is in them, and that the wheel works where nothing else is installed."""

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
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    for wanted in ("inlay/py.typed", "inlay/cli/demo_base/model.safetensors", "inlay/methods/lora.py"):
        assert wanted in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "docs", "scripts"))]


def test_the_sdist_can_be_built_from(built):
    names = [name.split("/", 1)[-1] for name in tarfile.open(built[1]).getnames()]
    for wanted in ("pyproject.toml", "LICENSE", "README.md", "src/inlay/cli/demo_base/model.safetensors"):
        assert wanted in names


def test_the_wheel_works_in_an_empty_environment(built, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--disable-pip-version-check",
        built[0],
    ]
    subprocess.run(install, check=True)
    done = subprocess.run([tmp_path / "env" / "bin" / "inlay", "--help"], capture_output=True, text=True, check=True)
    assert "inlay COMMAND" in done.stdout
    version = subprocess.run(
        [python, "-c", "import inlay; print(inlay.__version__)"], capture_output=True, text=True, check=True
    )
    assert version.stdout.strip() in built[0].name
