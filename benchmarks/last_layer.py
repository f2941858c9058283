"""A step whose last layer says only what the head is asked, and one whose last layer says all: python -m benchmarks.last_layer
[SHAPE] [DTYPE] [ROWS] [TOKENS]

r=16 on all linear layers, AdamW; of a row the last eighth is trained on. Both step in turn in one process, on the same rows.
Printed are medians of seconds and their ratio; how far the loss and its gradients are apart.
"""

import sys

import torch

from benchmarks.shared_prefix import in_turn
from inlay.tasks import _packed
from inlay.text.mask import Example

NUM_STEPS = 7
WAYS = {"what is asked": _packed.FEWEST_UNASKED, "all": sys.maxsize}
"""From how many tokens that are not asked about on they are left out."""


def main(shape: str = "135m", dtype: str = "bfloat16", rows: str = "4", tokens: str = "256") -> None:
    """Measure both ways."""
    length = int(tokens)

    def draw(generator: torch.Generator) -> list[Example]:
        draws = torch.randint(3, 500, (int(rows), length), generator=generator).tolist()
        return [Example(row, [i >= length - length // 8 for i in range(length)], "row") for row in draws]

    print(f"{shape}, {dtype}: {rows} rows of {tokens} tokens, of which the last {length // 8} are trained on")
    take = lambda fewest: setattr(_packed, "FEWEST_UNASKED", fewest)  # noqa: E731
    times, apart = in_turn(shape, dtype, draw, take, WAYS, NUM_STEPS)
    print(f"{times['what is asked'] / times['all']:.3f} of the time; {apart}")


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(*sys.argv[1:])
