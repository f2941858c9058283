"""A run foreseen: first by its shapes alone, then corrected by what some of its micro-batches took."""

import dataclasses

from inlay.base.base import Base
from inlay.base.heads import with_heads
from inlay.methods.contract import Method
from inlay.process import peak_rss_bytes
from inlay.runs import needs
from inlay.runs.forecast import Forecast
from inlay.runs.measure import Measured
from inlay.runs.work import Work
from inlay.tasks.contract import Prepared

SAVES_FROM_SECONDS = 10.0
"""A run of this length keeps states, each written out of two copies of its tensors."""

GROWTH = 1.03
"""What a run comes to hold beyond its longest micro-batch, before it hands freed blocks back (`inlay.runs.watch`)."""

CLOSING_BYTES = 40 << 20
"""What the end of a run takes between two micro-batches: answers that are kept, a picture."""


def foresee(
    base: Base,
    method: Method,
    train: Prepared,
    work: Work,
    *,
    epochs: float,
    scheme: str | None,
    taken: needs.Taken,
    program: int,
) -> Forecast:
    """What a run over these rows takes, by shapes alone; `base` may be an outline, and nothing of it is computed.

    **Arguments:**

    - `epochs`: how often the run sees each row.
    - `scheme`: how the linear layers of the base are, or will be, quantised.
    - `taken`: by its longest micro-batch.
    - `program`: the bytes that its process holds beside all of that, and beside the base.
    """
    whole = with_heads(method, base.heads, base.maps)
    trained, weights = base.layout.count(whole), needs.adapter_weights(base, whole)
    memory = needs.memory(base, scheme, trained, taken, work.num_lengths, program)
    steps, evaluations = needs.seconds(base, trained, work)
    adapter_bytes = 4 * weights
    is_made = scheme is not None and not base.checkpoint.config.get("quantization_config")
    made = needs.packed_bytes(base, scheme) if is_made else 0
    return Forecast(
        trainable_parameters=trained,
        adapter_bytes=adapter_bytes,
        memory_bytes=max(int(GROWTH * memory.total), peak_rss_bytes()),
        disk_bytes=2 * adapter_bytes + needs.STATE_BYTES_PER_WEIGHT * trained + made,
        num_rows=len(train.examples),
        num_dropped=train.num_dropped,
        num_windowed=train.num_windowed,
        tokens_per_epoch=train.num_tokens,
        supervised_per_epoch=train.num_trained,
        seconds_per_epoch=steps / max(epochs, 1e-9),
        seconds=steps + evaluations,
        measured_on="a rate of products measured here",
    )


def corrected(forecast: Forecast, measured: Measured, work: Work) -> Forecast:
    """The forecast of a run, by what its median and its longest micro-batch took."""
    steps, evaluations = measured.seconds(work)
    epochs = work.total("targets") / max(1, forecast.supervised_per_epoch) or 1.0
    trained = forecast.trainable_parameters
    moments = needs.MOMENTS_BYTES_PER_WEIGHT * trained
    saves = 2 * needs.STATE_BYTES_PER_WEIGHT * trained if steps + evaluations >= SAVES_FROM_SECONDS else 0
    longest = measured.fixed_bytes + measured.bytes_per_token * work.longest.tokens
    lengths = measured.more_lengths_bytes(work)
    between = measured.floor_bytes + moments + lengths
    peak = GROWTH * max(measured.peak_bytes + moments + lengths, between + longest, between + saves + CLOSING_BYTES)
    return dataclasses.replace(
        forecast,
        memory_bytes=max(int(peak), peak_rss_bytes()),
        device_bytes=measured.device_bytes + moments if measured.device_bytes else 0,
        seconds_per_epoch=steps / epochs,
        seconds=steps + evaluations,
        measured_on="2 of its batches",
    )
