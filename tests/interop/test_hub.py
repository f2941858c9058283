"""Names on the hub, without a network: models and adapters out of its local cache, data sets through `datasets`."""

import datasets
import huggingface_hub.constants
import pytest

import inlay
from inlay import formats
from inlay.data.forms import read, read_rows
from inlay.errors import UnknownNameError
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
    assert formats.read("someone/support").model.name == "someone/tiny"


def test_a_name_that_is_nowhere_is_refused_without_a_network(hub):
    with pytest.raises(UnknownNameError, match="someone/nothing is not a directory here"):
        inlay.load("someone/nothing")
    with pytest.raises(UnknownNameError, match="there is no such adapter"):
        formats.read("someone/nothing")


SPLITS = {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}


@pytest.mark.parametrize(
    ("name", "train", "held_out"),
    [
        (
            "someone/rows",
            {"a": "someone/rows:train:1", "b": "someone/rows:train:2"},
            {"c": "someone/rows:validation:1"},
        ),
        ("someone/rows:test", {"d": "someone/rows:test:1"}, {}),
    ],
)
def test_a_data_set_of_the_hub_is_read_by_its_splits(monkeypatch, name, train, held_out):
    made = {
        split: datasets.Dataset.from_list([{"prompt": prompt, "completion": "x"} for prompt in prompts])
        for split, prompts in SPLITS.items()
    }

    def load_dataset(path, *, split):
        assert path == "someone/rows"
        return made[split] if split else datasets.DatasetDict(made)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read(name)
    assert {row.prompt: row.source for row in found.rows} == train
    assert {row.prompt: row.source for row in found.held_out} == held_out


def test_a_data_set_that_the_hub_does_not_have_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(UnknownNameError, match="as a data set on the hub"):
        read_rows("someone/nothing")
