"""Quantised bases from hostile hands and after unplanned ends: refused with a reason, or whole; never a wrong base."""

import errno
import json
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inlay
from inlay.base import cache as quantized_cache
from inlay.base import quantize
from inlay.base.load import load
from inlay.errors import CompatibilityError, ConfigError, FormatError, OutputError
from inlay.io import bitsandbytes, output, safetensors
from inlay.io.checkpoint import open_checkpoint
from tests.support import bases, forks, models, quantized
from tests.support.command import run, run_json
from tests.support.refusals import refused


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "base"
    quantized.model("llama").save_pretrained(path, max_shard_size="60KB")
    bases.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """The source quantised without any disturbance, in several shards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "SHARD_BYTES", 20_000)
        path = tmp_path_factory.mktemp("whole") / "q"
        quantize.quantize(open_checkpoint(source), path)
    assert len(list(path.glob("*.safetensors"))) > 3
    return path


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(quantize, "SHARD_BYTES", 20_000)


@pytest.fixture
def broken(whole, tmp_path):
    """A copy of the quantised base that a test may break."""
    for file in whole.iterdir():
        (tmp_path / "q").mkdir(exist_ok=True)
        (tmp_path / "q" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "q"


def image(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def answers(directory):
    return ["generate", directory, "--prompt", "say 3", "--max-new-tokens", 2]


def first(directory):
    return sorted(directory.glob("*.safetensors"))[0]


def forget_what_was_written(directory):
    """Whoever made the files kept no digest of them, so that what is wrong with them has to be seen."""
    record = json.loads((directory / "inlay.json").read_text())
    record["quantized"].pop("weights")
    (directory / "inlay.json").write_text(json.dumps(record))


def change_tensor(directory, end, change):
    """Change the first tensor whose name ends so; returns its name."""
    for file in sorted(directory.glob("*.safetensors")):
        tensors = load_file(file)
        name = next((name for name in tensors if name.endswith(end)), None)
        if name is not None:
            save_file({**tensors, name: change(tensors[name])}, file, {"format": "pt"})
            forget_what_was_written(directory)
            return name
    raise AssertionError(f"no tensor ends with {end}")


def test_the_plain_model_is_close_and_the_record_says_how_close(source, whole):
    made = bitsandbytes.record(whole)
    assert made["source"]["weights"] == load(source).fingerprint.weights == load(whole).fingerprint.quantized_from
    assert len(made["errors"]) == 3 * 7
    assert all(0.05 < error < 0.12 for error in made["errors"].values())
    base, ids = load(whole, dtype="float32"), models.tokens(2, 9)
    close = load(source, dtype="float32").logits(ids, None)
    assert torch.nn.functional.cosine_similarity(base.logits(ids, None).flatten(), close.flatten(), 0) > 0.9


@pytest.mark.parametrize("cut", [1, 100])
def test_a_truncated_file(broken, capsys, cut):
    file = first(broken)
    file.write_bytes(file.read_bytes()[:-cut])
    refused(capsys, *answers(broken), says=["not a whole safetensors file", "truncated"])


def test_a_tensor_of_another_size(broken, capsys):
    change_tensor(broken, ".absmax", lambda t: t[:-1].clone())
    refused(capsys, *answers(broken), says=["not a weight in NF4", "weight.absmax", "expected"])


def test_another_code(broken, capsys):
    change_tensor(broken, ".quant_map", lambda t: t.flip(0).contiguous())
    refused(capsys, *answers(broken), says=["quant_map is not the codebook of NF4"])


def test_a_state_that_is_no_json(broken, capsys):
    change_tensor(broken, "bitsandbytes__nf4", lambda t: t[:-30].clone())
    refused(capsys, *answers(broken), says=["state of a quantised weight is not a JSON object"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", [64, 96]),
        ("shape", "x"),
        ("blocksize", 48),
        ("dtype", "int8"),
        ("nested_offset", "x"),
        ("nested_offset", 10**400),
    ],
)
def test_a_state_that_is_not_its_weight_s(broken, capsys, key, value):
    def change(tensor):
        text = json.dumps(json.loads(bytes(tensor.tolist())) | {key: value})
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    change_tensor(broken, "q_proj.weight.quant_state.bitsandbytes__nf4", change)
    refused(capsys, *answers(broken), says=["not a weight in NF4 that this version reads", "hint: "])


def test_a_weight_of_another_model(broken, capsys):
    config = json.loads((broken / "config.json").read_text()) | {"num_hidden_layers": 2}
    (broken / "config.json").write_text(json.dumps(config))
    refused(capsys, *answers(broken), says=["more layers than its configuration", "num_hidden_layers"])


def test_a_newer_version(broken, capsys):
    made = json.loads((broken / "inlay.json").read_text())
    made["quantized"]["version"] = bitsandbytes.VERSION + 1
    (broken / "inlay.json").write_text(json.dumps(made))
    refused(
        capsys,
        *answers(broken),
        says=["quantised by a newer Inlay", f"version {bitsandbytes.VERSION + 1}", "pip install"],
    )


def test_fp4_is_refused_by_name(broken, capsys):
    for file in broken.glob("*.safetensors"):
        tensors = {name.replace("__nf4", "__fp4"): tensor for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    index = (broken / "model.safetensors.index.json").read_text()
    (broken / "model.safetensors.index.json").write_text(index.replace("__nf4", "__fp4"))
    refused(capsys, *answers(broken), says=["weights in this code can't be read", "fp4"])


def test_rows_that_no_block_divides(tmp_path, capsys):
    home = tmp_path / "home"
    bases.directory(home / "base")  # 20 and 28 inputs
    says = [
        "can't take all layers",
        "q_proj: in_features 20 is not a multiple of the block, 64",
        "and 11 more",
        "--keep q_proj",
    ]
    refused(capsys, "quantize", home / "base", "--output", home / "q", says=says)


def test_layers_that_are_kept(tmp_path, source, capsys):
    made = run_json(
        capsys, "quantize", source, "--output", tmp_path / "q", "--keep", "down_proj,layers.0.self_attn.q_proj"
    )
    assert made["layers"] == 3 * 7 - 4
    base = load(tmp_path / "q", dtype="float32")
    kept = base.linears["model.layers.0.self_attn.q_proj"].weight(torch.bfloat16)
    assert torch.equal(
        kept, load(source, dtype="stored").linears["model.layers.0.self_attn.q_proj"].weight(torch.bfloat16)
    )
    refused(
        capsys,
        "quantize",
        source,
        "--output",
        tmp_path / "r",
        "--keep",
        "nosuch",
        says=["no linear layer of that name", "nosuch"],
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite(tmp_path, capsys, value):
    model = quantized.model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = value
    model.save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    status, _, err = run(capsys, "quantize", tmp_path / "base", "--output", tmp_path / "q")
    assert status == 1
    assert ("weight of this base is not a number" if value != value else "not finite can't be quantised") in err
    assert "layers.1.mlp.up_proj" in err
    assert not (tmp_path / "q").exists()


def test_a_base_that_is_quantised_already(whole, tmp_path, capsys):
    refused(capsys, "quantize", whole, "--output", tmp_path / "q", says=["quantised already", "config.json"])


def test_an_output_that_exists(source, whole, capsys):
    before = image(whole)
    refused(capsys, "quantize", source, "--output", whole, says=["exists already"])
    assert image(whole) == before


def test_an_unknown_scheme(source, tmp_path, capsys):
    says = ["--scheme takes no such value", "'nf5'", "--scheme nf4"]
    refused(capsys, "quantize", source, "--output", tmp_path / "q", "--scheme", "nf5", says=says, status=2)


class Ticks:
    """Counts the moments at which something is written, and ends the work at one of them."""

    def __init__(self, patch, stop=None, error=KeyboardInterrupt):
        self.count, self.stop, self.error = 0, stop, error
        for owner, name in (
            (safetensors.Writer, "put"),
            (safetensors.Writer, "put_bytes"),
            (safetensors.Writer, "close"),
            (output, "write_file"),
            (Path, "rename"),
        ):
            patch.setattr(owner, name, self.wrapped(getattr(owner, name)))

    def wrapped(self, function):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.stop:
                raise self.error
            return function(*args, **kwargs)

        return call


def interrupted(source, target, stop, error=KeyboardInterrupt):
    """Quantise and be ended at moment `stop`; whether it was."""
    with pytest.MonkeyPatch.context() as patch:
        ticks = Ticks(patch, stop, error)
        try:
            quantize.quantize(open_checkpoint(source), target)
        except (KeyboardInterrupt, OutputError):
            return True
    return ticks.count >= stop


def test_after_an_end_at_any_moment_the_next_run_makes_the_same_bytes(source, whole, tmp_path, small_shards):
    moment, made = 1, 0
    while interrupted(source, tmp_path / str(moment), moment):
        assert not (tmp_path / str(moment)).exists()
        quantize.quantize(open_checkpoint(source), tmp_path / str(moment))
        assert image(tmp_path / str(moment)) == image(whole)
        made += 1
        moment += 11
    assert made > 10
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_finished_shards_are_not_made_again(source, tmp_path, small_shards, monkeypatch):
    assert interrupted(source, tmp_path / "q", 120)
    finished = list((tmp_path / ".q.quantizing").glob("*.safetensors"))
    times = {file.name: file.stat().st_mtime_ns for file in finished}
    assert len(times) >= 2
    quantize.quantize(open_checkpoint(source), tmp_path / "q")
    assert {name: (tmp_path / "q" / name).stat().st_mtime_ns for name in times} == times


def test_the_unfinished_work_of_another_base_is_not_gone_on_with(source, whole, tmp_path, small_shards):
    quantized.model("llama", seed=9).save_pretrained(tmp_path / "other", max_shard_size="60KB")
    bases.tokenizer().save_pretrained(tmp_path / "other")
    assert interrupted(tmp_path / "other", tmp_path / "q", 120)
    quantize.quantize(open_checkpoint(source), tmp_path / "q")
    assert image(tmp_path / "q") == image(whole)


def test_a_full_disk(source, whole, tmp_path, small_shards):
    with pytest.MonkeyPatch.context() as patch:
        Ticks(patch, 60, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OutputError, match="the disk is full"):
            quantize.quantize(open_checkpoint(source), tmp_path / "q")
    assert not (tmp_path / "q").exists()
    quantize.quantize(open_checkpoint(source), tmp_path / "q")
    assert image(tmp_path / "q") == image(whole)


def test_too_little_space_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(output.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match="MB are needed"):
        quantize.quantize(open_checkpoint(source), tmp_path / "q")


def test_a_base_that_changes_while_it_is_read(source, tmp_path, small_shards):
    copy = tmp_path / "base"
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())

    def touch(done, total):
        file = sorted(copy.glob("*.safetensors"))[-1]
        file.write_bytes(file.read_bytes())

    with pytest.raises(FormatError, match="changed while it was quantised"):
        quantize.quantize(open_checkpoint(copy), tmp_path / "q", progress=touch)
    assert not (tmp_path / "q").exists()


def test_two_processes_at_once(source, tmp_path):
    (tmp_path / ".q.quantizing").mkdir()
    with output.locked(tmp_path / ".q.quantizing"):
        with pytest.raises(OutputError, match="another process is writing this"):
            quantize.quantize(open_checkpoint(source), tmp_path / "q")
    quantize.quantize(open_checkpoint(source), tmp_path / "q")


SLOW = """
import sys, time
from pathlib import Path
from inlay.io.checkpoint import open_checkpoint
from inlay.base import quantize
quantize.SHARD_BYTES = 20_000
def progress(done, total):
    print(done, flush=True)
    time.sleep(0.02)
quantize.quantize(open_checkpoint(sys.argv[1]), Path(sys.argv[2]), progress=progress)
"""


@pytest.mark.parametrize("lines", [1, 9, 20])
def test_a_kill(source, whole, tmp_path, small_shards, lines):
    process = forks.Process(SLOW, source, tmp_path / "q", stdout=subprocess.PIPE)
    for _ in range(lines):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "q").exists()
    quantize.quantize(open_checkpoint(source), tmp_path / "q")
    assert image(tmp_path / "q") == image(whole)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INLAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "quantized"


def entries(cache):
    return sorted(path for path in cache.iterdir() if not path.name.startswith("."))


def test_the_cache_finds_what_it_made(source, cache):
    made = load(source, quantize="nf4")
    (entry,) = entries(cache)
    before = image(entry)
    again = load(source, quantize="nf4")
    assert image(entry) == before
    assert again.fingerprint == made.fingerprint
    assert again.checkpoint.name == source.name
    assert again.scheme == "nf4"


def test_a_damaged_entry_is_made_anew(source, cache):
    load(source, quantize="nf4")
    (entry,) = entries(cache)
    before = image(entry)
    first(entry).write_bytes(first(entry).read_bytes()[:-1])
    load(source, quantize="nf4")
    assert image(entry) == before


def test_another_tokenizer_is_another_entry(source, cache, tmp_path):
    load(source, quantize="nf4")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in source.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    bases.tokenizer(template="{{ messages[0].content }}").save_pretrained(copy)
    assert load(copy, quantize="nf4").tokenizer.chat_template
    assert len(entries(cache)) == 2


def test_what_was_used_longest_ago_makes_room(source, cache, tmp_path, monkeypatch):
    sources = []
    for seed in (5, 6, 7):
        quantized.model("llama", seed=seed).save_pretrained(tmp_path / f"s{seed}")
        bases.tokenizer().save_pretrained(tmp_path / f"s{seed}")
        sources.append(open_checkpoint(tmp_path / f"s{seed}"))
    made = [quantized_cache.cached(one, "nf4", lambda done, total: None) for one in sources[:2]]
    while quantized_cache._in_use:  # as when the processes that used them have ended
        quantized_cache._in_use.popitem()[1].close()
    size = sum(file.stat().st_size for file in made[0].iterdir())
    monkeypatch.setenv("INLAY_CACHE_GB", str(2.5 * size / 1e9))
    quantized_cache.cached(sources[0], "nf4", lambda done, total: None)  # used again: the second is the older now
    third = quantized_cache.cached(sources[2], "nf4", lambda done, total: None)
    assert entries(cache) == sorted([made[0], third])
    monkeypatch.setenv("INLAY_CACHE_GB", "0")  # the others are in use by this process, and stay
    quantized_cache.cached(sources[2], "nf4", lambda done, total: None)
    assert entries(cache) == sorted([made[0], third])


@pytest.mark.parametrize("text", ["x", "-1", "nan", "inf"])
def test_a_size_of_the_cache_that_is_none(source, cache, monkeypatch, text):
    monkeypatch.setenv("INLAY_CACHE_GB", text)
    with pytest.raises(ConfigError, match="no number of gigabytes"):
        load(source, quantize="nf4")


def test_an_adapter_of_the_same_weights_in_another_precision_is_used_with_a_warning(source, whole, tmp_path):
    base = load(whole)
    for held, others in ((base, [load(source)]), (load(source), [base])):
        models.randomize(held.create(quantize_method(), "a"), seed=1)
        (tmp_path / held.checkpoint.name).mkdir()
        held.save("a", tmp_path / held.checkpoint.name, {})
        held.detach("a")
        held.attach(tmp_path / held.checkpoint.name)
        for other in others:
            with pytest.warns(
                UserWarning, match="the same weights in another precision .*: answers will differ a little"
            ):
                other.attach(tmp_path / held.checkpoint.name, name="b")
            other.detach("b")


def test_an_adapter_that_began_with_what_was_lost_is_refused_beside_the_plain_weights(source, capsys, tmp_path):
    base, rows = load(source), [{"prompt": "say", "completion": "it"}] * 8
    how = dict(max_steps=1, eval_fraction=0, check="off", progress=False)
    method = inlay.Lora(r=2, initializer="loftq")
    inlay.train(load(source, quantize="nf4"), rows, method=method, output=tmp_path / "made", **how)
    longer = dict(from_adapter=tmp_path / "made", output=tmp_path / "longer")
    inlay.train(load(source, quantize="nf4"), rows, **longer, **how)
    run(capsys, "combine", tmp_path / "made", "--output", tmp_path / "alone")
    for name in ("longer", "alone"):
        load(source, quantize="nf4").attach(tmp_path / name)
        with pytest.raises(CompatibilityError, match="fits that quantised base alone"):
            base.attach(tmp_path / name)
    _, _, said = run(capsys, "export", source, tmp_path / "longer", "--for", "vllm", "--output", tmp_path / "theirs")
    assert "beside the plain weights it is wrong" in said
    with pytest.raises(CompatibilityError, match="lost as it was quantised, and fits that quantised base alone"):
        base.attach(tmp_path / "made")
    with pytest.warns(UserWarning, match="in another precision .*: answers will be wrong"):
        base.attach(tmp_path / "made", force=True)


def quantize_method():
    from inlay.methods.lora import Lora

    return Lora(r=2)
