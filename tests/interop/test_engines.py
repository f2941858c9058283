"""What is said of other engines: `transformers` is asked, the others by what their sources say of each feature.

`tests/engines` asks all of them; it needs an environment of each.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import inlay
from inlay import engines, methods
from inlay.engines import LLAMA_CPP, OLLAMA, PEFT, SGLANG, TRANSFORMERS, VLLM
from inlay.formats import peft
from inlay.io import safetensors
from tests.engines import page
from tests.support import bases, models
from tests.support import tasks as support
from tests.support.command import run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "bias": "none", "use_dora": False}
TENSORS = {
    f"base_model.model.model.layers.0.{name}.lora_{part}.weight": shape
    for name in ("q_proj", "k_proj", "v_proj")
    for part, shape in (("A", (8, 20)), ("B", (20, 8)))
}
ALL = [*engines.FORMS]
LAYER = "base_model.model.model.layers.0"

CASES = [
    ({}, {}, ALL),
    ({"task_type": None}, {}, ALL),
    ({"rank_pattern": {"q_proj": 4}}, {}, [PEFT, TRANSFORMERS, VLLM, LLAMA_CPP, OLLAMA]),
    ({"use_dora": True}, {f"{LAYER}.q_proj.lora_magnitude_vector": (20,)}, [PEFT]),
    ({"peft_type": "VERA"}, {}, [PEFT]),
    ({"use_rslora": True}, {}, [PEFT, TRANSFORMERS, VLLM]),
    ({"alpha_pattern": {"q_proj": 4}}, {}, [PEFT, TRANSFORMERS, VLLM]),
    ({"bias": "lora_only"}, {f"{LAYER}.q_proj.base_layer.bias": (20,)}, [PEFT, TRANSFORMERS]),
    ({"bias": "all"}, {}, [PEFT, TRANSFORMERS]),
    ({"lora_bias": True}, {}, [PEFT, TRANSFORMERS]),
    ({"modules_to_save": ["lm_head"]}, {"base_model.model.lm_head.weight": (99, 20)}, [PEFT, TRANSFORMERS]),
    (
        {"task_type": "SEQ_CLS", "modules_to_save": ["score"]},
        {"base_model.model.score.weight": (2, 20)},
        [PEFT, TRANSFORMERS],
    ),
    ({"task_type": "FEATURE_EXTRACTION"}, {}, [PEFT, TRANSFORMERS]),
    ({"trainable_token_indices": [3]}, {}, [PEFT, TRANSFORMERS]),
    ({"target_parameters": ["experts.gate_up_proj"]}, {}, [PEFT, TRANSFORMERS]),
    ({}, {"base_model.model.x.embed_tokens.lora_embedding_A": (8, 99)}, [PEFT, TRANSFORMERS, VLLM]),
    ({}, {"base_model.model.lm_head.lora_A.weight": (8, 20)}, [PEFT, TRANSFORMERS]),
    ({}, {f"{LAYER}.conv.lora_A.weight": (8, 3, 3, 3)}, [PEFT, TRANSFORMERS]),
    ({}, {f"{LAYER}.q_proj.base_layer.weight": (20, 20)}, [PEFT, TRANSFORMERS]),
    ({}, {f"{LAYER}.up_proj.lora_A.weight": (8, 20)}, [one for one in ALL if one != SGLANG]),
    ({"r": 1024}, {}, [one for one in ALL if one != VLLM]),
    ({"rank_pattern": {"q_proj": 600}}, {}, [PEFT, TRANSFORMERS, LLAMA_CPP, OLLAMA]),
    ({"peft_type": "IA3"}, {}, [PEFT, TRANSFORMERS]),
    ({"peft_type": "PREFIX_TUNING"}, {"prompt_embeddings": (20, 40)}, [PEFT]),
    ({"peft_type": "BITFIT"}, {}, []),
]


@pytest.mark.parametrize(("changes", "more", "expected"), CASES)
def test_an_engine_is_named_where_it_does_all_that_the_files_say(changes, more, expected):
    config, shapes = PLAIN | changes, TENSORS | more
    assert set(engines.reasons(config, shapes)) == set(ALL) - set(expected)
    assert engines.loading(config, shapes) == [one for one in expected if engines.FORMS[one] == "peft"]


def test_every_line_of_the_table_is_tried_alone():
    hit = {
        feature.name
        for changes, more, _ in CASES
        for features in engines.reasons(PLAIN | changes, TENSORS | more).values()
        for feature in features
    }
    assert hit == {feature.name for feature in engines.FEATURES}


def test_what_export_cures_keeps_nobody_out():
    for changes, more, _ in CASES:
        found = engines.reasons(PLAIN | changes, TENSORS | more)
        left = {engine: {f.name for f in features if f.cure != "export"} for engine, features in found.items()}
        said = engines.incurable(PLAIN | changes, TENSORS | more)
        assert {engine: {f.name for f in features} for engine, features in said.items()} == {
            engine: names for engine, names in left.items() if names
        }


def test_the_page_says_what_the_table_says_and_the_engines_answered():
    """python -c "from tests.engines import page; page.PAGE.write_text(page.text())" writes it anew."""
    assert page.PAGE.read_text("utf-8") == page.text()


def saved(tmp_path, method, family="llama"):
    base = inlay.load(bases.directory(tmp_path / "base", family))
    models.randomize(base.attach(method, "mine"), seed=3, std=0.05)
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    return base


@pytest.mark.parametrize("name", methods.names())
def test_transformers_loads_what_the_table_says(tmp_path, capsys, name):
    base = saved(tmp_path, methods.find(name)())
    found = said(tmp_path / "mine")
    assert (PEFT in found) == bool(methods.find(name).peft.type)
    assert (VLLM in found) == (name == "lora")
    assert (TRANSFORMERS in found) == as_in_transformers(tmp_path, base)
    text = (tmp_path / "mine" / "README.md").read_text()
    line = next(
        line for line in run(capsys, "inspect", tmp_path / "mine")[1].splitlines() if line.startswith("loads in")
    )
    for engine in engines.reading("peft"):
        assert (engine in text.partition(" load in ")[2]) == (engine in line) == (engine in found)
    assert ("library_name: peft" in text) == (PEFT in found)


def as_in_transformers(tmp_path, base):
    """Its own loader gives our logits."""
    ids = models.tokens(2, 9)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    try:
        theirs.load_adapter(str(tmp_path / "mine"))
        with torch.no_grad():
            return torch.allclose(theirs(input_ids=ids).logits, base.logits(ids, "mine"), atol=1e-4)
    except Exception:  # whatever it refuses such an adapter with
        return False


def said(directory):
    entries = safetensors.read_header(directory / peft.TENSORS).tensors
    config = json.loads((directory / peft.CONFIG).read_text())
    return engines.loading(config, {name: entry.shape for name, entry in entries.items()})


@pytest.mark.parametrize(
    ("settings", "feature"),
    [
        ({"use_rslora": True}, "rsLoRA"),
        ({"bias": "lora_only"}, "biases"),
        ({"modules_to_save": ("lm_head",)}, "whole modules"),
        ({"target_modules": "embed_tokens,q_proj"}, "embeddings"),
        ({"trainable_token_indices": (3, 9)}, "single tokens"),
        ({"alpha_pattern": {"q_proj": 7}}, "an alpha_pattern"),
    ],
)
def test_what_keeps_an_engine_out_is_said_of_our_own_files(tmp_path, capsys, settings, feature):
    base = saved(tmp_path, inlay.Lora(r=2, **settings))
    assert (TRANSFORMERS in said(tmp_path / "mine")) == as_in_transformers(tmp_path, base)
    _, out, _ = run(capsys, "inspect", tmp_path / "mine")
    line = next(line for line in out.splitlines() if line.startswith("not in"))
    assert feature in line.partition("sglang (")[2]
    assert "sglang" not in (tmp_path / "mine" / "README.md").read_text()


def test_a_classifier_is_said_to_load_in_vllm_nowhere(tmp_path, capsys):
    base = inlay.load(
        support.directory(tmp_path / "base", "bert"), task="sequence-classification", labels=["no", "yes"]
    )
    base.attach(inlay.Lora(r=2), "mine")
    (tmp_path / "mine").mkdir()
    base.save("mine", tmp_path / "mine", {})
    assert said(tmp_path / "mine") == [PEFT, TRANSFORMERS]
    text = (tmp_path / "mine" / "README.md").read_text()
    assert "load in peft, transformers;" in text
    assert "inlay predict" in text
