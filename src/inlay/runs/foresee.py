"""A run foreseen: first by its shapes alone, then corrected by what some of its micro-batches took."""

import dataclasses

from inlay.base.base import Base
from inlay.base.heads import with_heads
from inlay.methods.contract import Method
from inlay.process import peak_rss_bytes, rss_bytes
from inlay.runs import needs
from inlay.runs.forecast import Forecast
from inlay.runs.measure import Measured
from inlay.runs.work import Work
from inlay.tasks.contract import Prepared

GROWTH = 1.05
"""What the heap of a run grows by after its longest micro-batch was measured, as rows of other lengths share it. Fitted to the
runs of `benchmarks/forecast.py --fit`."""

SAVES_FROM_SECONDS = 10.0
"""A run of this length keeps states, each written out of two copies of its tensors."""

CLOSING_BYTES = 40 << 20
"""What the end of a run takes beside it: answers that are kept, a picture. Fitted likewise."""


def foresee(base: Base, method: Method, train: Prepared, work: Work, *, epochs: float, scheme: str | None) -> Forecast:
    """What a run over these rows takes, by shapes alone; `base` may be an outline, and nothing of it is computed.

    **Arguments:**

    - `epochs`: how often the run sees each row.
    - `scheme`: how the linear layers of the base are, or will be, quantised.
    """
    whole = with_heads(method, base.heads, base.maps)
    trained, weights = base.layout.count(whole), needs.adapter_weights(base, whole)
    memory = needs.memory(base, scheme, trained, work.longest, rss_bytes() + needs.PROGRAM_BYTES)
    steps, evaluations = needs.seconds(base, trained, work)
    adapter_bytes = 4 * weights
    is_made = scheme is not None and not base.checkpoint.config.get("quantization_config")
    made = needs.packed_bytes(base, scheme) if is_made else 0
    return Forecast(
        trainable_parameters=trained,
        adapter_bytes=adapter_bytes,
        memory_bytes=max(memory.total, peak_rss_bytes()),
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
    moments = needs.MOMENTS_BYTES_PER_WEIGHT * forecast.trainable_parameters
    saves = 2 * needs.STATE_BYTES_PER_WEIGHT * forecast.trainable_parameters
    later = moments + CLOSING_BYTES + (saves if steps + evaluations >= SAVES_FROM_SECONDS else 0)
    peak = measured.floor_bytes + GROWTH * (measured.peak_bytes - measured.floor_bytes) + later
    return dataclasses.replace(
        forecast,
        memory_bytes=max(int(peak), peak_rss_bytes()),
        device_bytes=measured.device_bytes + moments if measured.device_bytes else 0,
        seconds_per_epoch=steps / epochs,
        seconds=steps + evaluations,
        measured_on="2 of its batches",
    )
