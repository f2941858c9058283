"""The benchmark of a GPU: it says how every part ended, keeps to its time, and names modules that exist."""

import importlib.util
import json

import pytest
from benchmarks import gpu
from benchmarks.gpu import Part

SLEEP = Part("sleeps", "timeit", ("-n", "1", "-r", "1", "-s", "import time", "time.sleep(60)"), 2, 3)


@pytest.fixture
def found(tmp_path, monkeypatch):
    says = Part("says", "this", (), 20, 2)
    fails = Part("fails", "json.tool", (str(tmp_path / "absent.json"),), 20, 1)
    monkeypatch.setattr(gpu, "PARTS", (says, SLEEP, fails))
    monkeypatch.setattr(gpu, "SECONDS", 60)
    gpu.main(str(tmp_path / "out"))
    return json.loads((tmp_path / "out/gpu.json").read_text()), (tmp_path / "out/gpu.md").read_text()


def test_every_part_says_how_it_ended(found):
    parts, table = {part["name"]: part for part in found[0]["parts"]}, found[1]
    assert parts["says"]["end"] == "done"
    assert parts["says"]["shown"][-1].startswith("Namespaces are one honking great idea")
    assert parts["sleeps"]["end"] == "stopped after 2 s"
    assert parts["fails"]["end"].startswith("failed with ")
    assert all(f"| {name} | {part['end']} |" in table for name, part in parts.items())
    assert found[0]["versions"]["torch"] in table


def test_what_there_is_no_time_for_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "PARTS", (SLEEP, Part("late", "this", (), 20, 2)))
    monkeypatch.setattr(gpu, "SECONDS", 6)
    gpu.main(str(tmp_path))
    ends = {part["name"]: part["end"] for part in json.loads((tmp_path / "gpu.json").read_text())["parts"]}
    assert ends == {"sleeps": "stopped after 2 s", "late": "left out: no time"}


def test_its_parts_are_there():
    assert all(importlib.util.find_spec(part.module) for part in gpu.PARTS)
