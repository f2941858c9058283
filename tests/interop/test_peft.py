"""Against the real `peft`: files both ways, and the same numbers from the same training."""

import dataclasses
import json
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import inlay
from inlay import formats, methods
from inlay.base.attach import attach
from inlay.base.load import load
from inlay.core.cross_entropy import IGNORE
from inlay.errors import CompatibilityError
from inlay.formats.peft import CONFIG, TENSORS
from inlay.packing import rows as batch
from inlay.text.mask import Example
from inlay.training import schedule
from inlay.training.settings import Plan, Settings
from inlay.training.state import TrainState
from inlay.training.step import step_
from tests.support import bases, models
from tests.support.paths import DEMO_BASE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LOGITS = 1e-5
"""The agreement that the exchange format is held to, in float32."""

CASES = {
    "plain": dict(r=3, lora_alpha=7),
    "rslora": dict(r=5, lora_alpha=3, use_rslora=True),
    "names": dict(r=2, lora_alpha=5, target_modules="{some}"),
    "layers": dict(r=2, lora_alpha=5, layers_to_transform=(1, 2)),
    "patterns": dict(r=3, lora_alpha=5, rank_pattern={"{one}": 2}, alpha_pattern={"{one}": 11}),
    "overlapping": dict(r=3, lora_alpha=5, rank_pattern={"{one}": 2, ".*": 4}, alpha_pattern={"{one}": 11, ".*": 7}),
    "excluded": dict(r=3, lora_alpha=5, exclude_modules="{one}"),
    "head": dict(r=3, lora_alpha=5, target_modules="{head}"),
}
NAMES = {
    "llama": dict(some="q_proj,down_proj", one="v_proj", head="lm_head"),
    "gpt2": dict(some="c_attn,c_fc", one="c_fc", head="c_attn"),
    "phi3": dict(some="qkv_proj", one="o_proj", head="lm_head"),
    "gpt_neox": dict(some="query_key_value", one="dense", head="lm_head"),
}


def _method(case, family):
    """The method of a case with the module names of a family."""
    return inlay.Lora(**json.loads(_filled(json.dumps(CASES[case]), NAMES[family]), object_hook=_tuples))


def _filled(text, names):
    for key, value in names.items():
        text = text.replace("{" + key + "}", value)
    return text


def _tuples(values):
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _close(ours, theirs):
    return (ours - theirs).abs().max().item() <= LOGITS * max(1, theirs.abs().max().item())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", NAMES)
def test_peft_reads_what_we_save(family, case, tmp_path):
    base = load(bases.directory(tmp_path / "base", family), dtype="float32")
    models.randomize(base.attach(_method(case, family), "ours"), seed=6)
    (tmp_path / "ours").mkdir()
    base.save("ours", tmp_path / "ours", {})
    ids = models.tokens(2, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # an unknown key or a missing tensor is a warning there
        theirs = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "ours"
        )
    with torch.no_grad():
        wanted = theirs.eval().double()(input_ids=ids).logits  # in float32, peft itself may be 2e-5 off
    assert _close(base.logits(ids, "ours"), wanted)
    assert not _close(base.logits(ids, None), wanted)


@pytest.mark.parametrize("case", ["plain", "rslora", "patterns", "names", "excluded"])
@pytest.mark.parametrize("family", NAMES)
def test_we_read_what_peft_saves(family, case, tmp_path):
    bases.directory(tmp_path / "base", family)
    method, names = _method(case, family), NAMES[family]
    wanted = method.target_modules if method.target_modules == "all-linear" else method.target_modules.split(",")
    config = peft.LoraConfig(
        r=method.r,
        lora_alpha=method.lora_alpha,
        use_rslora=method.use_rslora,
        target_modules=wanted,
        exclude_modules=[names["one"]] if method.exclude_modules else None,
        rank_pattern=dict(method.rank_pattern),
        alpha_pattern=dict(method.alpha_pattern),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it corrects fan_in_fan_out aloud
        theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
        theirs.save_pretrained(tmp_path / "theirs")
    base, ids = load(tmp_path / "base", dtype="float32"), models.tokens(2, 9)
    base.attach(tmp_path / "theirs")
    with torch.no_grad():
        assert _close(base.logits(ids, "theirs"), theirs(input_ids=ids).logits)


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.find(name).peft.type])
def test_what_a_file_leaves_out_is_what_peft_takes_for_it(name, tmp_path):
    """Files of old versions, and of other writers, lack keys: only peft_type is always there."""
    method = methods.find(name)
    held = attach(models.model("llama"), method())
    held.save("default", tmp_path, {})
    written = json.loads((tmp_path / CONFIG).read_text())
    always = {
        "peft_type",
        "target_modules",
        *method.peft.writes,
        *(("num_virtual_tokens",) if held["default"].num_virtual else ()),
    }
    (tmp_path / CONFIG).write_text(json.dumps({key: value for key, value in written.items() if key in always}))
    ours, theirs = formats.read(tmp_path).method, peft.PeftConfig.from_pretrained(tmp_path)
    fields = [field.name for field in dataclasses.fields(ours) if getattr(theirs, field.name, None) is not None]
    assert {"r", "lora_alpha"} <= set(fields) or method.peft.type != "LORA"
    for field in set(fields) - {"target_modules", "num_virtual_tokens"} - {*method.peft.omits}:
        assert getattr(ours, field) == getattr(theirs, field), field


OF_OLD_VERSIONS = {"enable_lora", "merge_weights"}
"""Keys of LoRA that peft does not have any more, and that its files of 2023 have."""


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.find(name).peft.type])
def test_every_key_of_a_method_is_one_of_peft(name):
    """A key that is misspelt would refuse files, or write what peft drops."""
    method = methods.find(name)
    form, ours = method.peft, {field.name for field in dataclasses.fields(method)}
    theirs = {field.name for field in dataclasses.fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[form.type])} | OF_OLD_VERSIONS
    assert {*form.accepts, *form.ignores, *form.writes, *form.defaults} - theirs == set()
    assert {*form.omits, *form.selections, *form.defaults} - ours == set()
    assert ours & {*form.ignores} == set()
    assert not {*form.accepts} & {*form.ignores}


def test_a_file_without_r_and_lora_alpha_does_what_it_does_in_peft(tmp_path):
    bases.directory(tmp_path / "base")
    config = peft.LoraConfig(init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / CONFIG
    path.write_text(
        json.dumps({key: v for key, v in json.loads(path.read_text()).items() if key not in ("r", "lora_alpha")})
    )
    base, ids = load(tmp_path / "base", dtype="float32"), models.tokens(2, 9)
    base.attach(tmp_path / "theirs")
    with torch.no_grad():
        assert _close(base.logits(ids, "theirs"), theirs(input_ids=ids).logits)


UNSUPPORTED = {
    "lora_bias": dict(lora_bias=True),
    "trainable_token_indices": dict(trainable_token_indices={"embed_tokens": [1, 2], "lm_head": [3]}),
    "pissa": dict(init_lora_weights="pissa"),
    "olora": dict(init_lora_weights="olora"),
    "layer_replication": dict(layer_replication=[[0, 2], [1, 3]]),
    "alora": dict(alora_invocation_tokens=[3]),
}


def test_a_kind_of_adapter_that_is_not_known_is_told_those_that_are_once_each(tmp_path):
    (tmp_path / CONFIG).write_text('{"peft_type": "BOFT"}')
    with pytest.raises(CompatibilityError) as error:
        formats.outline(tmp_path)
    known = error.value.found[0].partition("known are ")[2].split(", ")
    assert {"LORA", "IA3", "VERA"} <= set(known)
    assert len(known) == len(set(known))


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_we_do_not_do_is_refused_by_name(what, tmp_path):
    bases.directory(tmp_path / "base")
    config = peft.LoraConfig(
        **dict(r=2, lora_alpha=5, target_modules=["q_proj"], task_type="CAUSAL_LM") | UNSUPPORTED[what]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).save_pretrained(
            tmp_path / "it"
        )
    with pytest.raises((CompatibilityError, inlay.errors.FormatError)) as error:
        load(tmp_path / "base", dtype="float32").attach(tmp_path / "it")
    key = {"pissa": "init_lora_weights", "olora": "init_lora_weights", "alora": "alora_invocation_tokens"}
    assert key.get(what, what) in str(error.value)


def _vera(folder, save_projection):
    """What `peft` says of tokens with an adapter of VeRA that it wrote."""
    bases.directory(folder / "base")
    settings = dict(r=3, target_modules=["q_proj", "down_proj"], projection_prng_key=5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that their file has no projections
        config = peft.VeraConfig(**settings, save_projection=save_projection)
        theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config).eval()
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_()
        theirs.save_pretrained(folder / "theirs")
        return theirs(models.tokens(2, 9)).logits


def test_projections_that_a_file_of_vera_lacks_are_drawn_as_peft_draws_them(tmp_path):
    wanted = _vera(tmp_path, save_projection=False)
    assert not [key for key in load_file(tmp_path / "theirs" / TENSORS) if key.endswith(("vera_A", "vera_B"))]
    base = load(tmp_path / "base", dtype="float32")
    base.attach(tmp_path / "theirs")
    with torch.no_grad():
        plain, ours = (base.logits(models.tokens(2, 9), [name] * 2) for name in (None, "theirs"))
    assert _close(ours, wanted)
    assert not _close(plain, wanted)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("vera_A", lambda A: A[:, :-1], "vera_A: shape"),  # narrower than the widest layer
        ("vera_A", lambda A: torch.cat([A, A]), "vera_A: shape"),  # of another rank
        ("vera_B", lambda B: B[0], "vera_B: shape"),
    ],
)
def test_projections_of_another_shape_are_refused(tmp_path, name, change, says):
    _vera(tmp_path, save_projection=True)
    path = tmp_path / "theirs" / TENSORS
    tensors = load_file(path)
    key = f"base_model.{name}"
    tensors[key] = change(tensors[key]).contiguous()
    save_file(tensors, path)
    with pytest.raises(CompatibilityError, match="does not fit") as refused:
        load(tmp_path / "base", dtype="float32").attach(tmp_path / "theirs")
    assert says in str(refused.value)


def test_token_indices_by_the_name_of_their_module_are_read(tmp_path):
    bases.directory(tmp_path / "base")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [7, 3]}, task_type="CAUSAL_LM"
    )
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    base, ids = load(tmp_path / "base", dtype="float32"), models.tokens(2, 9)
    ids[0, :4] = torch.tensor([3, 7, 3, 8])
    base.attach(tmp_path / "theirs")
    with torch.no_grad():
        assert _close(base.logits(ids, "theirs"), theirs(input_ids=ids).logits)


def test_twenty_steps_give_the_losses_of_peft(tmp_path):
    """Same A and B, same batches, float32, AdamW, clipping: every loss within 1e-4 relative."""
    base = load(DEMO_BASE, dtype="float32")
    adapter = base.attach(inlay.Lora(r=8, lora_alpha=16), "same", seed=3)
    (tmp_path / "same").mkdir()
    base.save("same", tmp_path / "same", {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(DEMO_BASE), tmp_path / "same", is_trainable=True
        )
    trained = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == adapter.num_weights
    optimizer = torch.optim.AdamW(trained, lr=2e-3, weight_decay=0.0)
    state = TrainState.new(
        adapter, Settings(micro_batch_tokens=200, learning_rate=2e-3), Plan(20, 4, 2e-3, "as asked", 20)
    )
    generator = torch.Generator().manual_seed(4)
    for number in range(20):
        examples = _random_rows(generator)
        made = batch.collate(examples)
        labels = torch.nn.functional.pad(made.labels[:, :-1], (1, 0), value=IGNORE)
        loss = theirs(input_ids=made.input_ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.param_groups[0]["lr"] = 2e-3 * schedule.factor(number, 20)
        optimizer.step()
        optimizer.zero_grad()
        step_(base, state, examples)
        ours = state.progress.losses[-1]
        assert abs(ours - loss.item()) <= 1e-4 * loss.item()


def _random_rows(generator):
    """Four rows of unequal length, with targets only on their second halves."""
    rows = []
    for _ in range(4):
        length = int(torch.randint(8, 60, (), generator=generator))
        ids = torch.randint(3, 500, (length,), generator=generator).tolist()
        rows.append(Example(tuple(ids), tuple(i >= length // 2 for i in range(length)), "row"))
    return rows


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(r=st.integers(1, 6), alpha=st.sampled_from([1, 3, 7.5]), modules=st.sets(st.sampled_from(
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]), min_size=1))  # fmt: skip
def test_any_plain_lora_agrees(r, alpha, modules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    base = load(bases.directory(folder / "base"), dtype="float32")
    models.randomize(base.attach(inlay.Lora(r=r, lora_alpha=alpha, target_modules=tuple(modules)), "it"), seed=r)
    (folder / "it").mkdir()
    base.save("it", folder / "it", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "it")
    theirs = theirs.eval().double()  # in float32, peft itself may be 2e-5 off
    ids = models.tokens(2, 6)
    with torch.no_grad():
        assert _close(base.logits(ids, "it"), theirs(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("family", "names"), [("llama", ["norm"]), ("gpt2", ["_2"]), ("llama", ["layernorm", "lm_head"])]
)
def test_a_name_of_modules_to_save_is_the_end_of_any_other_as_in_peft(family, names, tmp_path):
    directory, ids = bases.directory(tmp_path / "base", family), models.tokens(2, 11)
    some = NAMES[family]["some"].split(",")
    more = {"modules_to_save": names, "init_lora_weights": False, "fan_in_fan_out": family == "gpt2"}
    config = peft.LoraConfig(r=3, target_modules=some, **more)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.5)
    theirs.save_pretrained(tmp_path / "theirs")
    base = load(directory, dtype="float32")
    adapter = base.attach(tmp_path / "theirs")
    assert any(set(params) <= {"weight", "bias"} for params in adapter.params.values())
    with torch.no_grad():
        assert _close(base.logits(ids, "theirs"), theirs.eval()(ids).logits)
    (tmp_path / "ours").mkdir()
    base.save("theirs", tmp_path / "ours", {})
    again = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32), tmp_path / "ours"
    )
    with torch.no_grad():
        assert _close(base.logits(ids, "theirs"), again.eval()(ids).logits)


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
def test_a_vocabulary_that_was_resized_comes_with_the_file(family, tmp_path):
    """PEFT adds embeddings and head to the file then; they are this file's own, whatever a base resized again has there."""
    bases.directory(tmp_path / "base", family)
    resized = models.model(family)
    resized.resize_token_embeddings(models.VOCABULARY + 3)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = peft.get_peft_model(resized, config).eval()
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    again = models.model(family)
    again.resize_token_embeddings(models.VOCABULARY + 3)  # its new rows are drawn anew
    again.save_pretrained(tmp_path / "resized")
    bases.tokenizer().save_pretrained(tmp_path / "resized")
    base = load(tmp_path / "resized", dtype="float32")
    base.attach(tmp_path / "theirs")
    ids = torch.arange(90, models.VOCABULARY + 3)[None]
    with torch.no_grad():
        assert _close(base.logits(ids, "theirs"), theirs(input_ids=ids).logits)
    (tmp_path / "ours").mkdir()
    base.save("theirs", tmp_path / "ours", {})
    base.attach(tmp_path / "ours")
    assert torch.equal(base.logits(ids, "ours"), base.logits(ids, "theirs"))
    with pytest.raises(CompatibilityError, match=r"shape \(100, 20\), here \(97, 20\)(.|\n)*vocabulary resized"):
        load(tmp_path / "base", dtype="float32").attach(tmp_path / "theirs")
