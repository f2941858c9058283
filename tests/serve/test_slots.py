"""Adapters that come and go: who is in memory, which version a request takes, what is refused."""

import contextlib
import hashlib
import json
import shutil
import threading
import time
from concurrent.futures import Future

import pytest
import torch
from safetensors.torch import load_file, save_file

from inlay.base.load import load
from inlay.errors import CapacityError, CompatibilityError, ConfigError, FormatError, InlayError, UnknownNameError
from inlay.hub import store
from inlay.serve.slots import Limits, Slots
from tests.support import bases, servers


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return servers.made(tmp_path_factory.mktemp("slots"))


@pytest.fixture
def place(made, tmp_path):
    """(the base, a folder of adapters that may be changed)."""
    shutil.copytree(made[1], tmp_path / "adapters")
    return load(made[0], dtype="float32"), tmp_path / "adapters"


def now(function):
    done = Future()
    try:
        done.set_result(function())
    except BaseException as error:
        done.set_exception(error)
    return done


def _slots(place, registered=servers.NAMES, **limits):
    slots = Slots(place[0], now, Limits(patience_seconds=0.05, **limits), [place[1]])
    for name in registered:
        slots.register(name, place[1] / name)
    return slots


@contextlib.contextmanager
def _using(slots, name):
    version = slots.acquire(name)
    try:
        yield version
    finally:
        slots.release(version)


def _loaded(slots):
    return {version.name for version in slots.loaded()}


def _bytes(place):
    slots = _slots(place)
    with _using(slots, "red") as version:
        slots.unregister("red")
        return version.num_bytes


def test_an_adapter_is_read_when_it_is_first_asked_for(place):
    slots = _slots(place)
    assert (_loaded(slots), slots.taken("red"), slots.digest("red")) == (set(), None, None)
    with _using(slots, "red") as version:
        assert _loaded(slots) == {"red"}
        assert version.adapter is place[0].adapters[version.adapter.name]
        assert place[0].active is None
        assert set(place[0].end_tokens) <= set(version.stop_ids)
    with _using(slots, "red") as again:
        assert again is version
    assert slots.num_bytes == version.num_bytes == sum(tensor.nbytes for tensor in version.adapter.tensors())


def test_two_servers_on_one_base_have_adapters_of_the_same_name(place):
    first, second = _slots(place), _slots(place)
    with _using(first, "red") as one, _using(second, "red") as other:
        assert one.adapter is not other.adapter
        assert [place[0].adapters[version.adapter.name] for version in (one, other)] == [one.adapter, other.adapter]


def test_the_digest_is_what_sha256sum_says(place):
    slots = _slots(place)
    names = ["adapter_config.json", "adapter_model.safetensors", "inlay.json"]
    digests = {name: hashlib.sha256((place[1] / "red" / name).read_bytes()).hexdigest() for name in names}
    listed = "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode()  # as sha256sum writes it
    with _using(slots, "red") as version, _using(slots, "green") as other:
        assert version.digest == slots.digest("red") == hashlib.sha256(listed).hexdigest() != other.digest


def test_that_which_was_asked_for_the_longest_ago_goes_first(place):
    size = _bytes(place)
    slots = _slots(place, budget_bytes=2 * size)
    for name in ("red", "green", "red", "blue"):
        with _using(slots, name):
            pass
    assert _loaded(slots) == {"red", "blue"}
    assert len(place[0].adapters) == 2
    with _using(slots, "green"):  # it is read again
        assert _loaded(slots) == {"green", "blue"}
    assert slots.num_bytes <= 2 * size


def test_what_is_taken_or_pinned_stays(place):
    size = _bytes(place)
    slots = _slots(place, registered=("green", "blue"), budget_bytes=2 * size)
    slots.register("red", place[1] / "red", pinned=True)
    with _using(slots, "red"):
        pass
    with _using(slots, "green"):
        with pytest.raises(CapacityError, match="no room for another adapter now"):
            slots.acquire("blue")
    with _using(slots, "blue"):
        assert _loaded(slots) == {"red", "blue"}


def test_an_adapter_waits_for_room_until_another_is_given_back(place):
    slots = Slots(place[0], now, Limits(budget_bytes=_bytes(place), patience_seconds=20))
    for name in ("red", "green"):
        slots.register(name, place[1] / name)
    red = slots.acquire("red")
    found = []
    thread = threading.Thread(target=lambda: found.append(slots.acquire("green")))
    thread.start()
    time.sleep(0.05)
    assert not found
    slots.release(red)
    thread.join(20)
    assert [version.name for version in found] == ["green"]
    assert _loaded(slots) == {"green"}


def test_a_request_goes_on_under_the_version_that_it_took(place):
    slots = _slots(place, registered=("red",))
    before = slots.acquire("red")
    slots.load("red", place[1] / "green", replace=True)
    with _using(slots, "red") as after:
        assert after.digest != before.digest
        assert before.adapter.bound  # still attached
        assert len(slots.loaded()) == 2
    slots.release(before)
    assert [version.digest for version in slots.loaded()] == [after.digest]
    assert list(place[0].adapters) == [after.adapter.name]
    taken = slots.acquire("red")
    slots.unregister("red")
    assert "red" not in slots
    with pytest.raises(UnknownNameError, match="no adapter of that name"):
        slots.taken("red")
    assert taken.adapter.bound
    slots.release(taken)
    assert (slots.loaded(), len(place[0].adapters)) == ([], 0)


def test_a_name_that_is_taken_stays_what_it_is(place):
    slots = _slots(place, registered=("red",))
    with pytest.raises(ConfigError, match="loaded already"):
        slots.load("red", place[1] / "green")
    _break(
        place[1] / "green", lambda tensors: tensors | {next(iter(tensors)): next(iter(tensors.values())) * torch.nan}
    )
    with _using(slots, "red") as version:
        with pytest.raises(FormatError):
            slots.load("red", place[1] / "green", replace=True)
    with _using(slots, "red") as again:
        assert again is version
    assert len(place[0].adapters) == 1


def _break(directory, change):
    path = directory / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_numbers_that_are_none_are_refused(place):
    _break(place[1] / "red", lambda tensors: {name: tensor * torch.nan for name, tensor in tensors.items()})
    slots = _slots(place)
    with pytest.raises(FormatError, match=r"NaN|not finite|not a number"):
        slots.acquire("red")
    assert (slots.loaded(), len(place[0].adapters)) == ([], 0)


def test_files_that_were_changed_or_are_gone_are_refused_and_others_answer(place):
    slots = _slots(place)
    _break(place[1] / "red", lambda tensors: {name: 2 * tensor for name, tensor in tensors.items()})
    with pytest.raises(FormatError, match="files of red were changed"):
        slots.acquire("red")
    shutil.rmtree(place[1] / "green")
    with pytest.raises(UnknownNameError, match="is gone"):
        slots.acquire("green")
    (place[1] / "blue" / "adapter_model.safetensors").unlink()
    with pytest.raises(InlayError):
        slots.acquire("blue")
    slots.load("red", place[1] / "red", replace=True)
    with _using(slots, "red"):
        assert _loaded(slots) == {"red"}


def test_a_file_that_changes_while_it_is_read_is_refused(place, monkeypatch):
    slots, read = _slots(place), place[0].adapters.read

    def changed(source, name, check):
        adapter = read(source, name, check)
        (source / "inlay.json").write_text((source / "inlay.json").read_text() + " ")
        return adapter

    monkeypatch.setattr(place[0].adapters, "read", changed)
    with pytest.raises(FormatError, match="while they were read"):
        slots.acquire("red")
    assert len(place[0].adapters) == 0


def test_an_adapter_for_another_base_is_refused_by_its_header(place, tmp_path):
    other = load(bases.directory(tmp_path / "other", seed=8), dtype="float32")
    servers.save(other, place[1] / "foreign", 1)
    slots = _slots(place)
    with pytest.raises(CompatibilityError, match="trained on another base"):
        slots.register("foreign", place[1] / "foreign")
    assert "foreign" not in slots


@pytest.mark.parametrize(("limits", "says"), [({"max_r": 3}, "r=4, at most 3"), ({"max_bytes": 1000}, "at most 1,000")])
def test_adapters_beyond_the_limits_are_refused(place, limits, says):
    servers.save(place[0], place[1] / "large", 1, r=4)
    slots = _slots(place, registered=(), **limits)
    with pytest.raises(ConfigError, match=says):
        slots.register("large", place[1] / "large")


def test_adapters_are_loaded_from_allowed_directories_alone(place, tmp_path):
    slots = _slots(place)
    outside = tmp_path / "outside"
    shutil.copytree(place[1] / "red", outside)
    (place[1] / "link").symlink_to(outside)
    assert slots.allowed(str(place[1] / "red")) == (place[1] / "red").resolve()
    assert slots.allowed(str(place[1] / "x" / ".." / "red")) == (place[1] / "red").resolve()
    for path in (outside, place[1] / "link", place[1] / ".." / "outside", "/", "adapters\0", place[1].parent):
        with pytest.raises(ConfigError, match="can't be loaded from there"):
            slots.allowed(str(path))


def test_a_name_in_the_store_is_loaded_where_the_store_is_allowed(place, tmp_path, monkeypatch):
    monkeypatch.setenv("INLAY_STORE", str(place[1] / "store"))
    held = store.Store(store.directory())
    digest, _ = held.add(place[1] / "red", "red@1")
    slots = _slots(place)
    for name in ("red@1", f"sha256:{digest}"):
        assert slots.allowed(name) == held.object(digest).resolve()
    with pytest.raises(UnknownNameError, match="no adapter of that name"):
        slots.allowed("red@2")
    monkeypatch.setenv("INLAY_STORE", str(tmp_path / "elsewhere"))
    for name in ("red@1", f"sha256:{digest}"):
        with pytest.raises(ConfigError, match="can't be loaded from there"):
            slots.allowed(name)
    link = tmp_path / "elsewhere" / "objects" / digest  # a store may be allowed, and what its object leads to not
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path)
    slots.directories += ((tmp_path / "elsewhere").resolve(),)
    with pytest.raises(ConfigError, match="can't be loaded from there"):
        slots.allowed(f"sha256:{digest}")


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b/c", "x" * 200, "tiny", "a:b", ".hidden", "a\n", "é"])
def test_strange_names_are_refused(place, name):
    with pytest.raises(ConfigError, match="can't be called so"):
        _slots(place).register(name, place[1] / "red")


def test_a_thousand_adapters_are_registered_by_their_headers_alone(place, monkeypatch):
    slots = _slots(place, registered=())
    monkeypatch.setattr(place[0].adapters, "read", lambda *given: pytest.fail("tensors were read"))
    begun = time.monotonic()
    for number in range(50):
        slots.register(f"red-{number}", place[1] / "red")
    assert (time.monotonic() - begun) / 50 < 0.5
    assert (len(slots), slots.loaded()) == (50, [])


def test_settings_that_contradict_the_record_are_read_anew(place):
    slots = _slots(place)
    config = json.loads((place[1] / "red" / "adapter_config.json").read_text())
    (place[1] / "red" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 8}))
    with pytest.raises(FormatError, match="were changed"):
        slots.acquire("red")
