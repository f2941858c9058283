"""The commands as users run them, on a small base; and on a real one where it is at hand."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import inlay
from inlay import extras
from inlay.cli import commands, demo
from inlay.formats.peft import CONFIG, TENSORS
from inlay.kernels import native
from inlay.tasks import _packed as loss
from tests.support import bases, models
from tests.support.command import run, run_json
from tests.support.paths import E2E, STORIES, needs_shared

KEYS = {
    "steps", "loss", "seconds", "tokens", "supervised_tokens", "tokens_per_second", "trainable_parameters",
    "peak_rss_bytes", "adapter_bytes", "base_fingerprint",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    bases.directory(home / "base")
    bases.jsonl(home / "rows.jsonl", bases.rows(60))
    return home


def train_arguments(home, out, *extra):
    return ["train", home / "base", home / "rows.jsonl", "--output", out, "--r", 4, "--max-steps", 12, *extra]


@pytest.fixture(scope="module")
def adapter(home):
    from inlay.cli import main

    assert main(list(map(str, train_arguments(home, home / "mine")))) == 0
    return home / "mine"


@pytest.mark.parametrize("command", commands())
def test_every_command_documents_itself(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert "--json" in out
    status, out, _ = run(capsys, "--help")
    assert f"  {command} " in out


def test_an_adapter_is_exported_for_engines_and_formats_that_can_be_written(capsys):
    engines = "adapterhub,inlay,llama.cpp,mlx,ollama,peft,sglang,transformers,vllm"
    assert f"--for {{{engines}}}\n" in run(capsys, "export", "--help")[1]


def test_training_learns_and_says_so(home, tmp_path, capsys, drawn):
    arguments = train_arguments(home, tmp_path / "a", "--max-steps", 60, "--learning-rate", 0.02)
    result = run_json(capsys, *arguments)
    assert set(result) >= KEYS
    assert result["steps"] == 60
    assert result["eval_loss"] < 0.7 * result["eval_loss_before"]
    assert result["tokens_per_second"] > 0
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files == {CONFIG, TENSORS, "README.md", "inlay.json", "curve.png", "curve.svg"}
    assert (tmp_path / "a" / "curve.png").read_bytes().startswith(b"\x89PNG\r\n")
    ends = [f">{result[name]:.3f}<" for name in ("eval_loss_before", "eval_loss")]
    assert all(end in (tmp_path / "a" / "curve.svg").read_text("utf-8") for end in ends)
    assert result["adapter_bytes"] == (tmp_path / "a" / TENSORS).stat().st_size


def test_the_screen_says_what_happens(home, tmp_path, capsys):
    status, out, err = run(capsys, *train_arguments(home, tmp_path / "a"))
    assert (status, out) == (0, "")
    for label in ("base ", "data ", "held out", "adapter ", "steps ", "held-out", "wrote ", "try it"):
        assert any(line.startswith(label) for line in err.splitlines()), label


def test_verbose_says_which_way_the_rows_take(home, tmp_path, capsys, monkeypatch):
    status, _, err = run(capsys, *train_arguments(home, tmp_path / "a", "-v"))
    assert status == 0
    kernels = next(line for line in err.splitlines() if line.startswith("kernels "))
    assert (
        "torch's own: it was not built" in kernels if native.why_not() else f"compiled, {native.variant()}" in kernels
    )
    assert any(line.startswith("path ") and "rows packed" in line for line in err.splitlines())
    monkeypatch.setattr(loss, "_problem", lambda base: "planted")
    status, _, err = run(capsys, *train_arguments(home, tmp_path / "b", "--verbose"))
    assert status == 0
    assert "rows padded, all through the whole model: planted" in err


def test_the_same_seed_writes_the_same_bytes(home, tmp_path, capsys):
    torch.set_num_threads(1)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_json(capsys, *train_arguments(home, tmp_path / name, "--seed", seed))
    losses = [json.loads((tmp_path / name / "inlay.json").read_text())["training"]["losses"] for name in "abc"]
    assert losses[0] == losses[1] != losses[2]
    tensors = [load_file(tmp_path / name / TENSORS) for name in "ab"]
    assert [key for key, tensor in tensors[0].items() if not torch.equal(tensor, tensors[1][key])] == []
    one, two, other = ((tmp_path / name / TENSORS).read_bytes() for name in "abc")
    assert one == two != other


def test_a_configuration_file_fills_the_same_flags_and_flags_win(home, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("max-steps: 5\nr: 3\ntarget_modules: [q_proj, v_proj]\nbatch_size: 2\n")
    extra = ["--config", tmp_path / "run.yaml", "--json"]
    status, out, err = run(
        capsys, "train", home / "base", home / "rows.jsonl", "--output", tmp_path / "a", "--r", 2, *extra
    )
    assert status == 0, err
    config = json.loads((tmp_path / "a" / CONFIG).read_text())
    assert (config["r"], config["target_modules"]) == (2, ["q_proj", "v_proj"])
    assert json.loads(out.splitlines()[-1])["steps"] == 5


def test_patterns_and_layers_from_the_command_line(home, tmp_path, capsys):
    extra = ["--layers-to-transform", "0-1", "--rank-pattern", "q_proj", 2, "--exclude-modules", "mlp.*|.*down_proj"]
    run_json(capsys, *train_arguments(home, tmp_path / "a", *extra))
    tensors = load_file(tmp_path / "a" / TENSORS)
    assert {key.split(".")[4] for key in tensors} == {"0", "1"}
    assert not any("down_proj" in key for key in tensors)
    assert {t.shape[0] for key, t in tensors.items() if "q_proj.lora_A" in key} == {2}
    assert {t.shape[0] for key, t in tensors.items() if "v_proj.lora_A" in key} == {4}


def test_show_tokens_marks_the_trained_ones_and_trains_nothing(home, tmp_path, capsys):
    status, out, _ = run(capsys, *train_arguments(home, tmp_path / "a", "--show-tokens", 2))
    assert status == 0
    assert out.splitlines()[1].strip() == "<s>say 0⏎[[it is 0</s>]]"
    assert out.count("[[") == 2
    assert not (tmp_path / "a").exists()


def test_rows_that_do_not_fit_are_counted(home, tmp_path, capsys):
    long = [{"prompt": "a" * 70, "completion": "b"}] * 3
    bases.jsonl(tmp_path / "rows.jsonl", bases.rows(40) + long)
    base = ["train", home / "base", tmp_path / "rows.jsonl", "--max-steps", 2, "--r", 2, "--eval-fraction", 0]
    for how, said in (("drop", "3 rows longer than 64 left out"), ("window", "3 rows longer than 64 cut into windows")):
        status, _, err = run(capsys, *base, "--output", tmp_path / how, "--too-long", how)
        assert status == 0
        assert said in err


def test_eval_measures_base_and_adapter(home, adapter, capsys):
    result = run_json(
        capsys, "eval", home / "base", home / "rows.jsonl", "--adapter", adapter, "--scores", "bleu", "--rows", 6
    )
    assert result["adapter"]["loss"] < result["base"]["loss"]
    assert 0 <= result["adapter"]["bleu"] <= 100
    assert result["adapter"]["prompts"] == 6


def test_generate_answers_with_each_adapter_in_one_batch(home, adapter, capsys):
    arguments = [
        "generate",
        home / "base",
        "--adapter",
        "none",
        "--adapter",
        adapter,
        "--prompt",
        "say 3",
        "--prompt",
        "say 4",
    ]
    result = run_json(capsys, *arguments, "--max-new-tokens", 4)
    assert [(a["prompt"], a["adapter"]) for a in result["answers"]] == [
        ("say 3", None), ("say 3", "mine"), ("say 4", None), ("say 4", "mine")
    ]  # fmt: skip
    alone = run_json(
        capsys, "generate", home / "base", "--adapter", adapter, "--prompt", "say 4", "--max-new-tokens", 4
    )
    assert alone["answers"][0]["answer"] == result["answers"][3]["answer"]


def test_generate_reads_prompts_from_a_file_and_from_stdin(home, tmp_path, capsys, monkeypatch):
    import io

    (tmp_path / "prompts").write_text("say 3\n\nsay 4\n")
    arguments = ["generate", home / "base", "--max-new-tokens", 4, "--prompt", "say 2", "--prompts"]
    result = run_json(capsys, *arguments, tmp_path / "prompts")
    assert [a["prompt"] for a in result["answers"]] == ["say 2", "say 3", "say 4"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"say 3\nsay 4")))
    assert run_json(capsys, *arguments, "-")["answers"] == result["answers"]
    (tmp_path / "prompts").write_bytes(b"\xff")
    for name, said in (("prompts", "not UTF-8"), ("nothing", "No such file")):
        status, _, err = run(capsys, *arguments, tmp_path / name)
        assert status == 1
        assert said in err


def test_many_prompts_are_answered_in_batches_as_one_by_one(home, capsys, monkeypatch):
    from inlay.cli import generate

    prompts = [part for i in range(5) for part in ("--prompt", f"say {i}")]
    arguments = ["generate", home / "base", "--max-new-tokens", 4, *prompts]
    result = run_json(capsys, *arguments)
    monkeypatch.setattr(generate, "BATCH", 2)
    assert run_json(capsys, *arguments)["answers"] == result["answers"]


def test_the_system_message_is_in_front_of_every_prompt(home, capsys, monkeypatch):
    from inlay.base.base import Base

    asked = []
    monkeypatch.setattr(
        Base, "generate", lambda self, prompts, *a, system, **k: [asked.append((system, p)) or "x" for p in prompts]
    )
    run_json(capsys, "generate", home / "base", "--prompt", "say 3", "--prompt", "say 4", "--system", "be brief")
    assert asked == [("be brief", f"say {i}") for i in (3, 4)]


def test_what_would_be_left_out_of_no_draw_is_refused(home, capsys):
    for command in (["generate", home / "base", "--prompt", "say 3"], ["chat", home / "base", "--greedy"]):
        status, _, err = run(capsys, *command, "--top-p", "0.5")
        assert status == 2
        assert "nothing is drawn" in err


def test_chat_draws_as_the_checkpoint_recommends(home, tmp_path, capsys, monkeypatch):
    import io
    import shutil

    from inlay.base.base import Base

    shutil.copytree(home / "base", tmp_path / "base")
    drawn = []
    monkeypatch.setattr(Base, "generate", lambda self, *a, **how: [drawn.append(how) or "x"])
    plain = {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0}
    cases = [
        ({}, [], plain, "recommends nothing"),
        ({"top_p": "high", "temperature": -1}, [], plain, "recommends nothing"),
        (
            {"do_sample": True, "temperature": 0.6, "top_k": 20},
            [],
            plain | {"temperature": 0.6, "top_p": 1.0, "top_k": 20},
            "base's",
        ),
        ({"do_sample": True}, [], plain | {"temperature": 1.0, "top_p": 1.0}, "base's generation_config.json)"),
        ({"repetition_penalty": 1.3}, [], plain | {"repetition_penalty": 1.3}, "the temperature Inlay's default"),
        (
            {"temperature": 0.6},
            ["--greedy"],
            plain | {"temperature": 0.0, "top_p": 1.0},
            "the likeliest token (as asked)",
        ),
        ({"temperature": 0.6}, ["--top-p", "0.5"], plain | {"temperature": 0.6, "top_p": 0.5}, "(as asked)"),
    ]
    for settings, flags, expected, said in cases:
        (tmp_path / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": 2, **settings}))
        monkeypatch.setattr("sys.stdin", io.StringIO("say 3\n"))
        status, _, err = run(capsys, "chat", tmp_path / "base", *flags)
        assert status == 0, err
        assert {name: drawn[-1][name] for name in plain} == expected
        assert said in next(line for line in err.splitlines() if line.startswith("answers "))


def test_chat_switches_adapters(home, adapter, capsys, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("say 3\n/adapter none\nsay 3\n/adapter nobody\n/new\n/what\n"))
    status, _, err = run(capsys, "chat", home / "base", "--adapter", adapter, "--max-new-tokens", 3)
    assert status == 0
    assert "active: mine" in err
    assert "no adapter of that name is attached" in err
    assert "there is no /what" in err


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "qwen2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_writes_a_checkpoint_that_answers_like_base_and_adapter(tmp_path, capsys, family, dtype):
    from transformers import AutoModelForCausalLM

    from tests.support import models

    built = models.model(family, dtype)
    built.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    base = inlay.load(tmp_path / "base", dtype="float32")
    adapter = models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "a"), seed=3)
    (tmp_path / "a").mkdir()
    base.save("a", tmp_path / "a", {})
    result = run_json(
        capsys, "merge", tmp_path / "base", tmp_path / "a", "--output", tmp_path / "m", "--dtype", "float32"
    )
    assert result["same_next_token"] > (0.99 if dtype == torch.float32 else 0.8)
    assert {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()} == before
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert sum(p.numel() for p in merged.parameters()) == base.num_weights
    ids = models.tokens(2, 9)
    if dtype == torch.float32:
        with torch.no_grad():
            assert (merged(input_ids=ids).logits - base.logits(ids, "a")).abs().max() < 1e-3
    else:  # exactly the float32 sum, rounded once
        for path, params in adapter.params.items():
            linear = base.linears[path]
            wide = linear.weight(torch.float32) + (params["lora_B"] @ params["lora_A"]) * (5 / 3)
            new = merged.get_submodule(path).weight
            assert torch.allclose(new.T if linear.transposed else new, wide.to(dtype).float(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("targets", ["lm_head,q_proj", "embed_tokens,q_proj", "lm_head,embed_tokens"])
def test_a_head_that_is_tied_is_written_apart_where_only_one_of_the_two_has_changed(targets, tmp_path, capsys):
    """PEFT writes a model whose configuration still ties them, so that it reloads as another: peft#2777."""
    base = inlay.load(bases.directory(tmp_path / "base", "llama_tied"), dtype="float32")
    models.randomize(base.attach(inlay.Lora(r=3, target_modules=targets), "a"), seed=3)
    (tmp_path / "a").mkdir()
    base.save("a", tmp_path / "a", {})
    status, _, err = run(capsys, "merge", tmp_path / "base", tmp_path / "a", "--output", tmp_path / "m")
    assert status == 0, err
    ids = models.tokens(2, 9)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert not merged.config.tie_word_embeddings
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, base.logits(ids, "a"), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2"])
def test_rows_of_single_tokens_are_merged_and_a_tied_head_stays_tied(family, tmp_path, capsys):
    base = inlay.load(bases.directory(tmp_path / "base", family), dtype="float32")
    method = inlay.Lora(r=3, trainable_token_indices=(9, 3), target_modules="c_attn" if family == "gpt2" else "q_proj")
    models.randomize(base.attach(method, "a"), seed=3)
    (tmp_path / "a").mkdir()
    base.save("a", tmp_path / "a", {})
    status, _, err = run(capsys, "merge", tmp_path / "base", tmp_path / "a", "--output", tmp_path / "m")
    assert status == 0, err
    ids, rows = torch.tensor([[3, 5, 9, 3, 7]]), base.adapters["a"].params[base.layout.table]["token_rows"]
    merged, before = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("m", "base"))
    assert merged.config.tie_word_embeddings == before.config.tie_word_embeddings
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, base.logits(ids, "a"), atol=1e-4)
    new, old = merged.get_input_embeddings().weight, before.get_input_embeddings().weight
    assert torch.allclose(new[[9, 3]], rows, atol=1e-6)
    assert (new != old).any(1).nonzero().flatten().tolist() == [3, 9]


def test_a_change_too_small_for_the_dtype_is_not_merged_in_silence(tmp_path, capsys):
    from tests.support import models

    built = models.model("llama", torch.bfloat16)
    built.save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    base = inlay.load(tmp_path / "base", dtype="float32")
    models.randomize(base.attach(inlay.Lora(r=3, lora_alpha=5), "a"), seed=3, std=0.004)
    (tmp_path / "a").mkdir()
    base.save("a", tmp_path / "a", {})
    with pytest.warns(UserWarning, match="leaves 31 % of what a changes"):
        status, _, err = run(
            capsys, "merge", tmp_path / "base", tmp_path / "a", "--output", tmp_path / "m", "--dtype", "float32"
        )
    assert status == 1
    assert "does not do what base and adapter do" in err
    assert not (tmp_path / "m").exists()


def test_inspect_says_what_an_adapter_is(home, adapter, capsys):
    status, out, _ = run(capsys, "inspect", adapter)
    assert status == 0
    assert "lora r=4 lora_alpha=32 (scaling 8) on down gate up k o q v, layers 0-2" in out
    assert "rows.jsonl" in out
    assert "12 steps" in out
    result = run_json(capsys, "inspect", adapter)
    assert result["config"]["r"] == 4
    assert result["base_fingerprint"] == inlay.load(home / "base").fingerprint.weights


def test_stored_is_the_dtype_of_the_files(tmp_path):
    for family, dtype in (("llama", torch.float32), ("gpt2", torch.bfloat16), ("qwen3", torch.float16)):
        models.model(family, dtype).save_pretrained(tmp_path / family)
        bases.tokenizer().save_pretrained(tmp_path / family)
        base = inlay.load(tmp_path / family, dtype="stored")
        assert base.dtype == dtype
        assert base.is_mapped


def test_the_demo_runs_and_learns_both_tasks_without_the_extras(tmp_path, capsys, monkeypatch):
    for name in set(extras.EXTRAS) - {"matplotlib"}:  # which is a warning: tests/attacks/test_extras.py
        for loaded in [module for module in sys.modules if module.partition(".")[0] == name]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(demo, "NUM_ROWS", 400)  # more than its steps take
    monkeypatch.setattr(demo, "NUM_HELD_OUT", 30)
    result = run_json(capsys, "demo", "--output", tmp_path / "demo", "--steps", 16)
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= {"tell", "ask", "merged"}
    for task in ("tell", "ask"):
        assert result["exact"][task]["before"] == 0
        assert result["exact"][task]["after"] > 0.9
    assert result["largest_difference"] < 1e-2


@needs_shared
@pytest.mark.slow
def test_the_main_job_on_real_data(tmp_path, capsys):
    """No flag about learning rate or rank: under 0.88 nats per supervised token within 300 steps of 16 rows."""
    arguments = ["train", STORIES, E2E / "train-1.jsonl", "--eval-data", E2E / "valid.jsonl", "--max-steps", 300]
    result = run_json(capsys, *arguments, "--output", tmp_path / "e2e")
    assert result["eval_loss"] < 0.88
