"""One small server for the tests of a file: its base, its adapters, its address."""

import types

import openai
import pytest

from inlay.base.load import load
from inlay.http.server import Setup
from tests.support import servers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(the base, a folder of adapters on it), for tests that change neither."""
    directory, adapters = servers.made(tmp_path_factory.mktemp("tiny"))
    return types.SimpleNamespace(base=load(directory, dtype="float32"), directory=directory, adapters=adapters)


@pytest.fixture(scope="module")
def served(tiny):
    """A server with three adapters."""
    with servers.running(tiny.base, Setup(directories=(tiny.adapters,), cache_tokens=2048)) as (service, address):
        yield types.SimpleNamespace(service=service, address=address, **vars(tiny))


@pytest.fixture
def client(served):
    """OpenAI's own."""
    with openai.OpenAI(base_url=f"{served.address}/v1", api_key="none", max_retries=0) as made:
        yield made
