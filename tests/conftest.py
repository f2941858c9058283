"""Every test has a cache directory of its own, and no network."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory):
    os.environ["INLAY_CACHE"] = str(tmp_path_factory.mktemp("cache"))
