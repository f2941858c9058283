"""What `inlay.load` makes of a checkpoint computes what `transformers` makes of it, for every architecture that there is a small
model of. What is found stands in docs/reference/models.md, cell by cell; see `tests/support/pages.py` for how it is written."""

import os

import pytest
import torch
import transformers

from tests.support import architectures, columns, pages

HEADER = [
    "# Models",
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


@pytest.fixture(scope="module", params=architectures.CAUSAL)
def pair(request, tmp_path_factory):
    return columns.Pair(tmp_path_factory.mktemp("base"), request.param)


@pytest.mark.parametrize("column", columns.COLUMNS)
def test_an_architecture_does_what_transformers_does_or_is_refused(pair, column):
    found = columns.cell(pair, column)
    if not os.environ.get(pages.SWITCH):
        assert found == written()[pair.kind][column]


def test_tokens_see_nothing_of_what_comes_after_them(pair):
    pair.base.check_causal()


@pytest.mark.parametrize(("kind", "task"), OTHERS, ids=lambda value: value)
def test_models_of_other_tasks_do_what_transformers_does(kind, task, tmp_path):
    columns.logits(columns.Pair(tmp_path, kind, task))


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
