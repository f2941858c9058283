"""What a model can't take is refused in words, before anything is computed; what one row can't take costs no other row its answer."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import inlay
from inlay.base.load import load
from inlay.errors import CompatibilityError, FormatError, InlayError
from inlay.methods.prompt import Prompt
from tests.support import architectures, bases, models
from tests.support.refusals import refused, train
from tests.support.tolerances import LOGITS

CAUSAL, CLASSES = "AutoModelForCausalLM", "AutoModelForSequenceClassification"


def causal(folder, kind):
    torch.manual_seed(7)
    architectures.directory(folder, CAUSAL, kind)
    return load(folder, dtype="float32")


@pytest.fixture
def longer_tokenizer(tmp_path):
    """A base whose tokenizer has a token, and a padding token, beyond the model's embeddings."""
    bases.directory(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    missing = models.VOCABULARY - len(tokenizer)
    tokenizer.add_tokens([f"<|{number}|>" for number in range(missing)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|me|>"], "pad_token": "<|pad|>"})
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path


def test_a_row_with_a_token_beyond_the_embeddings_is_refused_by_name(longer_tokenizer, capsys):
    rows = bases.rows(8)
    rows[3] = {"text": "say <|me|>"}
    rows = [{"text": row.get("text", "it is")} for row in rows]
    bases.jsonl(longer_tokenizer / "rows.jsonl", rows)
    refused(capsys, *train(longer_tokenizer, "--eval-fraction", 0), says=["no embeddings for", "rows.jsonl:4"])
    base = inlay.load(longer_tokenizer / "base")
    number = base.tokenizer.convert_tokens_to_ids("<|me|>")
    assert number >= models.VOCABULARY
    with pytest.raises(CompatibilityError, match="no embeddings for") as caught, torch.no_grad():
        base.model(input_ids=torch.tensor([[5, number]]))
    assert f"<|me|>' ({number})" in str(caught.value)


def test_a_padding_token_beyond_the_embeddings_is_not_used(longer_tokenizer):
    base = inlay.load(longer_tokenizer / "base", dtype="float32")
    assert base.tokenizer.pad_token_id >= models.VOCABULARY
    prompts = ["say it is", "it"]
    together = base.generate(prompts, max_new_tokens=3)
    assert together == [base.generate([prompt], max_new_tokens=3)[0] for prompt in prompts]


@pytest.mark.parametrize(("kind", "others"), [("roberta", 2), ("mpnet", 2), ("bert", 0), ("electra", 0)])
def test_positions_that_are_not_for_tokens_are_not_counted(tmp_path, kind, others):
    architectures.directory(tmp_path / "base", CLASSES, kind)
    base = inlay.load(tmp_path / "base", task="sequence-classification")
    positions = base.model.config.max_position_embeddings - others
    assert base.max_length == positions
    ids = torch.full((1, positions), 5)
    assert base.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


@pytest.mark.parametrize("is_there", [True, False])
def test_a_decoder_without_a_first_token_is_refused(tmp_path, is_there):
    architectures.directory(tmp_path / "base", "AutoModelForSeq2SeqLM", "t5")
    inlay.load(tmp_path / "base", task="seq2seq")
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / "base" / name
        config = json.loads(path.read_text("utf-8")) | {"decoder_start_token_id": None}
        if not is_there:
            del config["decoder_start_token_id"]
        path.write_text(json.dumps(config), "utf-8")
    with pytest.raises(FormatError, match="which token its decoder starts with") as caught:
        inlay.load(tmp_path / "base", task="seq2seq")
    assert "decoder_start_token_id" in str(caught.value)


@pytest.mark.parametrize("count", [-1, 0, 1])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_fewer_layers_than_the_files_hold_are_refused(tmp_path, family, count):
    folder = bases.directory(tmp_path / "base", family)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    name = "n_layer" if family == "gpt2" else "num_hidden_layers"
    assert config[name] == 3
    (folder / "config.json").write_text(json.dumps(config | {name: count}), "utf-8")
    with pytest.raises(InlayError) as caught:
        inlay.load(folder)
    assert "layer" in str(caught.value)


def test_a_file_of_more_layers_is_refused(tmp_path):
    folder = bases.directory(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    more = {name.replace("layers.2", "layers.3"): t.clone() for name, t in tensors.items() if "layers.2" in name}
    save_file(tensors | more, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match="more layers") as caught:
        inlay.load(folder)
    assert "has 3 layers, the files 4" in str(caught.value)


@pytest.mark.parametrize(("kind", "takes"), [("rwkv", False), ("mamba", True), ("bloom", True), ("jamba", True)])
def test_rows_of_unequal_length_are_answered_as_alone(tmp_path, kind, takes):
    base = causal(tmp_path / "base", kind)
    layer = {"rwkv": "key", "mamba": "in_proj", "bloom": "query_key_value", "jamba": "in_proj"}[kind]
    models.randomize(base.attach(inlay.Lora(r=2, target_modules=layer), "one"), seed=3)
    prompts, names = ["say", "it is all the same to me", "so"], [None, "one", None]
    together = base.generate(prompts, names, max_new_tokens=4)
    assert together == [base.generate([p], [n], max_new_tokens=4)[0] for p, n in zip(prompts, names, strict=True)]
    assert base.takes_padding is takes


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_virtual_tokens_of_a_recurrent_model_are_tokens_in_answers_too(tmp_path, kind):
    base = causal(tmp_path / "base", kind)
    adapter, before = base.attach(Prompt(num_virtual_tokens=3), "new"), [9, 40, 33]
    table = base.layout.modules[base.layout.table]
    adapter.params = {"": {"prompt_embeddings": table(torch.tensor(before))}}
    ids = torch.tensor([before + base.tokenizer("say it")["input_ids"]])
    settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=base.stop_ids(), pad_token_id=0)
    with base.using(None):
        out = base.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    said = base.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert said
    assert base.generate(["say it"], "new", max_new_tokens=6, raw=True) == [said]


def test_a_row_that_is_not_a_number_costs_no_other_row_its_answer(tmp_path):
    base = load(bases.directory(tmp_path / "base"), dtype="float32")
    for name, size in (("good", 0.3), ("huge", 1e30)):
        models.randomize(base.attach(inlay.Lora(r=2, target_modules="down_proj"), name), seed=3, std=size)
    prompts = ["say it", "it is", "so it is"]
    with pytest.warns(UserWarning, match=r"row 2 .adapter huge.; the others are answered"):
        together = base.generate(prompts, ["good", "huge", None], max_new_tokens=3)
    assert together[1] == ""
    assert together[::2] == base.generate(prompts[::2], ["good", None], max_new_tokens=3)
    with pytest.raises(FormatError, match="not a number") as caught:
        base.generate(prompts[:1], "huge", max_new_tokens=3)
    assert "row 1 (adapter huge)" in str(caught.value)


def test_a_whole_module_and_none_share_a_batch_where_the_module_answers_with_several_tensors(tmp_path):
    base = causal(tmp_path / "base", "gpt_oss")
    models.randomize(base.attach(inlay.Lora(r=2, modules_to_save="router"), "whole"), seed=3, std=0.3)
    ids = architectures.tokens(3, 3)
    mixed = base.logits(ids, ["whole", None, "whole"])
    for row, name in enumerate(["whole", None, "whole"]):
        alone = base.logits(ids[row : row + 1], name)
        assert (mixed[row : row + 1] - alone).abs().max() <= LOGITS * alone.abs().max()
    router = base.adapters["whole"].params["model.layers.0.mlp.router"]["weight"]
    assert (router - base.layout.modules["model.layers.0.mlp.router"].weight).abs().max() > 0.1
