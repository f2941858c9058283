"""A base, data and an adapter, to be broken."""

import shutil

import pytest

from tests.support import bases


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """A base, another base of the same shape, data, and an adapter trained on the base; nobody writes there."""
    home = tmp_path_factory.mktemp("home")
    bases.directory(home / "base", max_shard_size="20KB")
    bases.directory(home / "other", seed=4)
    bases.jsonl(home / "rows.jsonl", bases.rows(40))
    from inlay.cli import main

    train = ["train", home / "base", home / "rows.jsonl", "--output", home / "good", "--max-steps", "3", "--r", "2"]
    assert main(list(map(str, train))) == 0
    return home


@pytest.fixture
def place(home, tmp_path):
    """A copy of the home that a test may break."""
    shutil.copytree(home, tmp_path / "home")
    return tmp_path / "home"
