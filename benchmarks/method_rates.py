"""Which learning rate suits each method, and LoRA from each initialiser (`lora.pissa`): what `learning_rate_scale` and
`Initializer.rate` rest on.

Every method is trained for some steps on E2E rows at several multiples of the rate that the rule gives for the base, and its
held-out loss afterwards printed. One small base, one seed: it tells 1 from 10, not 1 from 1.5.

python -m benchmarks.method_rates ../shared/models/stories260K ../shared/data/e2e/train-1.jsonl [method ...]
"""

import sys

import torch

from inlay import initializers, methods
from inlay.base.load import load
from inlay.data.forms import read_rows
from inlay.errors import InlayError
from inlay.methods import hooks
from inlay.tasks.causal_lm import prepare
from inlay.training import job, loop
from inlay.training.calibration import calibrate
from inlay.training.rows import longest_row
from inlay.training.settings import Plan, Settings, learning_rate
from inlay.training.state import TrainState

FACTORS = (0.1, 0.3, 1, 3, 10, 30)
STEPS, BATCH, HELD_OUT = 60, 6, 40


def main(model, rows, *names):
    torch.set_num_threads(1)
    base = load(model)
    how = (base.tokenizer, longest_row(base, None, 20), "completions", "drop")
    read = read_rows(rows)[:4000]
    train, held_out = prepare(read[:3800], *how), prepare(read[3800:], *how)
    rate, _ = learning_rate(base.model.config)
    print(f"| method | chosen | {' | '.join(f'x {factor:g}' for factor in FACTORS)} |")
    print(f"|---|---|{'---|' * len(FACTORS)}")
    for name in names or [*methods.names(), *(f"lora.{initializer}" for initializer in initializers.names())]:
        kind, _, initializer = name.partition(".")
        method, cells = methods.find(kind)(**({"initializer": initializer} if initializer else {})), []
        for factor in FACTORS:
            try:
                calibration = calibrate(base, method, train.examples[: job.CALIBRATION_ROWS], None, 0)
                adapter = base.fresh(method, "it", calibration=calibration)
            except InlayError:
                break
            plan = Plan(STEPS, BATCH, rate * factor, "", STEPS)
            state = TrainState.new(adapter, Settings(learning_rate=plan.learning_rate), plan, num_held_out=HELD_OUT)
            try:
                done = loop.run(base, state, train.examples, held_out.examples[:HELD_OUT])
                cells.append(f"{done.eval_losses[-1][1]:.3f}")
                base.detach("it")
            except InlayError:
                cells.append("diverged")
        chosen = method.learning_rate_scale * hooks.rate(method, "lora_A", by_default=True)
        print(f"| {name} | x {chosen:g} | {' | '.join(cells) or 'nothing to train'} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
