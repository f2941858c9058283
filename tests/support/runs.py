"""Runs that no command made, as a record has them."""

import math

from inlay.runs.record import Point, Run


def run(steps=40, every=10, **parts):
    """A training whose held-out loss is best at half of its steps, and rises from there while its own falls."""
    curve = [Point(0, None, 3.4, 0.0, 0)]
    for step in range(1, steps + 1):
        loss = 3.4 * math.exp(-3 * step / steps) + 0.2 * math.sin(step) / (1 + step / 9)
        held_out = None
        if step % every == 0:
            held_out = 3.4 - 2.1 * step / (steps / 2) if step <= steps / 2 else 1.3 + 0.9 * (2 * step / steps - 1)
        curve.append(Point(step, loss, held_out, 1.7 * step, 997 * step))
    given = dict(
        arguments=["base", "rows.jsonl", "--output", "mine"],
        base={"name": "stories260K", "weights": "1ff7" + "a" * 60},
        adapter={"path": "runs/mine", "weights": 91_392, "sha256": "c" * 64},
        data={"source": "rows.jsonl", "sha256": "b" * 64, "rows": 640, "held_out": 40},
        settings={"learning_rate": 3e-4, "batch_size": 16, "num_steps": steps, "method.name": "lora", "method.r": 11},
        scores={
            "eval_loss_before": 3.4,
            "eval_loss": 1.3,
            "best_step": steps // 2,
            "steps": steps,
            "seconds": 81.0,
            "tokens_per_second": 586.0,
            "peak_rss_bytes": 757_000_000,
            "forgotten": 0.173,
        },
    )
    made = Run("train", **given | parts)
    made.curve = curve
    return made
