"""Methods where they make no sense: refused by name, with the reason and what to type."""

import json

import pytest
import torch
from torch import nn
from transformers import BertModel

import inlay
from inlay.base.load import load
from inlay.errors import CompatibilityError, ConfigError, TargetError
from tests.support import bases, models, quantized
from tests.support.networks import Convolutional
from tests.support.refusals import refused, train
from tests.support.tasks import BERT


@pytest.fixture
def base(tmp_path):
    return load(bases.directory(tmp_path / "base", "llama_tied"), dtype="float32")


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (inlay.Prompt(), "its virtual tokens stand in the rows, not in the weights"),
        (inlay.Prefix(), "its virtual tokens stand in the rows, not in the weights"),
        (inlay.PTuning(), "its virtual tokens stand in the rows, not in the weights"),
        (inlay.Bottleneck(), "its network adds depth to every layer"),
    ],
)
def test_what_no_weight_can_hold_is_not_merged(base, tmp_path, method, reason):
    base.attach(method, "it")
    with pytest.raises(CompatibilityError, match=f"can't be merged: {reason}"):
        inlay.merge(base, "it", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_kind_of_layer_that_a_method_does_not_know(place, capsys):
    says = ["ia3 can't adapt these layers, only linear", "model.embed_tokens is embedding", "--method lora"]
    refused(capsys, *train(place)[:7], "--method", "ia3", "--target-modules", "embed_tokens", says=says)


def test_a_method_of_no_such_name(place, capsys):
    says = ["--method takes no such value", "--method dora"]
    refused(capsys, *train(place)[:7], "--method", "dorra", says=says, status=2)


@pytest.mark.parametrize(("name", "hint"), [("pisa", "--initializer pissa"), ("olora", "--initializer lora_ga")])
def test_an_initializer_of_no_such_name(place, capsys, name, hint):
    says = ["--initializer takes no such value", "uniform, eva, loftq", hint]
    refused(capsys, *train(place)[:7], "--initializer", name, says=says, status=2)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--initializer", "loftq"], ["not quantised", "--quantize nf4"]),
        (
            ["--initializer", "eva", "--target-modules", "embed_tokens"],
            ["for linear and conv2d", "embed_tokens is embedding", "uniform"],
        ),
    ],
)
def test_an_initializer_that_has_nothing_to_start_from(place, capsys, flags, says):
    refused(capsys, *train(place)[:7], *flags, says=says)
    assert not list(place.glob("out*"))


def test_a_parallel_adapter_where_the_mlp_is_no_single_module():
    with pytest.raises(TargetError, match="28 inputs, where the stream has 20 numbers"):
        inlay.attach(BertModel(BERT), inlay.Bottleneck(placement="parallel"))


def test_an_adapter_whose_record_has_settings_that_are_no_more_is_the_same(base, tmp_path):
    """Only training read them: `inlay.json` says how the factors were started, the file itself is a plain LoRA."""
    models.randomize(base.attach(inlay.Lora(r=6, lora_alpha=10), "a"), seed=3)
    (tmp_path / "a").mkdir()
    base.save("a", tmp_path / "a", {"method": {"name": "lora", "initializer": "olora", "eva_rho": 2.0, "r": 3}})
    again = base.attach(tmp_path / "a", name="again")
    assert again.method == inlay.Lora(r=6, lora_alpha=10, target_modules=again.method.target_modules)
    assert torch.equal(base.logits(models.tokens(2, 7), "again"), base.logits(models.tokens(2, 7), "a"))


def test_a_setting_that_is_no_more_is_named(place, capsys):
    (place / "old.yaml").write_text("method: lora\ninitializer: eva\neva_rho: 2.0\n")
    refused(capsys, *train(place)[:5], "--config", place / "old.yaml", says=["a name that is no setting", "eva_rho"])


@pytest.mark.parametrize("name", ["eva", "lora_ga"])
def test_an_initializer_that_needs_rows_where_there_are_none(base, name):
    with pytest.raises(ConfigError, match="needs a calibration"):
        base.attach(inlay.Lora(initializer=name))
    assert not base.adapters


@pytest.mark.parametrize(
    ("ids", "says"), [((99,), "99, in 1 tokens, where the model has"), ((3, 3), "3, in 2 tokens"), ((-1,), "-1, in")]
)
def test_tokens_that_the_model_does_not_have(base, ids, says):
    with pytest.raises(TargetError, match=says):
        base.attach(inlay.Lora(trainable_token_indices=ids))
    assert not base.adapters


@pytest.mark.parametrize("whole", ["embed_tokens", "lm_head"])
def test_rows_of_tokens_beside_the_whole_table(base, whole):
    with pytest.raises(TargetError, match="can't be trained beside the whole table"):
        base.attach(inlay.Lora(trainable_token_indices=(3,), modules_to_save=whole))
    assert not base.adapters


def test_a_rank_too_large_names_the_layer(base):
    with pytest.raises(ConfigError, match=r"28 outputs(.|\n)*--exclude-modules gate_proj"):
        base.attach(inlay.Lora(r=24, target_modules="gate_proj"))


def test_rows_of_tokens_where_the_embedding_is_no_plain_table(tmp_path):
    gemma = load(bases.directory(tmp_path / "gemma", "gemma3"), dtype="float32")
    with pytest.raises(TargetError, match="no embeddings of single tokens to train"):
        gemma.attach(inlay.Lora(trainable_token_indices=(3,)))


def test_rows_of_tokens_of_several_modules_are_refused_by_name(base, tmp_path):
    base.attach(inlay.Lora(trainable_token_indices=(3, 5)), "a")
    (tmp_path / "a").mkdir()
    base.save("a", tmp_path / "a", {})
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text("utf-8"))
    config["trainable_token_indices"] = {"embed_tokens": [3, 5], "lm_head": [3, 5]}
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(CompatibilityError, match=r"tokens of several modules.*\n.*embed_tokens, lm_head"):
        base.attach(tmp_path / "a", "again")


def test_loftq_on_a_base_whose_original_is_not_known(tmp_path):
    directory, _ = quantized.directory(tmp_path / "base", "llama", "nf4")
    with pytest.raises(ConfigError, match="its original is not known"):
        load(directory, dtype="float32").attach(inlay.Lora(initializer="loftq"))


def test_a_model_without_biases_has_nothing_for_bitfit(base):
    with pytest.raises(TargetError, match="nothing that bitfit could train"):
        base.attach(inlay.Bitfit())
    assert not base.adapters


@pytest.mark.parametrize("method", [inlay.Full(), inlay.Lora(modules_to_save="q_proj")])
def test_a_quantised_weight_is_not_trained(tmp_path, method):
    directory, _ = quantized.directory(tmp_path / "base", "llama", "nf4")
    with pytest.raises(TargetError, match="a quantised weight can't be trained"):
        load(directory, dtype="float32").attach(method)


@pytest.mark.parametrize("method", [inlay.Prompt(), inlay.Prefix(), inlay.PTuning()])
def test_virtual_tokens_need_a_language_model(method):
    with pytest.raises(TargetError, match="no rows of tokens"):
        inlay.attach(Convolutional(), method)


def test_blocks_need_layers():
    with pytest.raises(TargetError, match="nothing that bottleneck could train"):
        inlay.attach(Convolutional(), inlay.Bottleneck())


def test_a_convolution_in_groups_is_no_map(tmp_path):
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(TargetError, match="matches no"):
        inlay.attach(network, inlay.Lora(r=1, target_modules="0"))


def test_a_module_to_save_that_is_none(base):
    with pytest.raises(TargetError, match="modules_to_save") as error:
        base.attach(inlay.Lora(r=2, modules_to_save="lm_haed"))
    assert "lm_haed" in str(error.value)
    assert "--modules-to-save lm_head" in str(error.value)


def test_a_prompt_without_its_text():
    with pytest.raises(ConfigError, match="TEXT needs a text"):
        inlay.Prompt(prompt_tuning_init="TEXT")


def test_rows_with_an_empty_cache_bring_their_virtual_tokens(base):
    from transformers import DynamicCache

    base.attach(inlay.Prompt(num_virtual_tokens=2), "it")
    with pytest.raises(CompatibilityError, match="do not have their virtual tokens"):
        base.model(input_ids=torch.tensor([[3, 4]]), past_key_values=DynamicCache(config=base.model.config))


def test_an_embedding_of_another_base_in_the_file(base, tmp_path):
    """PEFT writes the whole table beside an adapter of it; one that is not this base's would be dropped in silence there."""
    from safetensors.torch import load_file, save_file

    base.attach(inlay.Lora(r=2, target_modules="embed_tokens"), "it")
    (tmp_path / "it").mkdir()
    base.save("it", tmp_path / "it", {})
    file = tmp_path / "it" / "adapter_model.safetensors"
    table = base.maps["model.embed_tokens"].stored.detach().clone()
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    save_file(load_file(file) | {key: table}, file)
    base.attach(tmp_path / "it", "same")
    save_file(load_file(file) | {key: table + 1}, file)
    with pytest.raises(CompatibilityError, match="is not this base's"):
        base.attach(tmp_path / "it", "another")


def test_a_network_whose_answer_is_multiplied_by_nothing():
    with pytest.raises(ConfigError, match="scaling must not be 0"):
        inlay.Bottleneck(scaling=0)
