"""What is found of an architecture: each column asks a base of ours and a model of `transformers` the same thing.

A column answers with what stands in the table, and fails where the two differ; what we refuse by name stands there too.
"""

import warnings

import torch
import transformers
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

import inlay
from inlay import tasks
from inlay.base.load import load
from inlay.errors import InlayError
from inlay.export.merge import merge
from inlay.generation.padded import minds_padding
from inlay.tasks import _packed as loss
from inlay.text.mask import Example
from inlay.text.template import prompt_ids
from tests.support import architectures, models
from tests.support.tolerances import LOGITS

ROWS = (9, 4, 17, 5)
"""Tokens of the rows that a loss is taken of."""

LORA = inlay.Lora(r=2, lora_alpha=3)
PROMPTS = ["ab", "hello"]
VIRTUAL = 3


class Pair:
    """A small model's directory, and both sides' model of it."""

    def __init__(self, folder, kind, task="causal-lm"):
        self.folder, self.kind = folder, kind
        auto_class = tasks.find(task).auto_class
        self.auto = getattr(transformers, auto_class)
        self.directory = architectures.directory(folder / "base", auto_class, kind)
        self.base = load(self.directory, task=task, dtype="float32")
        self.theirs = self.read(self.directory)

    def read(self, directory):
        return self.auto.from_pretrained(directory, dtype=torch.float32).eval()

    def adapter(self, name):
        """A LoRA adapter of this name with generic values, different for each name."""
        if name not in self.base.adapters:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=f"{name} leaves out")  # layers that the model never calls
                models.randomize(self.base.create(LORA, name), seed=ord(name[0]), std=0.2)
        return name


def apart(ours, theirs):
    """The largest difference, as part of the largest number."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def logits(pair):
    """Logits alone, padded on either side, one row, and in training mode."""
    ids = architectures.tokens(3, 13)
    right, left = (torch.ones(3, 13, dtype=torch.long) for _ in range(2))
    right[0, -4:] = 0
    left[-1, :4] = 0
    for how, mask in {"alone": None, "padded at the end": right, "padded at the beginning": left}.items():
        assert apart(*both(pair, ids, mask)) <= LOGITS, how
    assert apart(*both(pair, ids[:1])) <= LOGITS, "one row"
    assert apart(*both(pair, ids, training=True)) <= LOGITS, "in training mode"
    return "yes"


def both(pair, ids, mask=None, training=False):
    """What both sides say of these rows, where they are not padding."""
    said, is_encoder = [], pair.kind in architectures.ENCODERS
    with torch.no_grad():
        for model in (pair.base.model, pair.theirs):
            model.train(training)
            torch.manual_seed(0)
            more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
            out = model(input_ids=ids, attention_mask=mask, **more, **({} if is_encoder else {"use_cache": False}))
            model.eval()
            answer = out.logits if hasattr(out, "logits") else out.last_hidden_state
            said.append(answer[mask.bool()] if mask is not None and answer.shape[:2] == ids.shape else answer)
    return said


def train(pair):
    """The loss of rows together, and of each alone, against the other side's for each row by itself; and an adapter's gradients.

    No token sees what comes after it.
    """
    pair.base.check_causal()
    rows = _rows()
    with torch.no_grad():
        wanted = [_loss(pair.theirs, row).item() for row in rows]
        found = [loss.loss_of(pair.base, [row]).item() for row in rows]
        assert all(abs(one - other) <= LOGITS * other for one, other in zip(found, wanted, strict=True)), (
            found,
            wanted,
        )
        together = loss.loss_of(pair.base, rows).item()
        assert abs(together - sum(wanted)) <= LOGITS * sum(wanted), (together, sum(wanted))
    pair.base.active = pair.adapter("a")
    tensors = pair.base.parameters()
    gradients = torch.autograd.grad(loss.loss_of(pair.base, rows), tensors)
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)
    reason = loss.unpacked_because(pair.base)
    return "packed" if reason is None else f"padded: {reason}"


def _rows():
    generator, rows = torch.Generator().manual_seed(2), []
    for length in ROWS:
        ids = torch.randint(3, architectures.VOCABULARY, (length,), generator=generator).tolist()
        rows.append(Example(tuple(ids), tuple(i % 3 != 1 for i in range(length)), "row"))
    return rows


def _loss(model, row):
    said = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0, :-1]
    labels = torch.tensor(
        [token if trained else -100 for token, trained in zip(row.input_ids, row.trained, strict=True)]
    )
    return nn.functional.cross_entropy(said, labels[1:], reduction="sum")


def merged(pair):
    """Logits of an adapter against those of what it was merged to, as the other side reads it."""
    ids, name = architectures.tokens(3, 13), pair.adapter("a")
    merge(pair.base, name, pair.folder / "merged")
    with torch.no_grad():
        wanted = pair.read(pair.folder / "merged")(input_ids=ids, use_cache=False).logits
        plain = pair.theirs(input_ids=ids, use_cache=False).logits
    assert apart(pair.base.logits(ids, name), wanted) <= LOGITS < apart(plain, wanted)
    return "yes"


def generated(pair):
    """Greedy answers to prompts of two lengths, padded at the beginning."""
    tokenizer = pair.base.tokenizer
    rows = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    longest, pad = max(map(len, rows)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    how = dict(do_sample=False, max_new_tokens=6, pad_token_id=pad, eos_token_id=tokenizer.eos_token_id)
    with torch.no_grad():
        out = pair.theirs.generate(input_ids=ids, attention_mask=mask, **how)
        if minds_padding(pair.theirs, pad):  # what transformers says there is not what it says of a row alone
            alone = [pair.theirs.generate(input_ids=torch.tensor([row]), **how)[:, len(row) :] for row in rows]
            wanted = [tokenizer.batch_decode(part, skip_special_tokens=True)[0] for part in alone]
        else:
            wanted = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    found = pair.base.generate(PROMPTS, max_new_tokens=6)
    assert found == wanted
    return "yes"


def mixed(pair):
    """A batch of rows with adapters of their own, and of one without, against each row alone."""
    ids, names = architectures.tokens(3, 13), [pair.adapter("b"), None, pair.adapter("a")]
    alone = torch.cat([pair.base.logits(ids[i : i + 1], name) for i, name in enumerate(names)])
    assert apart(pair.base.logits(ids, names), alone) <= LOGITS
    return "yes"


def prefix(pair):
    """A prefix of generic keys and values against a cache of them that the other side is given."""
    ids, config = architectures.tokens(2, 7), pair.theirs.config
    method = inlay.methods.find("prefix")(num_virtual_tokens=VIRTUAL)
    adapter = models.randomize(pair.base.create(method, "p"), seed=6)
    found = pair.base.logits(ids, "p")
    numbers = method.virtual(adapter.params[""]).detach().view(VIRTUAL, config.num_hidden_layers, 2, -1)
    with torch.no_grad():
        cache = DynamicCache(config=config)
        for layer in range(config.num_hidden_layers):
            if not isinstance(cache.layers[layer], DynamicLayer):
                continue  # a state, not keys and values
            heads = numbers[:, layer].unflatten(-1, (-1, _head_dim(config)))  # (virtual, 2, heads, dim)
            keys, values = heads.permute(1, 2, 0, 3)[:, None].expand(-1, len(ids), -1, -1, -1)
            cache.update(keys, values, layer)
        mask = torch.ones(len(ids), VIRTUAL + ids.shape[1], dtype=torch.long)
        wanted = pair.theirs(input_ids=ids, attention_mask=mask, past_key_values=cache).logits
        plain = pair.theirs(input_ids=ids, use_cache=False).logits
    assert apart(found, wanted) <= LOGITS < apart(plain, wanted)
    return "yes"


def _head_dim(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


COLUMNS = {
    "equal logits": logits,
    "training": train,
    "merge": merged,
    "generate": generated,
    "mixed rows": mixed,
    "prefix": prefix,
}


def cell(pair, column):
    """What a column says of an architecture; `refused` where we refuse it by name."""
    try:
        return COLUMNS[column](pair)
    except InlayError:
        return "refused"
    finally:
        pair.base.active = None
