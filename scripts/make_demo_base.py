"""Make the base of `inlay demo`: a small Llama, trained from nothing on text that `inlay.cli._demo_text` makes up.

    python scripts/make_demo_base.py            writes src/inlay/cli/demo_base/

The same seed gives the same text and tokenizer; the weights agree up to the rounding of the machine's matrix products.
"""

import math
import random
import shutil
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from inlay.cli import _demo_text

OUTPUT = Path(__file__).parent.parent / "src" / "inlay" / "cli" / "demo_base"
SEED = 20
VOCABULARY = 1024
"""At most; fewer come out, as the text has few words."""
CONTEXT = 256
ROW_TOKENS = 192
BATCH = 24
STEPS = 1200
PEAK_RATE = 3e-3
INITIAL_STD = 0.08
HELD_OUT_ROWS = 64
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}

CARD = """The base of `inlay demo`.

A Llama of {weights:,} weights, trained from nothing by `scripts/make_demo_base.py` on {tokens:.1f} million tokens of text that
`inlay.cli._demo_text` makes up from a small grammar: stories about people and their things, and cards of facts. It took
{seconds:.0f} s on two cores; its loss on held-out text of the same grammar is {loss:.4f} nats per token. It knows nothing
else. Licence: Apache-2.0.
"""


def main() -> None:
    """Train the tokenizer and the model, and write both."""
    start = time.perf_counter()
    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    tokenizer = make_tokenizer([_demo_text.document(rng) for _ in range(20_000)])
    model = LlamaForCausalLM(configuration(len(tokenizer)))
    held_out = batch(tokenizer, random.Random(SEED + 1), HELD_OUT_ROWS)
    train(model, tokenizer, rng)
    loss = held_out_loss(model, held_out)
    seconds = time.perf_counter() - start
    write(model, tokenizer)
    weights = sum(parameter.numel() for parameter in model.parameters())
    tokens = STEPS * BATCH * ROW_TOKENS / 1e6
    (OUTPUT / "README.md").write_text(CARD.format(weights=weights, tokens=tokens, seconds=seconds, loss=loss), "utf-8")
    print(f"held-out loss {loss:.4f} after {seconds:.0f} s: {OUTPUT}")


def configuration(vocabulary: int) -> LlamaConfig:
    """A shape that trains in minutes and whose file stays under 4 MB in float32."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=INITIAL_STD,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text has tokens, and decoding gives it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **SPECIAL)


def batch(tokenizer: PreTrainedTokenizerFast, rng: random.Random, num_rows: int) -> dict[str, torch.Tensor]:
    """Documents between start and end tokens, one after the other, cut into rows; positions start anew in each."""
    ids: list[int] = []
    positions: list[int] = []
    while len(ids) < num_rows * ROW_TOKENS:
        tokens = tokenizer(f"<s>{_demo_text.document(rng)}</s>")["input_ids"]
        ids += tokens
        positions += range(len(tokens))
    rows, places = (torch.tensor(values[: num_rows * ROW_TOKENS]).view(num_rows, -1) for values in (ids, positions))
    labels = rows.masked_fill(rows == tokenizer.bos_token_id, -100)
    return {"input_ids": rows, "position_ids": places, "labels": labels}


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> None:
    """AdamW with warm-up and a cosine to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    for step in range(STEPS):
        rate = PEAK_RATE * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(**batch(tokenizer, rng, BATCH), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}/{STEPS}  loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, held_out: dict[str, torch.Tensor]) -> float:
    """Nats per token on text that was not trained on."""
    return model.eval()(**held_out, use_cache=False).loss.item()


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """The directory that ships with the package."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    model.generation_config.do_sample = False
    model.save_pretrained(OUTPUT)
    tokenizer.save_pretrained(OUTPUT)


if __name__ == "__main__":
    main()
