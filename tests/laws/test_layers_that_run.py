"""Layers that a model never calls are left out and said; rows with several adapters are told apart in whatever way layers get them."""

import types
import warnings

import pytest
import torch
from torch import nn

import inlay
from inlay import methods
from inlay.errors import CompatibilityError, TargetError
from inlay.modules import trial
from tests.support import architectures, models
from tests.support.tolerances import LOGITS

READ = {"falcon_mamba": "dt_proj (2)", "jamba": "dt_proj (1)", "mamba": "dt_proj (2)"}
"""Models that read the weight of some linear layers, and which these are."""

CROSS = "query (2), key (2), value (2), dense (2)"
OTHERS = ("deepseek_v3", "gpt2", "gpt_oss", "mixtral", "mpt", "opt", "qwen2_moe", "qwen3_next", "zamba2")


def causal(kind, **more):
    torch.manual_seed(7)  # some tensors start at random, and are moved from there
    return architectures.model("AutoModelForCausalLM", kind, architectures.CAUSAL[kind] | more)


def decoder_alone():
    """A decoder that has cross-attention, and no encoder."""
    return causal("bert", add_cross_attention=True)


def rest(silent, kind):
    """The warning that says which layers are left out."""
    return pytest.warns(
        UserWarning, match=rf"leaves out.*{silent.replace('(', '.').replace(')', '.')}: this model never {kind}"
    )


def learned(held, name, steps=2):
    """The maps whose adapter has moved after some steps, of all that have one."""
    ids = architectures.tokens(4, 12)
    for _ in range(steps):
        parameters = held.parameters()
        held.module(input_ids=ids, use_cache=False).logits.square().mean().backward()
        with torch.no_grad():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter -= parameter.grad / (parameter.grad.norm() + 1e-30)
                parameter.grad = None
    params = held[name].params
    return {path for path in params if params[path]["lora_B"].abs().sum() > 0}, set(params)


@pytest.mark.parametrize("kind", [*READ, *OTHERS])
def test_every_layer_that_is_adapted_learns(kind):
    model = causal(kind)
    with rest(READ[kind], "calls it, but reads its weight") if kind in READ else warnings.catch_warnings():
        held = inlay.attach(model, inlay.Lora(r=2), "new")
    moved, adapted = learned(held, "new")
    assert moved == adapted
    others = {path for path in held.linears if path != held.head and not path.endswith("dt_proj")}
    assert adapted >= {path for path in others if held.linears[path].out_features > 1}, "no layer that runs is left out"


def test_cross_attention_of_a_decoder_that_stands_alone_is_left_out():
    model = decoder_alone()
    with rest(CROSS, "calls it"):
        held = inlay.attach(model, inlay.Lora(r=2), "new")
    assert not any("crossattention" in path for path in held["new"].params)
    with pytest.warns(UserWarning, match="leaves out"):
        held.attach(inlay.Lora(r=2, target_modules="query"), "some")
    assert [path for path in held["some"].params if "crossattention" in path] == []
    with pytest.raises(TargetError, match="would change nothing") as caught:
        held.attach(inlay.Lora(r=2, target_modules="crossattention.self.query"), "none")
    assert "never calls it" in str(caught.value)
    with pytest.warns(UserWarning, match="leaves out"):
        held.attach(methods.find("bottleneck")(bottleneck_size=2), "blocks")
    assert not any("crossattention" in path for path in held["blocks"].params)


def test_a_layer_whose_weight_is_read_is_refused_by_its_name():
    with pytest.raises(TargetError, match="would change nothing") as caught:
        inlay.attach(causal("mamba"), inlay.Lora(r=2, target_modules="dt_proj"))
    assert "reads its weight" in str(caught.value)
    assert "in_proj" in str(caught.value)


def test_a_weight_that_is_read_is_the_adapters_where_it_is_trained_whole():
    model, ids = causal("mamba"), architectures.tokens(2, 7)
    held = inlay.attach(model, methods.find("full")(), "whole")
    models.randomize(held["whole"], seed=3, std=0.1)
    with torch.no_grad():
        ours = model(input_ids=ids).logits
    with pytest.raises(CompatibilityError, match="several adapters"), held.using(["whole", None]):
        pass
    tensors = {f"{path}.{name}": t for path, own in held["whole"].params.items() for name, t in own.items()}
    held.release()
    with torch.no_grad():
        theirs = torch.func.functional_call(model, tensors, (), {"input_ids": ids}).logits
    assert (ours - theirs).abs().max() <= LOGITS * theirs.abs().max()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what peft asks a model for
@pytest.mark.parametrize("changes", [True, False])
def test_a_file_that_changes_a_weight_that_is_read_is_refused(tmp_path, changes):
    """Others write such files: `peft` adapts the layer, and its change is never seen."""
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(causal("mamba"), LoraConfig(r=2, target_modules=["in_proj", "dt_proj"]))
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name and (changes or "dt_proj" not in name):
                parameter.normal_()
    theirs.save_pretrained(tmp_path / "theirs")
    held, ids = inlay.attach(causal("mamba"), inlay.Lora(r=2, target_modules="in_proj")), architectures.tokens(2, 7)
    if changes:
        with pytest.raises(CompatibilityError, match="would not let it change") as caught:
            held.attach(tmp_path / "theirs")
        assert "dt_proj (2)" in str(caught.value)
        return
    with pytest.warns(UserWarning, match=r"change nothing: dt_proj \(2\)"):
        held.attach(tmp_path / "theirs")
    with torch.no_grad():
        ours, peft = (model(input_ids=ids).logits for model in (held.module, theirs.eval()))
    assert (ours - peft).abs().max() <= LOGITS * peft.abs().max()


class Planted(nn.Module):
    """The MLP of a layer, with parts that are not called, not heard, only read; and experts, of which each token takes one."""

    def __init__(self, mlp, width):
        super().__init__()
        self.mlp = mlp
        self.uncalled, self.no_effect, self.read, self.used = (nn.Linear(width, width) for _ in range(4))
        self.experts = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(width, width)}) for _ in range(64))

    def forward(self, x):
        self.no_effect(x)
        expert = self.experts[int(x.sum().abs()) % 64]
        y = x @ self.read.weight + expert["up"](x) + self.used(x)
        return self.mlp(x) + y + self.no_effect(x).detach() * 0


@pytest.fixture
def planted():
    model = causal("llama")
    model.model.layers[1].mlp = Planted(model.model.layers[1].mlp, 32)
    return model


def test_what_is_unused_is_found_by_name_and_reason(planted):
    modules = dict(planted.named_modules())
    ours = [path for path in modules if ".1.mlp" in path and isinstance(modules[path], nn.Linear)]
    found = trial.unused(modules, ours)
    assert {path.rpartition(".")[2]: why for path, why in found.items()} == {
        "uncalled": trial.UNCALLED,
        "no_effect": trial.NO_EFFECT,
        "read": trial.READ,
    }


def test_a_model_that_can_not_be_called_so_is_left_as_it_is(planted):
    def forward(self, input_ids):
        raise KeyError("another way of calling")

    planted.forward = types.MethodType(forward, planted)
    held = inlay.attach(planted, inlay.Lora(r=2), "new")
    assert held.layout.unused == {}
    assert held.layout.order is None
    assert "model.layers.1.mlp.uncalled" in held["new"].params


def test_a_trial_leaves_no_trace(planted):
    planted.train()
    modules = dict(planted.named_modules())
    before, state = models.byte_image(planted), torch.get_rng_state()
    trial.unused(modules, modules)
    trial.row_order(modules, modules)
    assert models.byte_image(planted) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in planted.modules())
    assert not any(module._forward_hooks for module in planted.modules())
    assert dict(planted.named_modules()) == modules
    assert all(parameter.grad is None for parameter in planted.parameters())


@pytest.mark.parametrize("method", ["lora", "full", "bottleneck"])
@pytest.mark.parametrize("kind", ["deepseek_v3", "gpt_bigcode", "opt", "phimoe", "qwen2_moe"])
def test_rows_of_a_batch_are_those_alone(kind, method):
    """Where layers get the tokens of all rows one after the other; as many rows as tokens, so that no shape can tell."""
    model, ids = causal(kind), architectures.tokens(3, 3)
    held = inlay.attach(model, methods.find(method)(), "new")
    models.randomize(held["new"], seed=3, std=0.1)

    def said(rows, ids):
        with torch.no_grad(), held.using(rows):
            return model(input_ids=ids).logits

    mixed = said([None, "new", None], ids)
    for row, name in enumerate([None, "new", None]):
        alone = said(name, ids[row : row + 1])
        assert (mixed[row : row + 1] - alone).abs().max() <= LOGITS * alone.abs().max()
    assert (said("new", ids) - said(None, ids)).abs().max() > 0.01


def first_tokens_first():
    """A model whose layers get (t, rows, width)."""
    return architectures.model("AutoModelForCausalLM", "xlnet", dict(d_model=32, d_inner=48, n_layer=2, n_head=4))


def positions_as_inputs():
    return architectures.model("AutoModel", "deberta", architectures.ENCODERS["deberta"])


def positions_of_all_rows():
    settings = architectures.SEQ2SEQ["bart"]
    return architectures.model("AutoModelForCausalLM", "bart", settings)


@pytest.mark.parametrize(
    ("build", "method", "layer"),
    [
        (first_tokens_first, "lora", "layer_1"),
        (positions_as_inputs, "lora", "pos_proj"),
        (positions_of_all_rows, "full", "embed_positions"),
        (lambda: causal("gpt_oss"), "full", "self_attn"),
        (lambda: causal("mamba"), "full", "mixer"),
    ],
    ids=["t first", "shared positions", "shared output", "parts inside", "read"],
)
def test_rows_are_refused_before_they_start_where_layers_can_not_tell_whose_they_are(build, method, layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = inlay.attach(build(), methods.find(method)(), "new")
    with pytest.raises(CompatibilityError, match="in one batch") as caught, held.using(["new", None]):
        pytest.fail("the batch has begun")
    assert layer in str(caught.value)
    with held.using("new"):
        assert held.module(input_ids=architectures.tokens(2, 5))[0].isfinite().all()


def test_a_trial_takes_one_thread_and_gives_the_others_back(monkeypatch):
    """On a busy machine threads that wait for each other make a trial of 0.1 s take 2 s."""
    seen, called = set(), trial.called
    monkeypatch.setattr(
        trial, "called", lambda *args, **more: seen.add(torch.get_num_threads()) or called(*args, **more)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inlay.attach(models.model("llama"), inlay.Lora(r=2))
        assert seen == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
