"""Model directories on disk: a real model's files where they are at hand, small random ones otherwise."""

import functools
import inspect
import json
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from tests.support import models

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def tokenizer(eos=True, template=None):
    """A byte-level tokenizer of printable characters, small enough for the small models."""
    characters = [chr(code) for code in range(32, 127) if chr(code) not in "{}~^`"]
    alphabet = [*SPECIAL.values(), "Ċ", *[c if c != " " else "Ġ" for c in characters]]
    built = Tokenizer(token_models.BPE(vocab={text: i for i, text in enumerate(alphabet)}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    special = {key: value for key, value in SPECIAL.items() if eos or key != "eos_token"}
    return PreTrainedTokenizerFast(tokenizer_object=built, chat_template=template, **special)


def made_once(make):
    """A function that fills a directory, `make(path, ...)`, does so once for the same arguments, and copies the files later."""
    masters = {}

    @functools.wraps(make)
    def copied(path, *args, **kwargs):
        given = inspect.signature(make).bind(path, *args, **kwargs)
        given.apply_defaults()
        key = repr(list(given.arguments.items())[1:])
        if key not in masters:
            master = Path(_FILES.name) / f"{make.__module__}{len(masters)}"
            make(master, *args, **kwargs)
            masters[key] = master, torch.get_rng_state()
        master, state = masters[key]
        shutil.copytree(master, path, copy_function=shutil.copyfile, dirs_exist_ok=True)
        torch.set_rng_state(state)  # as it stands where the files are made
        return Path(path)

    return copied


_FILES = tempfile.TemporaryDirectory(prefix="inlay-tests-")


@made_once
def directory(path, family="llama", seed=3, eos=True, template=None, **save):
    """A whole model directory of a family in `models.CONFIGS`."""
    models.model(family, seed=seed).save_pretrained(path, **save)
    tokenizer(eos, template).save_pretrained(path)


def jsonl(path, rows):
    """A file of rows."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return Path(path)


def rows(number, seed=0):
    """Small prompts and completions that a small model can be trained on."""
    return [{"prompt": f"say {i + seed}", "completion": f"it is {i + seed}"} for i in range(number)]
