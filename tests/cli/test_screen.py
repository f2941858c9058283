"""What a person sees of a run, in a terminal, in a log and from Python; what is written where `~` says."""

import contextlib
import dataclasses
import itertools
import os
import pty
import re
import select
import sys
import time
import types

import pytest

import inlay
from inlay import methods, quant, screen, tasks
from inlay.cli import commands
from inlay.export import merge
from inlay.formats.peft import TENSORS
from inlay.report.watch import watch
from inlay.runs.progress import Progress
from inlay.tasks import causal_lm
from inlay.training import loop
from inlay.training.settings import Settings, plan
from inlay.training.state import MIN_ROWS_TO_CHOOSE
from tests.support import bases, forks, models
from tests.support.command import run


@pytest.fixture
def place(tmp_path):
    bases.directory(tmp_path / "base")
    bases.jsonl(tmp_path / "rows.jsonl", bases.rows(60))
    return tmp_path


def train(place, *extra):
    how = ["--max-steps", 3, "--batch-size", 4, "--r", 2, "--eval-fraction", 0.4]
    return ["train", place / "base", place / "rows.jsonl", *how, *extra]


def in_terminal(*arguments):
    """What a terminal of 160 columns shows of a command: all that was written to it, and the status."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    process = forks.Process(forks.INLAY, *arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown, until = b"", time.monotonic() + 240
    while time.monotonic() < until:
        if not select.select([ours], [], [], 1)[0]:
            continue
        try:
            part = os.read(ours, 4096)
        except OSError:  # what Linux says at the end
            break
        if not part:
            break
        shown += part
    process.wait(10)
    os.close(ours)
    return process.returncode, shown.decode()


def test_a_terminal_shows_what_is_done_and_keeps_the_evaluations(place):
    status, shown = in_terminal(*train(place, "--output", place / "new"))
    assert status == 0, shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    for doing in ("loading", "evaluating the base: 0/", "evaluating: 0/", "0:00 left", "the first step"):
        assert doing in plain, doing
    lines = [line.strip() for part in plain.split("\n") for line in part.split("\r")]
    for step in (1, 2, 3):
        assert any(re.match(rf"step +{step}/3  loss .* held-out [0-9.]+  .*left$", line) for line in lines), step
    assert any("at the start" in line and re.match(r"step +1/3 ", line) for line in lines)


def test_a_log_has_a_line_for_every_evaluation_and_no_bar(place, capsys):
    status, _, err = run(capsys, *train(place, "--output", place / "new"))
    assert status == 0
    assert "\x1b" not in err
    assert len(re.findall(r"^step      [123]/3  loss .* left$", err, re.MULTILINE)) == 4


def test_a_run_without_held_out_rows_says_where_it_stands(place, capsys):
    _, _, err = run(capsys, *train(place, "--eval-fraction", 0, "--max-steps", 12, "--output", place / "new"))
    assert re.findall(r"^step      (\d+)/12  loss", err, re.MULTILINE) == ["2", "4", "6", "8", "10", "12"]


def test_the_time_left_counts_steps_and_evaluations():
    progress = Progress(10, num_evaluations=5)
    assert progress.seconds_left is None
    progress.step, progress.step_seconds = 4, 8.0
    progress.eval_losses, progress.eval_seconds = [(0, 1.0), (4, 1.0)], 60.0
    assert progress.seconds_left == 6 * 2.0 + 3 * 30.0
    said = []
    watch(lambda done, total, text, now: said.append((done, total, text)), "token")(progress)
    assert said[0][:2] == (4, 10)
    assert "1:42 left" in said[0][2]


@pytest.mark.parametrize("every", [None, 1, 5, 7])
def test_the_last_two_evaluations_are_not_next_to_each_other(every):
    for steps in range(1, 130):
        chosen = plan(Settings(max_steps=steps, eval_every=every), 1000, models.CONFIGS["llama"], inlay.Lora())
        due = [step for step in range(1, steps + 1) if chosen.evaluates_at(step)]
        assert due[-1] == steps
        gaps = [after - before for before, after in itertools.pairwise(due)]
        assert all(2 * gap > chosen.eval_every for gap in gaps), (steps, due)
        assert all(gap < 2 * chosen.eval_every for gap in gaps), (steps, due)


@pytest.mark.parametrize(("count", "kept"), [(MIN_ROWS_TO_CHOOSE, 1), (MIN_ROWS_TO_CHOOSE - 1, 3)])
def test_the_best_is_chosen_of_enough_rows_alone(place, capsys, monkeypatch, count, kept):
    losses = iter([4.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(loop, "evaluate", lambda *given, **how: next(losses))
    bases.jsonl(place / "held.jsonl", bases.rows(count, seed=100))
    _, _, err = run(capsys, *train(place, "--output", place / "new", "--eval-data", place / "held.jsonl"))
    assert ("(best at step 1)" in err) == (kept == 1)
    said = {1: "the best adapter is kept", 3: "the last adapter is kept, as so few can't tell which is best"}
    assert said[kept] in err


@pytest.fixture
def notebook(monkeypatch):
    """As in a notebook: what its cells show, each output as the list of its pictures."""
    outputs = []

    class Output:
        def __init__(self, data):
            self.pictures = [data]
            outputs.append(self.pictures)

        def update(self, data, raw):
            assert raw
            self.pictures.append(data)

    shown = types.ModuleType("IPython.display")
    shown.display = lambda data, raw, display_id: Output(data) if raw and display_id else pytest.fail("not replaced")
    package = types.ModuleType("IPython")
    package.get_ipython = object
    for name, module in {"ipykernel": sys, "IPython": package, "IPython.display": shown}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return outputs


def test_a_program_that_imports_a_part_of_jupyter_is_no_notebook(notebook, monkeypatch):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    with screen.bar("step") as update:
        update(1, 4)
    assert not notebook
    assert not screen.is_notebook()


def test_a_notebook_has_a_bar_that_goes_at_the_end(notebook, monkeypatch):
    now = iter([1.0, 1.0, 1.1, 1.2, 1.2, 9.0])
    monkeypatch.setattr(screen, "time", types.SimpleNamespace(monotonic=lambda: next(now)))
    with screen.bar("step") as update:
        update(1, 4, "loss <b>")
        update(2, 4, "too soon")
        update(3, 4, "an\x1b[2Jother", now=True)
    ((empty, first, third, end),) = notebook
    assert first["text/plain"] == "step  1/4  loss <b>"
    assert 'max="4" value="1"' in first["text/html"]
    assert "loss &lt;b&gt;" in first["text/html"]
    assert 'value="3"' in third["text/html"]
    assert "\x1b" not in third["text/html"]
    assert empty == end == {"text/html": "", "text/plain": ""}


def test_a_bar_of_a_notebook_goes_where_the_work_fails_and_is_not_there_unless_shown(notebook):
    with screen.bar("step", shown=False) as update:
        update(1, 4)
    assert notebook == []
    with contextlib.suppress(KeyError), screen.bar("step") as update:
        update(1, None, "reading")
        raise KeyError
    assert "value=" not in notebook[0][1]["text/html"]
    assert notebook[0][-1]["text/plain"] == ""


def test_python_shows_progress_where_somebody_watches(place, capsys, monkeypatch, request):
    base, steps = inlay.load(place / "base"), []
    how = dict(
        max_steps=3, batch_size=4, eval_fraction=0.4, on_step=lambda p: steps.append((p.step, len(p.eval_losses)))
    )
    inlay.train(base, place / "rows.jsonl", output=place / "silent", **how)
    assert capsys.readouterr().err == ""
    assert steps == [(1, 2), (2, 3), (3, 4)]
    inlay.train(base, place / "rows.jsonl", output=place / "asked", progress=True, **how)
    assert capsys.readouterr().err.count("step ") == 4
    outputs = request.getfixturevalue("notebook")
    inlay.train(base, place / "rows.jsonl", output=place / "watched", **how)
    assert capsys.readouterr().err.count("step ") == 4
    assert any("3/3" in picture["text/plain"] for picture in outputs[0])
    inlay.train(base, place / "rows.jsonl", output=place / "off", progress=False, **how)
    assert capsys.readouterr().err == ""
    assert len(outputs) == 1


def test_tokens_are_shown_without_an_output_and_no_other_rows_are_made(place, capsys, monkeypatch):
    made = []
    whole = causal_lm.SPEC

    def prepare(rows, *given, **named):
        made.extend(rows)
        return whole.prepare(rows, *given, **named)

    monkeypatch.setattr(causal_lm, "SPEC", dataclasses.replace(whole, prepare=prepare))
    status, out, _ = run(capsys, *train(place, "--show-tokens", 2))
    assert status == 0
    assert len(re.findall(r"^row [01] \(\d+ tokens, \d+ trained on\)$", out, re.MULTILINE)) == 2
    assert len(made) == 2
    status, again, _ = run(capsys, *train(place, "--show-tokens", 2, "--output", place / "new"))
    assert again == out
    assert not (place / "new").exists()


def test_without_tokens_to_show_an_output_is_required(place, capsys):
    for extra in ([], ["--show-tokens", 0]):
        status, _, err = run(capsys, *train(place, *extra))
        assert status == 2
        assert "output" in err


@pytest.mark.parametrize("command", commands())
def test_help_says_what_a_flag_takes(capsys, command):
    status, out, err = run(capsys, command, "--help")
    assert status == 0
    for wrong in ("None}", "{None", "default: None", "(default: )", "default: '')"):
        assert wrong not in out + err, wrong


@pytest.mark.parametrize("command", ["train", "eval", "predict"])
def test_help_names_the_tasks(capsys, command):
    out = " ".join(run(capsys, command, "--help")[1].split()).replace(", ", ",").replace("{ ", "{")
    assert "{" + ",".join(tasks.names()) + "}" in out


def test_help_names_the_choices(capsys):
    out = " ".join(run(capsys, "train", "--help")[1].replace("│", " ").split()).replace(", ", ",")
    for choices in (methods.names(), tasks.names(), quant.names()):
        assert any("{" + ",".join(order) + "}" in out for order in (choices, choices[::-1])), choices


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("how", ["flag", "configuration", "python"])
def test_a_tilde_is_the_home_directory(place, home, capsys, how):
    if how == "python":
        base = inlay.load(place / "base")
        inlay.train(base, place / "rows.jsonl", output="~/mine", max_steps=1)
        merge.merge(base, "mine", "~/merged")
    else:
        (home / "run.yaml").write_text("output: ~/mine\nmax_steps: 1\n" if how == "configuration" else "max_steps: 1\n")
        flags = ["--output=~/mine"] if how == "flag" else []
        rest = ["--config=~/run.yaml", "--batch-size", 4, *flags]
        status, _, err = run(capsys, "train", place / "base", place / "rows.jsonl", *rest)
        assert status == 0, err
        assert run(capsys, "merge", place / "base", "~/mine", "--output=~/merged")[0] == 0
    assert (home / "mine" / TENSORS).exists()
    assert (home / "merged" / "config.json").exists()
    assert os.listdir(".") == []


def test_a_bar_within_a_bar_is_a_line_of_it(monkeypatch):
    monkeypatch.setattr(screen, "is_terminal", lambda: True)
    monkeypatch.setattr(screen.Console, "is_terminal", property(lambda self: True))
    with screen.bar("outer") as outer:
        outer(1, 2)
        with screen.bar("inner") as inner:
            inner(1, 3)
            assert [task.description.strip() for task in screen._live[0].tasks] == ["outer", "inner"]
        assert [task.description.strip() for task in screen._live[0].tasks] == ["outer"]
    assert screen._live == []
