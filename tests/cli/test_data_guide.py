"""docs/guides/data.md: what `--show-tokens` prints of its rows is what the page says, and every name that is read stands in it."""

import json
import re
from pathlib import Path

import pytest

from inlay.data import keys
from inlay.data.folders import SPLITS
from inlay.data.forms import read
from inlay.tasks.causal_lm import prepare
from inlay.text.mask import show
from tests.templates import others, thinkers
from tests.templates.families import tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "data.md").read_text("utf-8")
SHOWN = re.findall(r"```json\n(.*?)\n```\n```text\n(.*?)\n```", PAGE, re.DOTALL)


def printed(row):
    """What the command prints of a row, with a template that has a place for what it says."""
    family = thinkers.FAMILIES["qwen-3"] if "reasoning_content" in json.dumps(row) else others.FAMILIES["hermes"]
    data = read([row])
    lines = [f"{'' if i else 'data':<10}{note}" for i, note in enumerate(data.notes)]
    for i, example in enumerate(prepare(data.rows, tokenizer(family), 10_000, "completions", None).examples):
        lines.append(f"row {i} ({len(example.input_ids)} tokens, {example.num_trained} trained on)")
        lines.append("  " + show(tokenizer(family), example))
    return "\n".join(lines)


@pytest.mark.parametrize(("row", "shown"), SHOWN)
def test_the_page_shows_what_is_printed(row, shown):
    assert printed(json.loads(row)) == shown
    assert "[[" in shown


def test_every_layout_is_shown():
    assert len(SHOWN) >= 8
    columns = {key for row, _ in SHOWN for key in json.loads(row)}
    assert {"prompt", "instruction", "messages", "conversations", "question", "tools", "text"} <= columns


def test_every_name_that_is_read_stands_on_the_page():
    names = {
        *keys.CONVERSATIONS, *keys.PROMPTS, *keys.COMPLETIONS, *keys.SYSTEMS, *keys.TOOLS, keys.HISTORY, *keys.PREFERENCES,
        *keys.IGNORED, *keys.ROLES, *keys.WHO, *keys.WHAT, *keys.THOUGHTS, *keys.FLAGS,
        *(name for some in keys.CONTEXTS.values() for name in some),
    }  # fmt: skip
    assert {name for name in names if name and f"`{name}`" not in PAGE} == set()
    words = re.search(r"The words are (.*?)\. ", PAGE, re.DOTALL)[1].replace("held-out", "heldout")
    assert set(re.findall(r"[a-z]+", words)) == set(SPLITS)
