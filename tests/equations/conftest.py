"""What tests of kernels share."""

import pytest
import torch

from inlay.kernels import native


@pytest.fixture(scope="session")
def many_threads():
    """many_threads(n): within it torch has n threads, and they are used however little there is to do."""

    class Threads:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            self.before = torch.get_num_threads(), native.FEWEST_NUMBERS
            torch.set_num_threads(self.number)
            native.FEWEST_NUMBERS = 0

        def __exit__(self, *error):
            torch.set_num_threads(self.before[0])
            native.FEWEST_NUMBERS = self.before[1]

    return Threads
