"""The wheel and the sdist: what is in them, and that the wheel works where nothing else is installed."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support import forks

ROOT = Path(__file__).parents[2]


LIBRARY = re.compile(r"inlay/kernels/_kernels\.[\w.-]*(?:so|pyd|dylib)")
"""What a compiler makes of the C files in inlay/kernels."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:  # what is committed, so that a stray file can't make the build work
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    about = source / "pyproject.toml"
    quick = about.read_text("utf-8").replace('"-O3"', '"-O0"')  # what becomes of the C files is not looked at here
    about.write_text(quick, "utf-8")
    return source


def build(source, folder, *arguments, **environment):
    command = [sys.executable, "-m", "build", "--no-isolation", *arguments, "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """The wheel and the sdist. Without --wheel or --sdist, one is made from the other: so the sdist can be built from."""
    folder = tmp_path_factory.mktemp("dist")
    return build(source, folder), next(folder.glob("*.tar.gz"))


def has_compiler():
    return shutil.which(sysconfig.get_config_var("CC").split()[0]) is not None


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = zipfile.ZipFile(built[0]).namelist()
    listed = subprocess.run(
        ["git", "ls-files", "src/inlay"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    package = {name.removeprefix("src/") for name in listed if (ROOT / name).is_file()}
    assert {"inlay/cli/demo_base/model.safetensors", "inlay/http/page/index.html"} <= package
    libraries = {name for name in names if LIBRARY.fullmatch(name)}
    assert {name for name in names if ".dist-info/" not in name} == package | libraries
    assert len(libraries) == (1 if has_compiler() else 0)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_can_be_built_from(built):
    names = [name.split("/", 1)[-1] for name in tarfile.open(built[1]).getnames()]
    kernels = [str(path.relative_to(ROOT)) for path in (ROOT / "src/inlay/kernels").glob("*.[ch]")]
    files = ("src/inlay/cli/demo_base/model.safetensors", *kernels)
    for wanted in ("pyproject.toml", "LICENSE", "README.md", *files):
        assert wanted in names
    assert not any(LIBRARY.search(name) for name in names)


def test_without_a_compiler_there_is_a_wheel_that_says_so(source, tmp_path):
    wheel = build(source, tmp_path, "--wheel", CC="no-such-compiler")
    with zipfile.ZipFile(wheel) as packed:
        assert not any(LIBRARY.fullmatch(name) for name in packed.namelist())
        packed.extractall(tmp_path / "site")
    script = f"""
import torch
sys.path.insert(0, {str(tmp_path / "site")!r})
from inlay.kernels import native, nf4
codes, absmax = nf4.quantize(torch.ones(2, 64))
print(native.__file__, len(codes), native.variant(), native.why_not(), sep="|")"""
    status, out, err = forks.run(forks.ANEW + script)
    assert status == 0, err
    file, number, variant, why = out.strip().split("|")
    assert tmp_path in Path(file).parents
    assert (number, variant) == ("64", "torch")
    assert "not built" in why


def test_the_wheel_works_in_an_empty_environment(built, tmp_path):
    venv.create(tmp_path / "env", with_pip=False)
    programs = tmp_path / "env" / "bin"
    # an empty folder, and nothing of the caller's path: the sources would answer in the wheel's place
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}

    def run(*command):
        return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=True).stdout

    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", built[0])
    assert [line.split()[0] for line in run(*pip, "list").splitlines()[2:]] == ["inlay"]
    assert "inlay COMMAND" in run(programs / "inlay", "--help")
    version, file = run(
        programs / "python", "-W", "error", "-c", "import inlay; print(inlay.__version__, inlay.__file__)"
    ).split()
    assert f"-{version}-" in built[0].name
    assert tmp_path in Path(file).parents
