"""What `inlay.load` makes of a checkpoint computes what `transformers` makes of it, for every architecture that there is a small
model of. What is found stands in docs/reference/models.md, cell by cell; see `tests/support/pages.py` for how it is written."""

import os

import pytest
import torch
import transformers

from tests.support import architectures, columns, pages

WHOLE = [
    "bert", "bloom", "cohere", "dbrx", "deepseek_v3", "diffllama", "electra", "falcon", "falcon_h1", "gemma2",
    "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "gptj", "granitemoe", "granitemoehybrid", "jamba", "jetmoe", "lfm2",
    "llama", "llama4_text", "mamba", "mamba2", "minimax", "mixtral", "modernbert-decoder", "mpt", "nanochat", "opt",
    "phi3", "qwen2_moe", "qwen3", "qwen3_next", "recurrent_gemma", "roberta", "rwkv", "zamba",
]  # fmt: skip
"""The architectures of which every run asks everything: one of each way in which blocks, experts, attention, state, positions
and head are made, and of each answer in the table. Of the others it asks the logits and the training; the rest is slow."""
BY_DEFAULT = ("equal logits", "training")
OTHERWISE = [column for column in columns.COLUMNS if column not in BY_DEFAULT]

HEADER = [
    "# Models",
    "",
    "A base may be any causal language model of `transformers` that is not refused by name. What was tried of each:",
    "",
    f"Made by `tests/laws/test_architectures.py` with transformers {transformers.__version__}, torch "
    f"{torch.__version__.partition('+')[0]}: small random models of each architecture, every parameter generic, in float32.",
    "Whatever is not refused by name is held to what `transformers` computes, to 1e-5 of the largest logit:",
    "",
    "- *equal logits*: alone, padded on either side, in training mode.",
    "- *training*: the loss of rows together is the sum of those of each row alone; packed, or padded and why.",
    "- *merge*: `transformers` reads the merged checkpoint and says what base and adapter say.",
    "- *generate*: the same greedy answers to prompts of different lengths.",
    "- *mixed rows*: rows of one batch take different adapters, or none.",
    "- *prefix*: a prefix does what a cache of the same keys and values does.",
    "",
    "| model_type | " + " | ".join(columns.COLUMNS) + " |",
    "|" + "---|" * (1 + len(columns.COLUMNS)),
]
CLASSIFIERS = ("sequence-classification", "token-classification", "embedding")
OTHERS = [(kind, task) for kind in architectures.ENCODERS for task in CLASSIFIERS]
OTHERS += [(kind, "seq2seq") for kind in architectures.SEQ2SEQ]
OTHERS += [(kind, "sequence-classification") for kind in ("llama", "gpt2", "qwen3")]
TAIL = [
    "",
    "Other tasks, whose logits or hidden states are held to the same, alone and padded:",
    "",
    *(
        f"- {task}: {', '.join(f'`{kind}`' for kind, other in OTHERS if other == task)}"
        for task in (*CLASSIFIERS, "seq2seq")
    ),
]


def written():
    """The cells of the committed page by architecture and column."""
    lines = [line for line in (pages.REFERENCE / "models.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): dict(zip(columns.COLUMNS, row[1:], strict=True)) for row in rows}


@pytest.fixture(scope="module")
def pair(request, tmp_path_factory):
    return columns.Pair(tmp_path_factory.mktemp("base"), request.param)


def _pairs(slow=()):
    """Each architecture, to be made once; some are slow."""
    kinds = [pytest.param(kind, marks=[pytest.mark.slow] if kind in slow else []) for kind in architectures.CAUSAL]
    return pytest.mark.parametrize("pair", kinds, indirect=True, scope="module")


@_pairs()
@pytest.mark.parametrize("column", BY_DEFAULT)
def test_an_architecture_does_what_transformers_does_or_is_refused(pair, column):
    _check(pair, column)


@_pairs(slow=architectures.CAUSAL.keys() - WHOLE)
@pytest.mark.parametrize("column", OTHERWISE)
def test_so_it_does_when_it_is_merged_asked_and_mixed(pair, column):
    _check(pair, column)


def _check(pair, column):
    found = columns.cell(pair, column)
    if not os.environ.get(pages.SWITCH):
        assert found == written()[pair.kind][column]


@pytest.mark.parametrize(("kind", "task"), OTHERS, ids=lambda value: value)
def test_models_of_other_tasks_do_what_transformers_does(kind, task, tmp_path):
    columns.logits(columns.Pair(tmp_path, kind, task))


def test_every_answer_of_the_table_is_asked_for_by_every_run():
    """What only one architecture in the table answers is not left to the slow cases."""
    rows = written()
    assert set(WHOLE) <= rows.keys()
    for column in OTHERWISE:
        assert {rows[kind][column] for kind in WHOLE} == {row[column] for row in rows.values()}


def test_the_page_has_every_architecture(tmp_path):
    is_asked_for = bool(os.environ.get(pages.SWITCH))
    rows = _rows(tmp_path) if is_asked_for else written()
    assert list(rows) == sorted(architectures.CAUSAL)
    lines = [f"| `{kind}` | " + " | ".join(row.values()) + " |" for kind, row in rows.items()]
    pages.check("models", [*HEADER, *lines, *TAIL])


def _rows(folder):
    rows = {}
    for kind in sorted(architectures.CAUSAL):
        found = columns.Pair(folder / kind, kind)
        rows[kind] = {column: columns.cell(found, column) for column in columns.COLUMNS}
    return rows


def test_no_architecture_that_is_refused_altogether_is_counted():
    """At least sixty are computed as `transformers` computes them, and trained."""
    rows = written().values()
    assert sum(row["equal logits"] == "yes" and not row["training"].startswith("refused") for row in rows) >= 60
