"""Ctrl-C and requests to end in the course of a run: the first is a wish, the next an order, and neither costs what was
learned."""

import contextlib
import signal
from collections.abc import Iterator

from inlay.io import output


class Stop:
    """What has been asked for so far.

    **Attributes:**

    - `asked`: the run should end after the step under way.
    - `cut`: it should end now: the step or evaluation under way is given up.
    - `by_system`: the first request came from the system, which soon stops the process whatever it does.
    """

    def __init__(self) -> None:
        self.asked = self.cut = self.by_system = False
        self._may_cut = False

    @property
    def hurries(self) -> bool:
        """Whoever asked for an end waits for nothing that can be left out."""
        return self.cut or (self.asked and self.by_system)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Within the block requests are noted here, in the main thread alone."""
        with output.handled(lambda number, frame: self._take(number)):
            yield

    @contextlib.contextmanager
    def may_cut(self) -> Iterator[None]:
        """Within the block the second request is a KeyboardInterrupt."""
        self._may_cut = True
        try:
            yield
        finally:
            self._may_cut = False

    def _take(self, number: int) -> None:
        if not self.asked:
            self.asked, self.by_system = True, number != signal.SIGINT
            return
        self.cut = True
        if self._may_cut:
            self._may_cut = False
            raise KeyboardInterrupt
