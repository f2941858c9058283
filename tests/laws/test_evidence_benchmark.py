"""The benchmark of evidence: each run is made once, and a table has means with their interval."""

import json

import pytest
from benchmarks import evidence

CLAIMS = ("rates", "family", "schemes", "ranks", "alphas", "layers")


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_runs_of_a_claim_are_told_from_each_other_and_come_back_from_their_keys(claim):
    found = [pair for seed in range(3) for pair in evidence.runs(claim, seed, {})]
    assert {run.task for _, run in found} == {*evidence.TASKS}
    assert claim == "family" or {run.seed for _, run in found} == {0, 1, 2}
    assert all(evidence.Run(**json.loads(run.key)).key == run.key for _, run in found)
    assert claim == "family" or len({run.key for name, run in found if run.method}) == len(
        [pair for pair in found if pair[1].method]
    )


@pytest.mark.parametrize(("best", "tried"), [(1.0, 3), (2.0, 4), (8.0, 5), (0.3, 5), (0.01, 5)])
def test_a_rate_is_searched_past_an_edge_and_other_seeds_take_the_best(best, tried):
    done = {}

    def told(run):
        return {"valid": abs(run.factor / evidence.METHODS[run.method] - best)}

    while new := {run.key: told(run) for _, run in evidence.runs("family", 0, done) if run.key not in done}:
        done |= new
    assert len(done) == tried * len(evidence.METHODS) * len(evidence.TASKS)
    nearest = min(evidence.FACTORS, key=lambda factor: abs(factor - best))
    for seed in (0, 2):
        found = dict.fromkeys((run.method, run.factor, run.seed) for _, run in evidence.runs("family", seed, done))
        assert list(found) == [(method, nearest * start, seed) for method, start in evidence.METHODS.items()]


def test_the_interval_is_that_of_students_t():
    assert evidence.interval([1.0, 2.0, 3.0]) == "2.0000 ± 2.4826"  # 4.30 / sqrt(3), of a deviation of 1
    assert evidence.interval([1.5]) == "1.5000"
    assert evidence.interval([]) == ""


def test_what_is_done_is_not_made_again(tmp_path, monkeypatch, capsys):
    made, results = [], tmp_path / "results.jsonl"

    def run(command, **how):
        made.append(command[-1])
        key = json.loads(command[-1])
        line = json.dumps({"key": command[-1], **key, "test": 1.0 + key["seed"], "other": 2.0, "seconds": 1.0})
        return evidence.subprocess.CompletedProcess(command, 0 if len(made) != 2 else 1, line, "it failed")

    monkeypatch.setattr(evidence.subprocess, "run", run)
    for _ in range(2):
        evidence.main("model", "data", "schemes", "ranks", "--seeds", "2", "--at-once", "2", "--results", str(results))
    assert len(made) == len({*made}) + 1, "what failed is tried again"
    shared = 4 * 2  # the run that takes what Inlay takes by itself is one of both claims
    assert len({*made}) == 4 * (3 + 4 * 2 + 7 * 2) - shared
    evidence.show("schemes", "test", str(results))
    table = capsys.readouterr().out.splitlines()[-9:]
    assert table[0] == "| schemes | e2e | medquad | gsm8k | stories | above the best |"
    names = [line.split("|")[1].strip() for line in table[2:]]
    assert names == ["before", "bfloat16", "nf4, before", "nf4", "nf4, loftq", "int8, before", "int8"]
    assert "| 1.5000 ± 6.3550 | 50.0% |" in table[-1], "beside the base, whose loss is 1"
    evidence.show("schemes", "other", str(results))
    assert "| 2.0000 ± 0.0000 |" in capsys.readouterr().out.splitlines()[-1]


def test_a_table_holds_the_seeds_that_all_of_its_rows_are_done_with(tmp_path):
    lines = [
        {"key": run.key, "test": 1.0 + run.seed}
        for seed in range(3)
        for name, run in evidence.runs("layers", seed, {})
        if (name, seed) != ("mlp", 2) and name != "attention"
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    table = evidence.losses("layers", results=tmp_path / "results.jsonl")
    assert table["all"] == table["mlp"] == [[1.0, 2.0]] * 4
    assert table["attention"] == table["before"] == [[]] * 4
