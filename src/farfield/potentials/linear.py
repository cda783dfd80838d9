"""Linear maps whose weights all live on one scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ScaledLinear(nn.Module):
    """Linear map x W/√n + b with weights of order one, n the number of inputs.

    With 1/√n outside the weights one learning rate suits maps of any width: a step of Adam moves all weights alike, and
    would move the output of a wide map too far (Jacot et al., arXiv 1806.07572, "neural tangent" parametrization).
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None
        self.factor = 1.0 / math.sqrt(max(n_in, 1))

    @property
    def scaled_weight(self) -> Tensor:
        """Weights as they act, shape (n_out, n_in)."""
        return self.weight * self.factor

    def forward(self, x: Tensor) -> Tensor:
        """Map the last dimension of ``x``."""
        return nn.functional.linear(x, self.scaled_weight, self.bias)
