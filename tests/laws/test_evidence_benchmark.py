"""The benchmark of evidence: each run is made once, and a table has means with their interval."""

import json

import pytest
from benchmarks import evidence

CLAIMS = ("rates", "family", "schemes", "ranks", "layers")


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_runs_of_a_claim_are_told_from_each_other_and_come_back_from_their_keys(claim):
    found = list(evidence.runs(claim, 3))
    assert len({run.key for run in found}) == len(found)
    assert {run.task for run in found} == {*evidence.TASKS}
    assert {run.seed for run in found} == {0, 1, 2}
    assert all(evidence.Run(**json.loads(run.key)).key == run.key for run in found)


def test_the_interval_is_that_of_students_t():
    assert evidence.interval([1.0, 2.0, 3.0]) == "2.0000 ± 2.4826"  # 4.30 / sqrt(3), of a deviation of 1
    assert evidence.interval([1.5]) == "1.5000"
    assert evidence.interval([]) == ""


def test_what_is_done_is_not_made_again(tmp_path, monkeypatch, capsys):
    made, results = [], tmp_path / "results.jsonl"

    def run(command, **how):
        made.append(command[-1])
        key = json.loads(command[-1])
        line = json.dumps({"key": command[-1], **key, **dict.fromkeys(LOSSES, 1.0), "test": 1.0 + key["seed"]})
        return evidence.subprocess.CompletedProcess(command, 0 if len(made) != 2 else 1, line, "it failed")

    monkeypatch.setattr(evidence.subprocess, "run", run)
    for _ in range(2):
        evidence.main("model", "data", "schemes", "--seeds", "2", "--results", str(results))
    assert len(made) == len({*made}) + 1 == 3 * 4 * 2 + 1, "what failed is tried again"
    evidence.show("schemes", str(results))
    table = capsys.readouterr().out.splitlines()[-5:]
    assert table[0] == "| schemes | e2e | medquad | gsm8k | stories |"
    assert {line.split("|")[1].strip() for line in table[2:]} == {"bfloat16", "nf4", "int8"}
    assert "| 1.5000 ± 6.3550 |" in table[-1]


LOSSES = ("before", "other_before", "other", "seconds")
