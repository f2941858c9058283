"""What training, mixing and merging give is what it was: digests of a few small runs, kept in `unchanged.json` beside this.

Work on the package's structure has to leave every bit where it was. Each case of the table trains an adapter for twenty steps,
runs a batch whose rows take that adapter, another one and none, lets it answer, and merges it. Held to the file are

- `exact`, by what the processor computes: digests of the bits of losses, adapter, logits, answers, merged weights and record;
- `form`, everywhere: digests of names, dtypes and shapes of tensors, of configurations, of the settings in the record;
- `values`, everywhere: the losses; norm and projection of each tensor, so that a processor that the file does not know, whose
  products are summed in another order, is held to what `tests/support/tolerances.py` says that this moves.

A refusal's exit status and headline are in the file as they are.

A change that is meant to change bits writes the file anew, and says in its commit what changed and why:

    INLAY_WRITE_UNCHANGED=1 scripts/test -n 0 tests/laws/test_unchanged.py

Where the digests of this processor change, those of others are of the package before, and are taken out of the file. It has
those of a processor with AVX-512, and of what the same one does as one with AVX2, for which the command is run once more with

    ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file

import inlay
from inlay.errors import CompatibilityError
from inlay.kernels import native
from tests.support import bases, models, quantized, tasks
from tests.support.command import run
from tests.support.tolerances import OTHER_PROCESSOR

SWITCH = "INLAY_WRITE_UNCHANGED"
FILE = Path(__file__).with_name("unchanged.json")
LABELS = {
    "sequence-classification": ("no", "yes"),
    "token-classification": ("B-blue", "B-green", "B-red", "O"),
}


class Case(NamedTuple):
    """A run: what is trained, on which model, for what, and how it is stored and computed."""

    method: Any
    family: str
    task: str = "causal-lm"
    dtype: str = "float32"
    scheme: str | None = None
    settings: dict[str, Any] = {}
    stored: torch.dtype | None = None
    """Dtype of the files, where it is another than the one computed in."""


LORA = inlay.Lora(r=3, lora_alpha=5)

CASES = {
    "lora-split-steps": Case(
        inlay.Lora(r=3, lora_alpha=5, loraplus_lr_ratio=4.0),
        "qwen2",
        settings=dict(micro_batch_tokens=30, weight_decay=0.1, train_on="all", eval_fraction=0.3, seed=7),
    ),
    "lora-experts": Case(LORA, "qwen3_moe"),
    "dora-int8": Case(inlay.Dora(r=3, lora_alpha=5), "llama", dtype="bfloat16", scheme="int8"),
    "prefix": Case(inlay.Prefix(num_virtual_tokens=3), "gpt2", dtype="bfloat16"),
    "classes-llama-nf4": Case(LORA, "llama", "sequence-classification", scheme="nf4"),
    "tags-bert": Case(inlay.Ia3(), "bert", "token-classification", dtype="bfloat16"),
    "answers-t5": Case(LORA, "t5", "seq2seq"),
    "vectors-bert": Case(inlay.Loha(r=2, alpha=3), "bert", "embedding", stored=torch.bfloat16),
}
"""Low-rank, whole-weight, vector and virtual-token methods; each task; both schemes and none; both dtypes; decoders, encoders,
experts and an encoder with a decoder."""

REFUSALS = {
    "no such command": "frobnicate",
    "an unknown flag": "train base rows.jsonl --output new --lernrate 3",
    "no output": "train base rows.jsonl",
    "no such base": "train nowhere rows.jsonl --output new",
    "no such rows": "train base missing.jsonl --output new",
    "rows that are not JSON": "train base broken.jsonl --output new",
    "an empty file": "train base empty.jsonl --output new",
    "an output that exists": "train base rows.jsonl --output mine",
    "a rank of nothing": "train base rows.jsonl --output new --r 0",
    "a method misspelt": "train base rows.jsonl --output new --method dorra",
    "a module that is not there": "train base rows.jsonl --output new --target-modules nothing",
    "rows of another task": "train base rows.jsonl --output new --task sequence-classification",
    "a flag of another method": "train base rows.jsonl --output new --method ia3 --r 4",
    "no such adapter": "generate base --adapter nowhere --prompt say",
    "an adapter of another base": "generate other --adapter mine --prompt say",
    "an adapter cut short": "generate base --adapter short --prompt say",
    "a merge over what is there": "merge base mine --output mine",
    "no such scheme": "quantize base --scheme nf5 --output new",
    "no adapter to inspect": "inspect rows.jsonl",
    "an adapter without its task": "predict base rows.jsonl --adapter mine --task embedding",
}


@pytest.fixture(autouse=True)
def processor(one_thread):
    """One thread, because sums are divided among threads; and kernels of the instructions that torch takes."""
    narrower = torch.backends.cpu.get_cpu_capability() == "AVX2" and "avx2" in native.supported()
    with native.only("avx2") if narrower else contextlib.nullcontext():
        yield


@pytest.mark.parametrize("name", CASES)
def test_bits_are_what_they_were(name, tmp_path):
    case = CASES[name]
    found = _observed(case, _place(case, tmp_path))
    if os.environ.get(SWITCH):
        _write(name, found)
    stored = _table()["cases"][name]
    problems = [f"{what}: another form" for what in _differing(found["form"], stored["form"])]
    problems += _beyond(found["values"], stored["values"], _allowed(case))
    exact = _differing(found["exact"], stored["exact"].get(_processor(), found["exact"]))
    problems += [f"{what}: other bits" for what in exact]
    assert not problems, f"{name} on {_processor()}:\n" + "\n".join(problems)


def test_refusals_are_what_they_were(tmp_path, monkeypatch, capsys):
    found = _refusals(tmp_path, monkeypatch, capsys)
    if os.environ.get(SWITCH):
        _save(_table() | {"refusals": found})
    assert found == _table()["refusals"]


def test_the_table_is_of_these_cases():
    assert sorted(_table()["cases"]) == sorted(CASES)
    assert sorted(_table()["refusals"]) == sorted(REFUSALS)


def _place(case, place):
    """A directory with the model, whose weights are the same numbers on every machine, and rows for the task."""
    if case.family in models.CONFIGS:
        model = models.model(case.family, sizes=quantized.SIZES | {"max_position_embeddings": 128})
    else:
        cls, small = tasks.MODELS[case.family]
        sizes = {name: size for name, size in tasks.WIDE.items() if hasattr(small, name)}
        model = cls(type(small).from_dict(small.to_dict() | sizes))
    _fill_(model)
    model.to(case.stored or getattr(torch, case.dtype)).save_pretrained(place / "base")
    bases.tokenizer().save_pretrained(place / "base")
    rows = bases.rows(24) if case.task == "causal-lm" else tasks.rows(case.task, 24)
    bases.jsonl(place / "rows.jsonl", rows)
    return place


@torch.no_grad()
def _fill_(model):
    """Whole numbers over powers of two, which bfloat16 holds too: numbers drawn from a distribution differ by processor."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randint(-127, 128, parameter.shape, generator=generator).float()
        if parameter.dim() < 2:
            parameter.copy_(name.endswith("weight") + drawn / 512)  # of a norm, or a bias
        elif any(word in name for word in ("embed", "wte", "wpe", "shared")):
            parameter.copy_(drawn / 512)
        else:
            parameter.copy_(drawn / 2.0 ** round(math.log2(75 * parameter.shape[-1] ** 0.5)))


def _observed(case, place):
    """What a case gives: {"exact": digests, "form": digests, "values": numbers}."""
    labels = LABELS.get(case.task, ())
    base = inlay.load(place / "base", task=case.task, labels=labels, dtype=case.dtype, quantize=case.scheme)
    steps = []
    settings = dict(max_steps=20, batch_size=6, learning_rate=5e-3, eval_every=10, eval_fraction=0.1) | case.settings
    how = dict(method=case.method, output=place / "mine", progress=False)
    inlay.train(base, place / "rows.jsonl", on_step=steps.append, **how, **settings)
    losses, evaluated = steps[-1].losses, [loss for _, loss in steps[-1].eval_losses]
    models.randomize(base.attach(inlay.Lora(r=2, lora_alpha=3), "other"), seed=1)
    logits = _mixed(base)
    tensors = load_file(place / "mine" / "adapter_model.safetensors")
    config, record = (json.loads((place / "mine" / f"{name}.json").read_text()) for name in ("adapter_config", "inlay"))
    merged, merge_form = _merged(base, place)
    plain = _tensors(place / "base")
    changes = {
        name: tensor.float() - plain[name].float() if name in plain and plain[name].shape == tensor.shape else tensor
        for name, tensor in merged.items()
    }
    return {
        "exact": {
            "losses": _digest([[loss.hex() for loss in part] for part in (losses, evaluated)]),
            "adapter": _digest(tensors),
            "record": _digest(_without(record, "versions", "with", "golden", "rounded", *TIMES)),
            "logits": _digest({"logits": logits}),
            "answers": _digest(_answers(base, place)),
            "merged": _digest(merged),
        },
        "form": {
            "adapter": _digest([_form(tensors), _without(config, "base_model_name_or_path")]),
            "record": _digest(_without({k: record.get(k) for k in RECORDED}, *TIMES, *COMPUTED)),
            "merged": _digest(merge_form),
        },
        "values": {
            "losses": losses + evaluated,
            "adapter": _measures(tensors.values()),
            "logits": _measures(logits),
            "merged": _measures(change for change in changes.values() if change.count_nonzero()),
        },
    }


RECORDED = ("format", "method", "data", "training", "task", "text")
"""What of an adapter's record says nothing of the base's bits or of versions."""
TIMES = ("seconds", "tokens_per_second", "peak_rss_bytes", "date")
COMPUTED = ("loss", "losses", "eval_loss", "eval_loss_before", "eval_losses", "scores", "base_fingerprint", "best_step")


def _mixed(base):
    """The output for rows of the trained adapter, of another one and of none; two rows of them are padded."""
    ids, mask = models.tokens(4, 9), torch.ones(4, 9, dtype=torch.long)
    mask[1:3, 6:] = 0
    rows = ["mine", "other", None, "mine"]
    if base.task == "causal-lm":
        return base.logits(ids, rows, mask).float()
    labels = {"labels": models.tokens(4, 3)} if base.task == "seq2seq" else {}
    with torch.no_grad(), base.using(rows):
        said = base.model(input_ids=ids, attention_mask=mask, **labels)
    return (said.last_hidden_state if base.task == "embedding" else said.logits).float()


def _answers(base, place):
    """What users are told: answers of a batch of different adapters, or what the task predicts for rows."""
    if base.task == "causal-lm":
        prompts, rows = ["say 3", "it", "say 11"], ["mine", "other", None]
        greedy = base.generate(prompts, rows, max_new_tokens=5)
        return [greedy, base.generate(prompts, rows, max_new_tokens=5, temperature=0.8, top_p=0.9, seed=3)]
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()[:5]]
    return base.predict(rows, "mine")


def _merged(base, place):
    """(the tensors of the merged checkpoint, what is to be said of it wherever it was made); a refusal where it was refused."""
    try:
        inlay.merge(base, "mine", output=place / "merged")
    except CompatibilityError as refused:
        return {}, str(refused).splitlines()[0]
    before, after = (json.loads((place / name / "config.json").read_text()) for name in ("base", "merged"))
    tensors, plain = (_tensors(place / name) for name in ("merged", "base"))
    kept = [] if base.scheme else [n for n, t in tensors.items() if n in plain and _bytes(t) == _bytes(plain[n])]
    changed = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    own, copied = ({file.name for file in (place / name).iterdir()} for name in ("merged", "base"))
    return tensors, [_form(tensors), sorted(kept), _without(changed, "transformers_version"), sorted(own ^ copied)]


def _tensors(directory):
    files = sorted(directory.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _form(tensors):
    return {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}


def _bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _digest(what):
    """The first digits of the SHA-256 of JSON, or of tensors by name with their dtypes, shapes and bytes."""
    tensors = what if isinstance(what, dict) and all(isinstance(v, torch.Tensor) for v in what.values()) else {}
    said = hashlib.sha256(json.dumps(_form(tensors) if tensors else what, sort_keys=True).encode())
    for name in sorted(tensors):
        said.update(_bytes(tensors[name]))
    return said.hexdigest()[:16]


def _without(record, *names):
    """JSON without these keys, however deep they are."""
    if isinstance(record, dict):
        return {key: _without(value, *names) for key, value in record.items() if key not in names}
    return [_without(value, *names) for value in record] if isinstance(record, list) else record


def _measures(tensors):
    """Of each tensor its norm, and its product with signs that are drawn, which sees numbers that changed their place."""
    found = []
    for tensor in tensors:
        flat = tensor.double().flatten()
        signs = torch.randint(0, 2, flat.shape, generator=torch.Generator().manual_seed(len(flat))) * 2.0 - 1
        found += [flat.norm().item(), (flat @ signs.double()).item()]
    return found


def _differing(found, stored):
    return [what for what in {**found, **stored} if found.get(what) != stored.get(what)]


def _allowed(case):
    """By what is compared: how far it may be off on a processor that the file does not know."""
    return OTHER_PROCESSOR[getattr(torch, case.dtype)]


def _beyond(found, stored, allowed):
    """What is off by more than it may be, as part of a loss or of a tensor's norm."""
    problems = []
    for what, text in stored.items():
        was, now = (torch.tensor(list(map(float, of)), dtype=torch.float64) for of in (text.split(), found[what]))
        if was.shape != now.shape:
            problems.append(f"{what}: {len(now)} numbers, not {len(was)}")
        elif len(was):
            scale = was.abs() if what == "losses" else was[::2].repeat_interleave(2)
            off = (now - was).abs() / scale.clamp(min=scale.max() / 100)
            if not off.max() <= allowed[what]:
                problems.append(f"{what}: number {off.argmax()} is off by {off.max():.2g}, allowed {allowed[what]}")
    return problems


@functools.cache
def _processor():
    """What the digests depend on: the versions, the ways that are taken, and the bits that torch makes of small layers and products."""
    made = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        _fill_(layer)
        layer.to(dtype)
        adam = torch.optim.AdamW(layer.parameters(), fused=True)
        for rows, length in ((1, 5), (6, 9), (3, 24)):
            drawn = torch.randint(-99, 100, (rows, length, 64), generator=torch.Generator().manual_seed(length)) / 64
            out = layer(drawn.to(dtype))
            torch.logsumexp(out.float() @ torch.linspace(-1, 1, 64 * 97).view(64, 97), -1).sum().backward()
            adam.step()
            made[f"{dtype} {length}"] = out.detach()
        made |= {f"{dtype} {name}": parameter.detach() for name, parameter in layer.named_parameters()}
        products = [
            (rows, width, out)
            for rows in (1, 5, 16, 54, 72)
            for width in (8, 16, 32, 48, 97)
            for out in (8, 32, 64, 97)
        ]
        for rows, width, out in products:
            generator = torch.Generator().manual_seed(rows * width)
            x, w = (torch.randint(-99, 100, (n, width), generator=generator).to(dtype) / 64 for n in (rows, out))
            y = x @ w.T
            made[f"{dtype} {rows} {width} {out}"] = torch.cat([y.flatten(), (y @ w).flatten(), (y.T @ x).flatten()])
    made["svd"] = torch.linalg.svd(layer.linear1.weight.detach().float()).U
    made["drawn"] = torch.randn(99, generator=torch.Generator().manual_seed(3))
    kernels = native.variant() + (" with bfloat16" if native.multiplies_bfloat16() else "")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{versions}, {torch.backends.cpu.get_cpu_capability()}, kernels {kernels}, layer {_digest(made)}"


def _refusals(place, monkeypatch, capsys):
    """By name: the exit status of a wrong command, and its headline."""
    monkeypatch.chdir(place)
    bases.directory(place / "base", "llama")
    bases.directory(place / "other", "llama", seed=4)
    bases.jsonl(place / "rows.jsonl", bases.rows(12))
    (place / "broken.jsonl").write_text('{"prompt": "say", "completion": \n')
    (place / "empty.jsonl").write_text("")
    trained = "train base rows.jsonl --output mine --max-steps 1 --r 2"
    assert run(capsys, *trained.split())[0] == 0
    (place / "short").mkdir()
    for file in (place / "mine").iterdir():
        content = file.read_bytes()
        (place / "short" / file.name).write_bytes(content[:-9] if file.suffix == ".safetensors" else content)
    found = {}
    for name, command in REFUSALS.items():
        status, _, err = run(capsys, *command.split())
        found[name] = [status, next(line for line in err.splitlines() if line.startswith("error: "))]
    return found


def _table():
    return json.loads(FILE.read_text("utf-8")) if FILE.exists() else {"cases": {}, "refusals": {}}


def _save(table):
    assert "PYTEST_XDIST_WORKER" not in os.environ, "processes would overwrite each other's lines: add -n 0"
    cases = {name: table["cases"][name] for name in CASES if name in table["cases"]}
    FILE.write_text(json.dumps({"cases": cases, "refusals": table["refusals"]}, indent=1) + "\n", "utf-8")


def _write(name, found):
    """Put a case into the file: its numbers, and digests of other processors, stay while the digests of this one do."""
    table, here = _table(), _processor()
    stored = table["cases"].get(name, {"exact": {here: None}})
    if stored["exact"].get(here, found["exact"]) != found["exact"]:
        values = {what: " ".join(f"{value:.6g}" for value in of) for what, of in found["values"].items()}
        stored = {"values": values, "exact": {}}
    exact = stored["exact"] | {here: found["exact"]}
    table["cases"][name] = {"form": found["form"], "values": stored["values"], "exact": exact}
    _save(table)
