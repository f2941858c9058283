"""Other programs hear of a run through their own libraries: fakes of these have their signatures to the letter."""

import inspect
import sys
import types

import pytest

import inlay
from inlay.runs import record, trackers
from tests.support import bases, runs

# as tensorboard 2.21 by torch 2.13, trackio 0.43, wandb 0.31 and mlflow 3.17 have them; each was run with the real library


class SummaryWriter:
    def __init__(self, log_dir=None, comment="", purge_step=None, max_queue=10, flush_secs=120, filename_suffix=""):
        said("init", log_dir)

    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, new_style=False, double_precision=False):
        said("log", global_step, {tag: scalar_value})

    def add_text(self, tag, text_string, global_step=None, walltime=None):
        said("config", tag, text_string)

    def close(self):
        said("end")


class WandbRun:
    summary = types.SimpleNamespace(update=lambda values: said("scores", values))

    def log(self, data, step=None, commit=None):
        said("log", step, data)

    def finish(self, exit_code=None, quiet=None):
        said("end", exit_code)


def wandb_init(entity=None, project=None, dir=None, id=None, name=None, notes=None, tags=None, config=None):
    said("config", config)
    return WandbRun()


def trackio_init(project, name=None, group=None, space_id=None, space_storage=None, dataset_id=None, config=None):
    said("config", config)


def trackio_log(metrics, step=None):
    said("log", step, metrics)


def log_params(params, synchronous=None, run_id=None):
    said("config", params)


def log_metrics(metrics, step=None, synchronous=None, run_id=None, timestamp=None, model_id=None, dataset=None):
    said("log", step, metrics)


def start_run(run_id=None, experiment_id=None, run_name=None, nested=False, parent_run_id=None, tags=None):
    said("init", run_name)


FAKES = {
    "tensorboard": {"SummaryWriter": SummaryWriter},
    "wandb": {"init": wandb_init},
    "trackio": {"init": trackio_init, "log": trackio_log, "finish": lambda: said("end")},
    "mlflow": {
        "set_experiment": lambda experiment_name=None: said("experiment", experiment_name),
        "start_run": start_run,
        "log_params": log_params,
        "log_metrics": log_metrics,
        "end_run": lambda status="FINISHED": said("end", status),
    },
}

heard = []


def said(*what):
    heard.append(what)


@pytest.fixture(params=trackers.TRACKERS)
def name(request, monkeypatch):
    heard.clear()
    library = types.SimpleNamespace(**FAKES[request.param])
    monkeypatch.setitem(sys.modules, trackers.TRACKERS[request.param].module, library)
    return request.param


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return inlay.load(bases.directory(tmp_path_factory.mktemp("base") / "tiny"), dtype="float32")


def trained(base, target, **how):
    try:
        return inlay.train(
            base, bases.rows(60), output=target, max_steps=3, batch_size=3, eval_fraction=0.5, progress=False, **how
        )
    finally:
        if target.name in base.adapters:
            base.detach(target.name)


def test_every_tracker_hears_of_every_step_and_of_the_end(name, base, tmp_path):
    report = trained(base, tmp_path / "mine", log=name)
    logged = {}
    for _, step, values in [what for what in heard if what[0] == "log" and what[1] is not None]:
        logged.setdefault(step, {}).update(values)
    assert sorted(logged) == [0, 1, 2, 3]
    assert logged[3]["train/loss"] == report.loss
    assert logged[3]["eval/loss"] == report.eval_loss
    assert heard[-1][0] == "end"
    assert any("learning_rate" in str(what) for what in heard if what[0] == "config")
    assert str(report.eval_loss) in str(heard)


def test_a_tracker_that_fails_costs_one_warning(base, tmp_path, monkeypatch):
    heard.clear()

    def fail(metrics, step=None):
        raise RuntimeError("the network is gone")

    library = types.SimpleNamespace(**FAKES["trackio"] | {"log": fail})
    monkeypatch.setitem(sys.modules, "trackio", library)
    with pytest.warns(UserWarning, match="trackio was not told of") as warned:
        assert trained(base, tmp_path / "mine", log="trackio").steps == 3
    assert len(warned) == 2, "one of the steps, one of the end"


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_library_that_is_missing_is_named_before_the_run(name, base, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, trackers.TRACKERS[name].module, None)
    with pytest.raises(inlay.MissingExtraError) as caught:
        trained(base, tmp_path / "mine", log=name)
    assert caught.value.hint == f"pip install {trackers.TRACKERS[name].package}"
    assert [*tmp_path.iterdir()] == []


def test_what_a_run_failed_with_is_told(name, tmp_path):
    tracker = trackers.find(name)
    run = runs.run(outcome=record.FAILED)
    tracker.begin(run, tmp_path / "mine")
    tracker.end(run)
    assert {"wandb": 1, "mlflow": "FAILED"}.get(name) == (heard[-1][1] if len(heard[-1]) > 1 else None)


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_fakes_have_the_signatures_of_what_is_installed(name):
    library = pytest.importorskip(trackers.TRACKERS[name].module)
    for key, fake in FAKES[name].items():
        own = inspect.signature(fake).parameters
        assert own.keys() <= inspect.signature(getattr(library, key)).parameters.keys(), key
