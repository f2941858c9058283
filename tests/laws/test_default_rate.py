"""The learning rate that a run takes by itself: lora_alpha changes nothing of what is learned."""

import dataclasses

import pytest

import inlay
from inlay.training.settings import Settings, plan
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
}

USUAL: dict[type, dict[str, object]] = {
    inlay.Lora: dict(lora_alpha=32, use_rslora=False, alpha_pattern={}),
    inlay.Dora: dict(lora_alpha=32),
    inlay.Adalora: dict(lora_alpha=32),
    inlay.Loha: dict(alpha=8),
    inlay.Lokr: dict(alpha=8),
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
    given = losses(directory, tmp_path / "given", inlay.Lora(r=4, lora_alpha=2), learning_rate=1e-3)
    same = inlay.Lora(r=4, lora_alpha=2, loraplus_lr_ratio=16)
    found = losses(directory, tmp_path, same, learning_rate=1e-3)
    assert found[-1] < given[-1]


def test_the_screen_says_so(directory):
    config = inlay.load(directory).model.config
    usual, other = (str(plan(Settings(), 40, config, inlay.Lora(r=4, lora_alpha=alpha))) for alpha in (32, 2))
    assert "times that" not in usual
    assert "lora_B's 16 times that" in other
