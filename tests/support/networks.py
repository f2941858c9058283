"""Small hand-written networks: what adapters can be put on that is no language model."""

import torch
from torch import nn


class Convolutional(nn.Module):
    """Two convolutions and a linear map: (rows, 3, height, width) to (rows, 5)."""

    def __init__(self, dilation=(1, 1)):
        super().__init__()
        state = torch.get_rng_state()
        torch.manual_seed(7)
        self.first = nn.Conv2d(3, 7, (3, 2), stride=2, padding=1, dilation=dilation)
        self.second = nn.Conv2d(7, 11, 3, padding=1, bias=False)
        self.last = nn.Linear(11, 5)
        torch.set_rng_state(state)

    def forward(self, x):
        h = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(h.mean((2, 3)))
