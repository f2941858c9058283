"""Where factors start, against the papers' equations in float64, and against the way of `peft`, which changes the base."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import inlay
from inlay import initializers
from inlay.base.attach import attach
from inlay.base.load import load
from inlay.core import lowrank
from inlay.core.cross_entropy import cross_entropy_sum
from inlay.errors import InlayError, TargetError
from inlay.io.mapped import Mapped
from inlay.io.safetensors import read_header
from inlay.methods.lora import Lora
from inlay.model.adapter_set import AdapterSet
from inlay.training.calibration import calibrate
from tests.support import bases, models, quantized
from tests.support.paths import DEMO_BASE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

OUT, IN, R = 24, 17, 4
TARGETS = "q_proj,down_proj"


def _matrix(rows=OUT, columns=IN, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _start(name, found, **settings):
    """The factors B0 A0 of the change, and the method that has them."""
    method = Lora(r=R, lora_alpha=6, initializer=name, **settings)
    fresh = {"lora_A": _matrix(R, IN, 2), "lora_B": torch.zeros(OUT, R)}
    params = method.start(fresh, found, torch.Generator().manual_seed(0))
    return {key: tensor.double().numpy() for key, tensor in params.items()}, method


def _best(found, r):
    """The best approximation of rank r: Eckart and Young."""
    U, s, V = np.linalg.svd(found.double().numpy(), full_matrices=False)
    return (U[:, :r] * s[:r]) @ V[:r]


@pytest.mark.parametrize("use_rslora", [False, True])
def test_pissa_starts_at_the_principal_part(use_rslora):
    W = _matrix()
    params, method = _start("pissa", W, use_rslora=use_rslora)
    A, B = params["start_A"], params["start_B"]
    np.testing.assert_allclose(method.scaling * B @ A, _best(W, R), atol=1e-5)
    s = np.linalg.svd(W.double().numpy(), compute_uv=False)[:R] / method.scaling
    np.testing.assert_allclose(A @ A.T, np.diag(s), atol=1e-5)
    np.testing.assert_allclose(B.T @ B, np.diag(s), atol=1e-5)


def test_loftq_starts_at_what_was_lost_and_keeps_it():
    lost = _matrix(seed=5)
    params, method = _start("loftq", lost)
    np.testing.assert_allclose(method.scaling * params["lora_B"] @ params["lora_A"], _best(lost, R), atol=1e-5)
    assert method.start_changes


def test_eva_starts_at_the_directions_of_the_inputs():
    X = _matrix(90, IN, 6) * torch.logspace(0, -2, IN)
    params, _ = _start("eva", X)
    V = np.linalg.svd(X.double().numpy(), full_matrices=False)[2]
    np.testing.assert_allclose(np.abs(params["lora_A"]), np.abs(V[:R]), atol=1e-4)
    assert not params["lora_B"].any()


def test_lora_ga_starts_at_the_directions_of_the_gradient():
    G = _matrix(seed=7)
    params, _ = _start("lora_ga", G)
    U, _, V = np.linalg.svd(G.double().numpy(), full_matrices=False)
    c = OUT**0.25 / 4
    np.testing.assert_allclose(np.abs(params["start_A"]), c * np.abs(V[:R]), atol=1e-4)
    np.testing.assert_allclose(np.abs(params["start_B"]), c * np.abs(U[:, R : 2 * R]), atol=1e-4)
    # theorem 3.1: a step of gradient descent on A and B moves W along the best approximation of G of rank 2r
    A, B, G = params["start_A"], params["start_B"], G.double().numpy()
    step = B @ (B.T @ G) + (G @ A.T) @ A
    np.testing.assert_allclose(step, c**2 * _best(_matrix(seed=7), 2 * R), atol=1e-4)


@pytest.mark.parametrize("name", [n for n in initializers.names() if initializers.find(n).is_taken_off])
def test_it_learns_as_if_the_start_had_been_taken_off_the_weight(name):
    """The gradients, and the outputs after a step, are those of W - s B0 A0 frozen and A, B trained from A0, B0."""
    W, x = _matrix(), _matrix(9, IN, 8)
    params, method = _start(name, _matrix())
    params = {key: torch.tensor(value, requires_grad=not key.startswith("start")) for key, value in params.items()}
    rest = W.double() - method.scaling * params["start_B"] @ params["start_A"]
    A, B = (params[key].clone().requires_grad_() for key in ("start_A", "start_B"))
    for _ in range(2):
        ours = method.factors(params)
        y = x.double() @ (W.double() + method.scaling * ours.B @ ours.A).T
        theirs = x.double() @ (rest + method.scaling * B @ A).T
        torch.testing.assert_close(y, theirs)
        trained = [params["lora_A"], params["lora_B"], A, B]
        grads = torch.autograd.grad(y.pow(3).sum() + theirs.pow(3).sum(), trained)
        torch.testing.assert_close(grads[0], grads[2])
        torch.testing.assert_close(grads[1], grads[3])
        with torch.no_grad():
            for tensor, grad in zip(trained, grads, strict=True):
                tensor -= 1e-4 * grad


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_what_is_kept_is_a_plain_lora_of_twice_the_rank(settings, tmp_path):
    """Saved unfinished or finished, with another alpha for some modules or not, it says the same."""
    held, ids = AdapterSet(models.model("llama")), models.tokens(2, 7)
    method = Lora(r=3, lora_alpha=5, alpha_pattern={"v_proj": 7}, initializer="pissa", **settings)
    adapter = models.randomize(held.create(method, "a"), seed=3)
    with torch.no_grad():
        wanted = held.module(input_ids=ids).logits
        for step in ("unfinished", "finished"):
            (tmp_path / step).mkdir()
            held.save("a", tmp_path / step, {})
            again = attach(models.model("llama"), tmp_path / step)
            read = again[step]
            assert (read.method.r, read.method.source) == (6, None)
            torch.testing.assert_close(again.module(input_ids=ids).logits, wanted)
            adapter.finish_()
        torch.testing.assert_close(held.module(input_ids=ids).logits, wanted)


def test_pissa_is_the_start_of_peft():
    held, ids = AdapterSet(models.model("llama")), models.tokens(2, 7)
    adapter = held.create(Lora(r=3, lora_alpha=5, target_modules=TARGETS, initializer="pissa"), "a")
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS.split(","), init_lora_weights="pissa")
    theirs = peft.get_peft_model(models.model("llama"), config)
    loss = cross_entropy_sum(theirs(input_ids=ids).logits, ids)
    loss.backward()
    held.parameters()
    cross_entropy_sum(held.module(input_ids=ids).logits, ids).backward()
    for path, params in adapter.params.items():
        layer = theirs.get_submodule(f"base_model.model.{path}")
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        torch.testing.assert_close(params["start_B"] @ params["start_A"], (B @ A).detach(), atol=1e-5, rtol=1e-4)
        signs = torch.sign((params["start_A"] * A.detach()).sum(1))  # singular vectors have no sign
        torch.testing.assert_close(params["lora_A"].grad * signs[:, None], A.grad, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(params["lora_B"].grad * signs, B.grad, atol=1e-4, rtol=1e-3)


def test_a_file_of_peft_that_was_made_plain_is_read(tmp_path):
    """`path_initial_model_for_weight_conversion`: their PiSSA as a LoRA of rank 2r."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS.split(","), init_lora_weights="pissa")
    theirs, ids = peft.get_peft_model(models.model("llama"), config), models.tokens(2, 7)
    theirs.peft_config["default"].init_lora_weights = True  # as its documentation has it
    theirs.save_pretrained(tmp_path / "start")
    theirs.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter += 0.1 * torch.randn(parameter.shape) if "lora_" in name else 0
        wanted = theirs(input_ids=ids).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    theirs.save_pretrained(tmp_path / "raw")
    held = attach(models.model("llama"), tmp_path / "plain")
    torch.testing.assert_close(held.module(input_ids=ids).logits, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(InlayError, match="init_lora_weights"):
        attach(models.model("llama"), tmp_path / "raw")


def _captured(weight):
    """The part of the best approximation's norm that the search finds, of rank 8."""
    U, s, V = lowrank.top(weight, 8, torch.Generator().manual_seed(0))
    return (U * s @ V).norm() / torch.linalg.svdvals(weight)[:8].norm()


@pytest.mark.parametrize("shape", [(64, 64), (172, 64), (512, 64)])
@pytest.mark.parametrize("power", [0.3, 0.5, 1.0])
def test_the_search_captures_what_the_best_would(shape, power):
    """Of singular values that fall as those of trained weights do, i^-power."""
    (U, _), (V, _) = (torch.linalg.qr(_matrix(rows, 64, seed)) for seed, rows in enumerate(shape))
    assert _captured(U * torch.arange(1, 65) ** -power @ V.T) > 0.999


def test_the_search_captures_what_the_best_would_of_trained_weights():
    """The demo's, whose ninth singular values are hardly smaller than the eighth: there is more to mistake."""
    entries = read_header(DEMO_BASE / "model.safetensors").tensors
    parts = [_captured(weight.float()) for weight in Mapped().tensors(entries).values() if weight.dim() == 2]
    assert len(parts) == 29
    assert min(parts) > 0.997


@pytest.fixture
def base(tmp_path):
    held = load(bases.directory(tmp_path / "base"), dtype="float32")
    rows = bases.jsonl(tmp_path / "rows.jsonl", bases.rows(12))
    task = held.spec
    examples = task.prepare(task.read(rows).rows, held, 64, "completions", "drop").examples
    return held, rows, examples


def test_the_inputs_that_are_measured_are_those_of_the_map(base):
    held, _, examples = base
    seen, path = [], "model.layers.1.self_attn.q_proj"
    plain = models.model("llama")
    plain.get_submodule(path).register_forward_hook(lambda module, args, y: seen.append(args[0][0].detach()))
    for example in examples:
        plain(input_ids=torch.tensor([example.input_ids[:-1]]))  # nothing follows the last token
    found = calibrate(held, Lora(r=10, initializer="eva"), examples, None, 0)(path)
    X = torch.cat(seen)
    torch.testing.assert_close(found.T @ found, X.T @ X, atol=1e-3, rtol=1e-3)
    assert not held.adapters


def test_the_gradient_that_is_measured_is_that_of_the_weight(base):
    held, _, examples = base
    plain, path = models.model("llama").requires_grad_(), "model.layers.1.self_attn.q_proj"
    loss = 0.0
    for example in examples:
        ids, trained = torch.tensor([list(example.input_ids)]), torch.tensor(list(example.trained), dtype=torch.bool)
        targets = torch.where(trained[1:], ids[0, 1:], -100)
        loss = loss + nn.functional.cross_entropy(plain(input_ids=ids).logits[0, :-1], targets, reduction="sum")
    (loss / sum(sum(example.trained) for example in examples)).backward()
    found = calibrate(held, Lora(r=10, initializer="lora_ga"), examples, 10**6, 0)(path)
    torch.testing.assert_close(found, plain.get_submodule(path).weight.grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["eva", "lora_ga"])
def test_a_layer_that_no_row_goes_through_is_named(name, base):
    held, _, examples = base
    held.model.model.layers[1].mlp.forward = lambda x: 0 * x
    found = calibrate(held, Lora(r=2, initializer=name), examples, None, 0)
    assert found("model.layers.0.mlp.up_proj").any()
    with pytest.raises(TargetError, match=r"no row goes through(.|\n)*--exclude-modules up_proj"):
        found("model.layers.1.mlp.up_proj")


@pytest.mark.parametrize("name", initializers.names())
def test_a_run_starts_from_it_and_leaves_a_plain_lora(name, tmp_path):
    quantized.model("llama").save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    how = {"dtype": "float32", "quantize": "nf4" if name == "loftq" else None}
    held, rows = load(tmp_path / "base", **how), bases.jsonl(tmp_path / "rows.jsonl", bases.rows(12))
    report = inlay.train(held, rows, method=Lora(r=4, initializer=name), output=tmp_path / "out", max_steps=3)
    assert report.trainable_parameters == held.layout.count(Lora(r=4))
    again = load(tmp_path / "base", **how)
    again.attach(tmp_path / "out")
    ids = models.tokens(2, 7)
    torch.testing.assert_close(again.logits(ids, "out"), held.logits(ids, "out"))
    assert again.adapters["out"].record["method"]["initializer"] == name


def test_loftq_is_nearer_to_the_weights_than_their_four_bits(tmp_path):
    quantized.model("llama").save_pretrained(tmp_path / "base")
    bases.tokenizer().save_pretrained(tmp_path / "base")
    plain, held = load(tmp_path / "base", dtype="float32"), load(tmp_path / "base", dtype="float32", quantize="nf4")
    adapter = held.create(Lora(r=16, initializer="loftq"), "a")
    for path, params in adapter.params.items():
        W, Q = plain.maps[path].weight(torch.float32), held.maps[path].weight(torch.float32)
        change = adapter.method.scaling * params["lora_B"] @ params["lora_A"]
        best = torch.linalg.svdvals(W - Q)[16:].norm()
        assert (W - Q - change).norm() < 1.001 * best < (W - Q).norm()
