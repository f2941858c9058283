"""Input that would make a result silently wrong: other weights than those that are checked, numbers that are none, layers that
pass an adapter by."""

import dataclasses
import functools
import json
import shutil
import signal
import sys
import time
from io import StringIO

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import inlay
from inlay.data.rows import Row
from inlay.data.split import spread
from inlay.errors import CompatibilityError, ConfigError, DataError, DivergedError, FormatError, TargetError
from inlay.formats.peft import TENSORS
from inlay.io import fingerprint
from inlay.tasks.causal_lm import prepare
from inlay.training import loop
from inlay.training.divergence import diverged
from inlay.training.settings import Settings
from tests.support import bases, models
from tests.support.command import run


@pytest.fixture
def base_directory(tmp_path):
    return bases.directory(tmp_path / "base")


def _configured(directory, **values):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_models_own_code_is_never_run_whatever_stands_on_the_input(base_directory, tmp_path, monkeypatch):
    _configured(
        base_directory,
        model_type="evil",
        architectures=["M"],
        auto_map={"AutoConfig": "conf.C", "AutoModelForCausalLM": "conf.M"},
    )
    (base_directory / "conf.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr(sys, "stdin", StringIO("y\ny\ny\n"))
    with pytest.raises(CompatibilityError, match="evil"):
        inlay.load(base_directory)
    assert not (tmp_path / "ran").exists()


def test_other_weights_than_those_that_are_checked_are_not_loaded(base_directory):
    shutil.copy(base_directory / "model.safetensors", base_directory / "hidden.safetensors")
    _configured(base_directory, transformers_weights="hidden.safetensors")
    with pytest.raises(FormatError, match="transformers_weights"):
        inlay.load(base_directory)


def test_an_adapter_inside_a_base_is_not_loaded_with_it(base_directory):
    (base_directory / "adapter_config.json").write_text("{}")
    with pytest.raises(FormatError, match=r"adapter_config\.json"):
        inlay.load(base_directory)


def test_where_there_are_shards_too_the_single_file_is_loaded_and_fingerprinted(base_directory, tmp_path):
    alone = inlay.load(base_directory)
    other = bases.directory(tmp_path / "other", seed=9, max_shard_size="20KB")
    for file in other.glob("model*"):
        shutil.copy(file, base_directory / file.name)
    both = inlay.load(base_directory)
    assert both.fingerprint == alone.fingerprint
    assert all(
        torch.equal(one, two) for one, two in zip(both.model.parameters(), alone.model.parameters(), strict=True)
    )


def _adapter(directory, base, std, dtype=torch.float32):
    models.randomize(base.attach(inlay.Lora(r=2), directory.name), seed=1, std=std)
    directory.mkdir()
    base.save(directory.name, directory, {})
    return directory


def test_a_merge_that_leaves_the_range_of_the_files_dtype_is_refused(tmp_path):
    models.model("llama", torch.float16).save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    base = inlay.load(tmp_path / "base", dtype="float32")
    _adapter(tmp_path / "big", base, std=400)
    with pytest.raises(CompatibilityError, match="a merged weight is not finite"):
        inlay.merge(base, "big", output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def broken(directory, name, value, at=3):
    """A base with one other number in a weight."""
    bases.directory(directory)
    tensors = load_file(directory / "model.safetensors")
    tensors[name].view(-1)[at] = value
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_a_base_with_nan_takes_no_adapter_and_makes_none(tmp_path, capsys, name):
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(30))
    base = inlay.load(bases.directory(tmp_path / "base"))
    _adapter(tmp_path / "small", base, std=0.1)
    directory = broken(tmp_path / "broken", name, torch.nan)
    merge = ["merge", directory, tmp_path / "small", "--output", tmp_path / "new"]
    generate = ["generate", directory, "--adapter", tmp_path / "small", "--prompt", "say 3"]
    train = ["train", directory, rows, "--output", tmp_path / "new", "--r", 2]
    for arguments in (merge, generate, train, ["eval", directory, rows]):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (1, "")
        assert f"a weight of this base is not a number\n  found: {directory / 'model.safetensors'}: {name}: NaN" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"]
)
def test_a_base_with_nan_does_not_answer_alone(tmp_path, name, dtype):
    """Attention takes a score that is NaN for one that is masked: the answer would be made of numbers."""
    base = inlay.load(broken(tmp_path / "broken", name, torch.nan), dtype=dtype)
    for _ in range(2):
        with pytest.raises(FormatError, match=rf"not a number\n  found: .*: {name}: NaN"):
            base.generate(["say 3"])


def test_a_token_whose_embedding_is_nan_is_named_where_it_is_used(tmp_path):
    base = inlay.load(bases.directory(tmp_path / "whole", "llama"))
    token = base.tokenizer("z", add_special_tokens=False)["input_ids"][0]
    name = "model.embed_tokens.weight"
    width = base.model.config.hidden_size
    base = inlay.load(broken(tmp_path / "broken", name, torch.nan, at=token * width))
    assert base.generate(["say 3"], max_new_tokens=1)
    with pytest.raises(FormatError, match=rf"not a number\n  found: .*: {name}: NaN"):
        base.generate(["say z"])


def test_a_base_that_is_not_finite_is_not_measured_merged_answered_or_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fingerprint, "_CHECKED", ())  # as if it came about in the computation
    directory = broken(tmp_path / "broken", "model.norm.weight", torch.nan)
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(30))
    base = inlay.load(directory)
    _adapter(tmp_path / "small", base, std=0.1)
    with pytest.raises(CompatibilityError, match="does not do what base and adapter do"):
        inlay.merge(base, "small", output=tmp_path / "merged")
    with pytest.raises(FormatError, match="not a number"):
        base.generate(["say 3"], None)
    for arguments in (["eval", directory, rows], ["train", directory, rows, "--output", tmp_path / "new", "--r", 2]):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (1, "")
        assert "the loss is not finite" in err
    assert not (tmp_path / "new").exists()


def test_an_adapter_that_the_last_step_has_broken_is_not_written(base_directory, tmp_path, monkeypatch):
    whole = loop.step_

    def step(base, state, *given):
        whole(base, state, *given)
        list(state.trained.values())[3].data[0, 0] = torch.inf

    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(10))  # too few to hold any out
    base = inlay.load(base_directory)
    with monkeypatch.context() as planted:
        planted.setattr(loop, "step_", step)
        with pytest.raises(DivergedError, match="the adapter's tensors are not finite"):
            inlay.train(base, rows, method=inlay.Lora(r=2), output=tmp_path / "new", max_steps=1)
    assert not (tmp_path / "new").exists()
    report = inlay.train(base, rows, method=inlay.Lora(r=2), output=tmp_path / "new", max_steps=1)  # the name is free
    assert not report.diverged


def test_a_run_that_diverges_after_a_good_evaluation_keeps_that_and_says_so(
    base_directory, tmp_path, capsys, monkeypatch
):
    whole = loop.step_

    def step(base, state, *given):
        if state.progress.step == 4:
            raise diverged(state, "planted")
        whole(base, state, *given)

    monkeypatch.setattr(loop, "step_", step)
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(60))
    arguments = [
        "train",
        base_directory,
        rows,
        "--output",
        tmp_path / "new",
        "--r",
        2,
        "--max-steps",
        9,
        "--eval-every",
        2,
    ]
    with pytest.warns(UserWarning, match="the training diverged: planted; step 5: rows.jsonl:"):
        status, _, err = run(capsys, *arguments)
    assert status == 1
    assert "diverged  after 4 of 9 steps; the adapter of step 4, before that, is kept" in err
    assert (tmp_path / "new" / TENSORS).exists()
    assert json.loads((tmp_path / "new" / "inlay.json").read_text())["training"]["best_step"] == 4


def lost(step, *sources, factor=torch.nan):
    """Plants NaN, or larger numbers, into the losses of these rows from a step on."""
    seen = []

    def loss_of(whole, base, examples):
        seen.append(examples)
        loss = whole(base, examples)
        bad = len(seen) > step and any(example.source.endswith(sources) for example in examples)
        return loss * factor if bad else loss

    return loss_of


def test_a_loss_that_is_lost_names_its_step_and_its_rows(base_directory, tmp_path):
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(10))
    base = inlay.load(base_directory)
    base.spec = dataclasses.replace(base.spec, loss_of=functools.partial(lost(0, ":3", ":7"), base.spec.loss_of))
    with pytest.raises(DivergedError) as caught:
        inlay.train(base, rows, output=tmp_path / "new", max_steps=9, batch_size=10, eval_fraction=0)
    assert caught.value.found[0].startswith("loss nan")
    assert sorted(caught.value.found[1].removeprefix("step 1: ").split(", ")) == ["rows.jsonl:3", "rows.jsonl:7"]
    assert not (tmp_path / "new").exists()


def test_what_was_learned_before_a_loss_was_lost_is_kept_without_held_out_rows(base_directory, tmp_path):
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(10))
    base = inlay.load(base_directory)
    how = dict(batch_size=10, eval_fraction=0, learning_rate=1e-2, method=inlay.Lora(r=2, lora_alpha=4))
    inlay.train(base, rows, output=tmp_path / "whole", max_steps=40, on_step=halting(24), **how)
    base.spec = dataclasses.replace(base.spec, loss_of=functools.partial(lost(25, ":3"), base.spec.loss_of))
    with pytest.warns(UserWarning, match=r"the training diverged: loss nan.* step 26: rows.jsonl:3$"):
        report = inlay.train(base, rows, output=tmp_path / "new", max_steps=40, **how)
    assert (report.diverged, report.best_step, report.steps) == (True, 25, 25)
    assert (tmp_path / "new" / TENSORS).read_bytes() == (tmp_path / "whole" / TENSORS).read_bytes()


def halting(step):
    def listen(progress):
        if progress.step == step:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.01)  # it is heard

    return listen


def test_a_loss_that_explodes_ends_the_run(base_directory, tmp_path):
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(40))
    base = inlay.load(base_directory)
    how = dict(batch_size=10, eval_fraction=0, max_steps=60, learning_rate=0.03, method=inlay.Lora(r=2, lora_alpha=4))
    for factor, steps in ((2.0, None), (5.0, 25)):
        loss_of = functools.partial(lost(20, "", factor=factor), base.spec.loss_of)
        planted, output = inlay.load(base_directory), tmp_path / str(factor)
        planted.spec = dataclasses.replace(base.spec, loss_of=loss_of)
        if steps is None:  # twice as much is no more than hard rows may be
            assert inlay.train(planted, rows, output=output, **how).steps == 60
            continue
        seen = []
        with pytest.raises(DivergedError, match=r"loss 4\.\d+ over the first 10 steps") as caught:
            inlay.train(planted, rows, output=output, on_step=lambda p, seen=seen: seen.append(p.step), **how)
        assert seen[-1] < steps
        assert "--learning-rate 0.01" in str(caught.value)
        assert not output.exists()


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.two = self.one
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.two(x))


@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 3, 8)), (Shared(), (2, 8)), (nn.Sequential(nn.Linear(8, 8)), (2, 8))],
    ids=["encoder layer", "one layer under two names", "sequence"],
)  # fmt: skip
def test_no_module_passes_its_adapter_by(module, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    module.eval()
    before, names = module(x).detach(), [path for path, _ in module.named_modules(remove_duplicate=False)]
    held = inlay.attach(module, inlay.Lora(r=2))
    models.randomize(held["default"], seed=2)
    with torch.no_grad():
        changed = module(x)
    assert (changed - before).abs().max() > 1e-3
    assert torch.allclose(changed, module(x), atol=1e-5)  # with gradients on, torch takes another way
    held.release()
    with torch.no_grad():
        assert torch.allclose(module(x), before, atol=1e-5)
    assert [path for path, _ in module.named_modules(remove_duplicate=False)] == names


def test_a_lone_linear_layer_is_refused():
    with pytest.raises(TargetError, match="Sequential"):
        inlay.attach(nn.Linear(8, 8), inlay.Lora(r=2))


def test_prompts_are_a_list_of_text(base_directory):
    base = inlay.load(base_directory)
    with pytest.raises(ConfigError, match=r"\['once'\]"):
        base.generate("once")
    assert base.generate([]) == []
    with pytest.raises(DataError, match="half a character"):
        base.generate(["a\udcffb"])


def test_held_out_rows_that_are_all_too_long_leave_a_run_without_them(base_directory, tmp_path):
    base = inlay.load(base_directory)
    held = [Row("text", "x:0", text="ab" * 60)]
    prepared = prepare(held, base.tokenizer, 30, "all", "drop", may_be_empty=True)
    assert (prepared.examples, prepared.num_dropped) == ([], 1)
    with pytest.raises(DataError, match="longer than max_length"):
        prepare(held, base.tokenizer, 30, "all", "drop")
    assert spread(prepared.examples, Settings().eval_rows) == []
