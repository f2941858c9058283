"""One new file is a new method: every law, the save and load, the command line and the mixed batch then know it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import bases

ROOT = Path(__file__).parents[2]

TOY = '''"""Toy: a single direction of the input moves a single direction of the output: y = W x + b + u (v . x)."""

import dataclasses

import torch

from inlay.methods.contract import LinearMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(LinearMethod):
    """y = W x + b + gain u (v . x)"""

    gain: float = 1.5
    """What multiplies the change."""

    def shapes(self, base):
        return {"u": (base.out_features,), "v": (base.in_features,)}

    def init(self, base, generator):
        return {"u": torch.zeros(base.out_features), "v": torch.randn(base.in_features, generator=generator)}

    def delta(self, params, x, y, base):
        return self.gain * (x @ params["v"].to(x.dtype))[:, None] * params["u"].to(y.dtype)

    def merge(self, params, weight, bias, start=0):
        u = params["u"][start : start + len(weight)].to(weight.dtype)
        return weight + self.gain * torch.outer(u, params["v"].to(weight.dtype)), bias

    def describe(self):
        return f"gain={self.gain:g}"

    @property
    def learning_rate_scale(self):
        return 3.0
'''


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The package with one file more."""
    place = tmp_path_factory.mktemp("with_toy")
    shutil.copytree(ROOT / "src" / "inlay", place / "inlay", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "inlay" / "methods" / "toy.py").write_text(TOY)
    return os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def test_every_law_holds_for_it(environment):
    laws = [f"tests/laws/{name}.py" for name in ("test_methods", "test_quantized", "test_mixed_methods")]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", *laws]
    chosen = "toy or (every_method_is_its_rows and llama)"
    done = subprocess.run([*command, "-k", chosen], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert all(f"{path}::" in done.stdout for path in laws)


def test_the_commands_know_it(environment, tmp_path):
    bases.directory(tmp_path / "base")
    bases.jsonl(tmp_path / "rows.jsonl", bases.rows(30))

    def inlay(*arguments):
        command = [sys.executable, "-m", "inlay", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)

    said = inlay(
        "train", "base", "rows.jsonl", "--output", "mine", "--method", "toy", "--gain", 0.7, "--max-steps", 2, "--json"
    )
    assert json.loads(said.stdout.splitlines()[-1])["trainable_parameters"] == 3 * (4 * 40 + 3 * 48)
    assert "toy gain=0.7" in said.stderr
    assert "mine: toy gain=0.7" in inlay("inspect", "mine").stdout
    assert inlay("generate", "base", "--adapter", "mine", "--prompt", "say 3", "--max-new-tokens", 3).returncode == 0
    inlay("merge", "base", "mine", "--output", "whole")
    assert (tmp_path / "whole" / "model.safetensors").exists()
    assert "gain" in inlay("train", "--method", "toy", "--help").stdout
