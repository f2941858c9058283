"""Names on the hub, without a network: models and adapters out of its local cache, data sets through `datasets`."""

import datasets
import huggingface_hub.constants
import pytest

import inlay
from inlay.data.forms import read_rows
from inlay.errors import UnknownNameError
from inlay.io import peft
from tests.support import bases

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache that a test can put repositories into, as `snapshot_download` leaves them."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def snapshot(name):
        repository = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        folder = repository / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        return folder

    return snapshot


def test_a_base_and_an_adapter_come_by_name_out_of_the_local_cache(hub):
    bases.directory(hub("someone/tiny"))
    base = inlay.load("someone/tiny")
    assert base.checkpoint.name == "someone/tiny"
    made = base.attach(inlay.Lora(r=2), "made")
    base.save("made", hub("someone/support"), {})
    found = base.attach("someone/support")
    assert found.name == "support"
    assert found.num_weights == made.num_weights
    assert peft.read("someone/support").base_name == "someone/tiny"


def test_a_name_that_is_nowhere_is_refused_without_a_network(hub):
    with pytest.raises(UnknownNameError, match="someone/nothing is not a directory here"):
        inlay.load("someone/nothing")
    with pytest.raises(UnknownNameError, match="there is no such adapter"):
        peft.read("someone/nothing")


@pytest.mark.parametrize(("name", "split"), [("someone/rows", "train"), ("someone/rows:test", "test")])
def test_a_data_set_of_the_hub_is_read_by_its_split(monkeypatch, name, split):
    asked = []

    def load_dataset(path, *, split):
        asked.append((path, split))
        return datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_rows(name)
    assert asked == [("someone/rows", split)]
    assert [(row.prompt, row.completion, row.source) for row in rows] == [
        ("a", "b", "someone/rows:1"),
        ("c", "d", "someone/rows:2"),
    ]


def test_a_data_set_that_the_hub_does_not_have_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UnknownNameError, match="as a data set on the hub"):
        read_rows("someone/nothing")
