"""Every test has a cache directory of its own, and no network; some check every annotation of the package."""

import gc
import os
import sys

import pytest

from tests.support import annotations as lazy

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
lazy.check_lazily()


def pytest_addoption(parser):
    parser.addoption("--annotations", action="store_true", help="check annotations in every test, at every call")


def pytest_collection_modifyitems(items):
    """Annotations are checked in the first case of each test."""
    for item in {getattr(item, "function", item): item for item in reversed(items)}.values():
        item.stash[_checks_annotations] = True


def pytest_collection_finish():
    """Of what is there before the first test nothing is ever garbage: it is not looked through again and again."""
    gc.collect()
    gc.freeze()


_checks_annotations = pytest.StashKey[bool]()


@pytest.fixture(autouse=True)
def annotations(request):
    if request.config.getoption("annotations"):
        lazy.begin(True, lazy.ALL)
    else:
        lazy.begin(request.node.stash.get(_checks_annotations, False))


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    os.environ["INLAY_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def runs(tmp_path_factory):
    os.environ["INLAY_RUNS"] = str(tmp_path_factory.mktemp("runs") / "runs.sqlite")


@pytest.fixture
def one_thread():
    """Sums are divided among threads: bits are compared on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def drawn():
    """Asked for where the picture of a run is looked at."""


@pytest.fixture
def looked_at():
    """Asked for where the samples of a run are looked at."""


@pytest.fixture(autouse=True)
def samples(request, monkeypatch):
    """Likewise of what is answered, and forgotten, at the end of a run."""
    if "inlay.report.recorded" in sys.modules and "looked_at" not in request.fixturenames:
        from inlay.report import recorded

        monkeypatch.setattr(recorded, "looked_at", lambda job, observer, step: None)


@pytest.fixture(autouse=True)
def pictures(request, monkeypatch):
    """The curve of a run's losses takes longer to draw than the run of a test: it is drawn in commands in processes of their
    own, and in tests that ask for `drawn`."""
    if "inlay.training.keep" in sys.modules and "drawn" not in request.fixturenames:
        from inlay.report import curve

        monkeypatch.setattr(curve, "draw", lambda *given: b"\x89PNG: left out by tests/conftest.py")
