"""Every method and kind of layer that `peft` knows too, both ways: the same logits, or refused by name; and
docs/reference/interop.md, the table of it and of what `adapters` wrote."""

import contextlib
import dataclasses
import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import inlay
from inlay import methods
from inlay.base.load import load
from inlay.errors import InlayError
from inlay.model.adapter_set import AdapterSet
from tests.interop import test_adapterhub
from tests.support import bases, models, pages
from tests.support.networks import Convolutional

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LOGITS = 1e-5
"""The agreement that the exchange format is held to, in float32."""

KINDS = {
    "linear": ("llama", "q_proj,down_proj"),
    "Conv1D": ("gpt2", "c_attn,mlp.c_proj"),
    "embedding": ("llama", "embed_tokens,v_proj"),
    "tied head": ("llama_tied", "lm_head,v_proj"),
    "experts": ("mixtral", "experts.gate_up_proj,experts.down_proj"),
    "beside a tied head": ("llama_tied", "q_proj,v_proj"),
    "conv2d": ("network", "first,second"),
    "norm": ("llama", "input_layernorm,norm"),
    "whole model": ("llama", ""),
}
"""Kind of layer -> (family, modules)."""


@dataclasses.dataclass
class Case:
    """A method as both sides write it."""

    name: str
    ours: dict[str, Any]
    theirs: Callable[..., Any]
    kinds: tuple[str, ...] = ("linear", "Conv1D")


def _lora(**settings):
    def config(targets):
        fused = [name for name in targets if name.startswith("experts.")]
        modules = [name for name in targets if name not in fused]
        how = {"target_modules": modules, "target_parameters": fused or None, "init_lora_weights": False}
        return peft.LoraConfig(r=3, lora_alpha=5, **how, **settings)

    return config


def _other(config, **settings):
    return lambda targets: config(target_modules=targets, **settings)


def _prompt(config):
    return lambda targets: config(num_virtual_tokens=3, task_type="CAUSAL_LM")


R = dict(r=3, lora_alpha=5)
EVERYWHERE = ("linear", "Conv1D", "embedding", "tied head", "conv2d")
CASES = {
    "LoRA": Case("lora", R, _lora(), (*EVERYWHERE, "experts")),
    "rsLoRA": Case("lora", R | dict(use_rslora=True), _lora(use_rslora=True), ("linear", "Conv1D", "experts")),
    "LoRA, biases of its layers": Case("lora", R | dict(bias="lora_only"), _lora(bias="lora_only")),
    "LoRA, all biases": Case("lora", R | dict(bias="all"), _lora(bias="all")),
    "LoRA, a whole head": Case("lora", R | dict(modules_to_save="lm_head"), _lora(modules_to_save=["lm_head"])),
    "LoRA, single tokens": Case(
        "lora",
        R | dict(trainable_token_indices=(61, 13, 40)),
        _lora(trainable_token_indices=[61, 13, 40]),
        ("linear", "Conv1D", "beside a tied head"),
    ),
    "DoRA": Case("dora", R, _lora(use_dora=True), EVERYWHERE),
    "AdaLoRA": Case(
        "adalora",
        dict(init_r=4, target_r=3, lora_alpha=5),
        _other(peft.AdaLoraConfig, init_r=4, target_r=3, lora_alpha=5, total_step=10, init_lora_weights=False),
    ),
    "VeRA": Case("vera", dict(r=7), _other(peft.VeraConfig, r=7, init_weights=False)),
    "(IA)^3": Case(
        "ia3",
        dict(feedforward_modules="down_proj,mlp.c_proj"),
        lambda targets: peft.IA3Config(
            target_modules=targets, feedforward_modules=targets[-1:], init_ia3_weights=False
        ),
    ),
    "LoHa": Case(
        "loha",
        dict(r=3, alpha=5),
        _other(peft.LoHaConfig, r=3, alpha=5, init_weights=False),
        ("linear", "Conv1D", "conv2d"),
    ),
    "LoKr": Case(
        "lokr",
        dict(r=3, alpha=5, decompose_both=True),
        _other(peft.LoKrConfig, r=3, alpha=5, decompose_both=True, init_weights=False),
    ),
    "OFT": Case("oft", dict(oft_block_size=4), _other(peft.OFTConfig, oft_block_size=4, init_weights=False)),
    "OFT, exact": Case(
        "oft",
        dict(oft_block_size=4, use_cayley_neumann=False),
        _other(peft.OFTConfig, oft_block_size=4, use_cayley_neumann=False, init_weights=False),
    ),
    "norms": Case("ln_tuning", {}, _other(peft.LNTuningConfig), ("norm",)),
    "prompt tuning": Case("prompt", dict(num_virtual_tokens=3), _prompt(peft.PromptTuningConfig), ("whole model",)),
    "prefix tuning": Case("prefix", dict(num_virtual_tokens=3), _prompt(peft.PrefixTuningConfig), ("whole model",)),
    "prefix tuning, through a network": Case(
        "prefix",
        dict(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7),
        lambda targets: peft.PrefixTuningConfig(
            num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=7, task_type="CAUSAL_LM"
        ),
        ("whole model",),
    ),
    "P-tuning": Case("p_tuning", dict(num_virtual_tokens=3), _prompt(peft.PromptEncoderConfig), ("whole model",)),
}
REFUSED = {
    ("LoHa", "Conv1D"): "Conv1D",
    ("LoKr", "Conv1D"): "Conv1D",
    ("OFT", "Conv1D"): "Conv1D",
    ("OFT, exact", "Conv1D"): "Conv1D",
}
"""What `peft` refuses, and the word by which it does; the file is ours alone there."""

BY_PEFT = ("Unsupported layer type", "Model has `tie_word_embeddings=True`", "Adapter layers are on")
"""Warnings of `peft` that are not about what the file says."""


def pairs():
    """Every (method, kind of layer) that is tried."""
    return [(what, kind) for what, case in CASES.items() for kind in case.kinds]


def _held(folder, family):
    """A frozen model of ours, a fresh one for `peft`, and how to ask either."""
    if family == "network":
        held, x = AdapterSet(Convolutional()), torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(4))
        return held, Convolutional, lambda model: model(x)
    held, ids = load(folder / "base", dtype="float32"), models.tokens(2, 9)
    return (
        held,
        lambda: AutoModelForCausalLM.from_pretrained(folder / "base"),
        lambda model: model(input_ids=ids).logits[:, -ids.shape[1] :],
    )


@contextlib.contextmanager
def _strictly():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # an unknown key or a missing tensor is a warning there
        for text in BY_PEFT:
            warnings.filterwarnings("ignore", message=text)
        yield


def _from_ours(what, kind, folder):
    """Largest relative difference of a logit where `peft` reads what we wrote, and how far the adapter moves one."""
    case, (family, targets) = CASES[what], KINDS[kind]
    held, fresh, ask = _held(folder, family)
    names = {"target_modules": targets} if targets else {}
    models.randomize(held.attach(methods.find(case.name)(**names, **case.ours), "ours"), seed=6).finish_()
    (folder / "ours").mkdir()
    held.save("ours", folder / "ours", {})
    with _strictly(), torch.no_grad():
        theirs = peft.PeftModel.from_pretrained(fresh(), folder / "ours").eval()
        return _difference(held, "ours", ask, ask(theirs))


def _from_theirs(what, kind, folder):
    """The same where we read what `peft` wrote."""
    case, (family, targets) = CASES[what], KINDS[kind]
    held, fresh, ask = _held(folder, family)
    config = case.theirs(targets.split(","))
    config.task_type = None if family == "network" else "CAUSAL_LM"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(fresh(), config).eval()
        generator = torch.Generator().manual_seed(3)
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        wanted = ask(theirs)
        theirs.save_pretrained(folder / "theirs")
        held.attach(folder / "theirs")
        return _difference(held, "theirs", ask, wanted)


def _difference(held, name, ask, wanted):
    module = held.model if isinstance(held, inlay.Base) else held.module
    with held.using(name):
        ours = ask(module)
    with held.using(None):
        plain = ask(module)
    largest = max(1.0, wanted.abs().max().item())
    return (ours - wanted).abs().max().item() / largest, (plain - wanted).abs().max().item() / largest


WAYS = {"ours_to_peft": _from_ours, "peft_to_ours": _from_theirs}


@functools.cache
def found(what, kind, way):
    """What one of the two ways found, for the test of it and for the page."""
    family, _ = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        if family != "network":
            bases.directory(Path(folder) / "base", family)
        try:
            return WAYS[way](what, kind, Path(folder))
        except (TypeError, InlayError) as error:
            return error.with_traceback(None)


@pytest.mark.parametrize(("what", "kind"), pairs(), ids=lambda value: str(value).replace(" ", "_"))
@pytest.mark.parametrize("way", WAYS)
def test_both_say_the_same(what, kind, way):
    result = found(what, kind, way)
    if (what, kind) in REFUSED:
        assert isinstance(result, TypeError)
        assert REFUSED[what, kind] in str(result)
        return
    assert not isinstance(result, Exception), result
    difference, effect = result
    assert difference <= LOGITS < effect


def test_the_table_of_it():
    lines = [
        "# Interop with PEFT and AdapterHub",
        "",
        "Which adapters PEFT reads of Inlay, and Inlay of PEFT, and how far their answers differ.",
        "",
        f"Made by `tests/interop/test_methods.py` with peft {peft.__version__}: the largest difference of a logit in",
        "float32, relative to the largest logit or 1. Both are held to 1e-5.",
    ]
    lines += [
        "",
        "| method | layers | written by Inlay, read by PEFT | written by PEFT, read by Inlay |",
        "|---|---|---|---|",
    ]
    for what, kind in pairs():
        results = [found(what, kind, way) for way in WAYS]
        cells = [
            f"refused by PEFT: {REFUSED[what, kind]}" if isinstance(result, Exception) else pages.band(result[0])
            for result in results
        ]
        lines.append(f"| {what} | {kind} | {cells[0]} | {cells[1]} |")
    rest = sorted(name for name in methods.names() if not methods.find(name).peft.type)
    lines += [
        "",
        f"PEFT has no {', '.join(rest)}: their files are for Inlay, and PEFT refuses them by their peft_type.",
        "",
        *test_adapterhub.table(),
    ]
    pages.check("interop", lines)
