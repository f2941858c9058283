"""A picture as the bytes of a PNG, drawn by matplotlib, which only the extra `train` brings."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

from inlay import extras


@contextlib.contextmanager
def figure(width: float, height: float = 4) -> Iterator[tuple[Any, io.BytesIO]]:
    """An empty figure of this size in inches, and what holds its PNG after the block.

    As the package has it: no settings of the user's, nor of a `matplotlibrc` in the current folder, which may ask for LaTeX,
    another backend, or what is not installed.

    **Raises:**

    - `MissingExtraError`: matplotlib is not installed.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        extras.need("matplotlib", "a picture")
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        made, png = Figure(figsize=(width, height), layout="constrained"), io.BytesIO()
        FigureCanvasAgg(made)
        yield made, png
        made.savefig(png, dpi=120, format="png")
