"""The learning rate that a run takes by itself: lora_alpha changes nothing of what is learned."""

import dataclasses

import pytest

import inlay
from inlay.training.divergence import diverged
from inlay.training.settings import Settings, default_rates, plan
from inlay.training.state import TrainState
from tests.support import bases

SAME = {
    "smaller": inlay.Lora(r=4, lora_alpha=2),
    "larger": inlay.Lora(r=4, lora_alpha=512),
    "of the root": inlay.Lora(r=4, use_rslora=True),
    "of one module": inlay.Lora(r=4, alpha_pattern={"q_proj": 3}),
    "dora": inlay.Dora(r=4, lora_alpha=2),
    "adalora": inlay.Adalora(lora_alpha=2, init_r=4, target_r=4),
    "loha": inlay.Loha(r=4, alpha=2),
    "lokr": inlay.Lokr(r=4, alpha=100),
    "pissa": inlay.Lora(r=4, lora_alpha=2, initializer="pissa"),
    "bottleneck": inlay.Bottleneck(scaling=4),
}

USUAL: dict[type, dict[str, object]] = {
    inlay.Lora: dict(lora_alpha=32, use_rslora=False, alpha_pattern={}),
    inlay.Dora: dict(lora_alpha=32),
    inlay.Adalora: dict(lora_alpha=32),
    inlay.Loha: dict(alpha=8),
    inlay.Lokr: dict(alpha=8),
    inlay.Bottleneck: dict(scaling=1),
}
"""What makes of each the one that the rate is stated for."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return bases.directory(tmp_path_factory.mktemp("bases") / "base")


def losses(directory, tmp_path, method, **settings):
    """The losses of each step."""
    found = []
    base = inlay.load(directory, dtype="float32")

    def look(progress):
        found.append(progress.losses[-1])

    settings = dict(max_steps=8, batch_size=8, eval_fraction=0, max_grad_norm=1e9, check="off") | settings
    inlay.train(base, bases.rows(40), method=method, output=tmp_path / "out", on_step=look, **settings)
    return found


@pytest.mark.parametrize("name", SAME)
def test_with_another_scaling_the_same_is_learned(directory, tmp_path, name):
    method = SAME[name]
    usual = losses(directory, tmp_path / "usual", dataclasses.replace(method, **USUAL[type(method)]))
    found = losses(directory, tmp_path, method)
    assert usual[-1] < 0.99 * usual[0], "it learns"
    assert found == pytest.approx(usual, rel=2e-4)


def test_what_is_trained_whole_has_the_rate_of_the_base(directory, tmp_path):
    """A rate of 16 times that would ruin it."""
    usual = losses(directory, tmp_path / "usual", inlay.Lora(r=4, modules_to_save=("lm_head",)))
    found = losses(directory, tmp_path, inlay.Lora(r=4, lora_alpha=2, modules_to_save=("lm_head",)))
    assert found == pytest.approx(usual, rel=2e-4)


def test_a_rate_that_is_given_is_that_of_both_factors(directory, tmp_path):
    def given(name, **settings):
        return losses(directory, tmp_path / name, inlay.Lora(r=4, **settings), learning_rate=1e-3)

    usual = given("usual", lora_alpha=32)
    assert given("same", lora_alpha=2, loraplus_lr_ratio=16) == pytest.approx(usual, rel=2e-4)
    assert given("slower", lora_alpha=2)[-1] > 1.01 * usual[-1]


def test_the_screen_says_so(directory):
    config = inlay.load(directory).model.config
    methods = inlay.Lora(r=4), inlay.Lora(r=4, lora_alpha=2), inlay.Lora(r=4, initializer="pissa")
    usual, other, pissa = (str(plan(Settings(), 40, config, method)) for method in methods)
    assert "times that" not in usual
    assert ", lora_B's 16 times that" in other
    assert ", lora_A's and lora_B's 0.3 times that" in pissa
    same = (2, 3, 5, 6)  # ranks whose roots are rounded
    assert not any(default_rates(inlay.Lora(r=r, lora_alpha=32 / r**0.5, use_rslora=True)) for r in same)


@pytest.mark.parametrize(
    ("how", "lower"), [({}, 1), ({"initializer": "eva"}, 0.3), ({"loraplus_lr_ratio": 16}, 1)], ids=str
)
def test_a_run_that_diverged_is_told_a_rate_that_is_lower_for_b_too(directory, how, lower):
    base, method = inlay.load(directory), inlay.Lora(r=4, lora_alpha=256, **how)
    chosen = plan(Settings(), 40, base.model.config, method)
    state = TrainState.new(base.create(inlay.Lora(r=4), "a"), Settings(), chosen)
    state.method = method
    assert f"--learning-rate {lower * chosen.learning_rate / 8 / 3:.1g}" in str(diverged(state, "NaN"))
