"""Heads: from features of atoms to their latent multipoles. They know nothing of solvers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from farfield.potentials.linear import ScaledLinear


class ChargeHead(nn.Module):
    """Latent charge of each atom: a linear map plus a perceptron of its invariant features.

    Vector and tensor features, where given, enter by their lengths.

    Parameters
    ----------
    scalars, vectors, tensors
        Widths of the features.
    n_hidden
        Widths of the hidden layers.
    inputs
        Further invariant inputs per atom (the total charge, for instance).
    scale
        Factor on the output: charges start small, so that the short range is learned first.
    """

    def __init__(
        self,
        scalars: int,
        vectors: int = 0,
        tensors: int = 0,
        *,
        n_hidden: Sequence[int] = (32, 16),
        inputs: int = 0,
        outputs: int = 1,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        width = scalars + vectors + tensors + inputs
        self.linear = ScaledLinear(width, outputs, bias=False)
        layers: list[nn.Module] = []
        for n_in, n_out in zip([width, *n_hidden], n_hidden, strict=False):
            layers.extend([ScaledLinear(n_in, n_out), nn.SiLU()])
        self.perceptron = nn.Sequential(*layers, ScaledLinear(n_hidden[-1] if n_hidden else width, outputs))
        self.scale = scale

    def forward(
        self,
        scalars: Float[Tensor, "atoms features"],
        vectors: Float[Tensor, "atoms channels 3"] | None = None,
        tensors: Float[Tensor, "atoms tensor_channels 3 3"] | None = None,
        inputs: Float[Tensor, "atoms inputs"] | None = None,
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the raw outputs (e for charges)."""
        parts = [scalars]
        if vectors is not None:
            parts.append(_length(vectors.square().sum(-1)))
        if tensors is not None:
            parts.append(_length(tensors.square().sum((-1, -2))))
        if inputs is not None:
            parts.append(inputs)
        joined = torch.cat(parts, dim=-1) if len(parts) > 1 else scalars
        return self.scale * (self.linear(joined) + self.perceptron(joined))

    @torch.no_grad()
    def move(self, shift: float) -> None:
        """Add a number to the first output, the charge (e), of every atom."""
        last = self.perceptron[-1]
        assert isinstance(last, ScaledLinear)  # narrows the type
        assert last.bias is not None
        last.bias[0] += shift / self.scale

    def rescale(self, scale: float) -> None:
        """Set the scale and leave the outputs what they are: they then learn at another rate."""
        _rescale(self, scale, self.linear, self.perceptron[-1])


def _rescale(head: ChargeHead | VectorHead | TensorHead, scale: float, *last: nn.Module) -> None:
    """Set the scale of a head whose outputs are those of its last layers times the scale."""
    with torch.no_grad():
        for layer in last:
            for parameter in layer.parameters():
                parameter.mul_(head.scale / scale)
    head.scale = scale


def _length(square: Tensor) -> Tensor:
    """√(1 + |v|²) − 1: a length that is smooth at zero and does not run away where features are large."""
    return (1.0 + square).sqrt() - 1.0


class VectorHead(nn.Module):
    """Latent dipole of each atom (e·Å): vector features mixed with weights that its scalars give."""

    def __init__(self, scalars: int, vectors: int, *, scale: float = 0.1) -> None:
        super().__init__()
        self.gate = nn.Sequential(ScaledLinear(scalars, vectors), nn.SiLU(), ScaledLinear(vectors, vectors))
        self.scale = scale

    def forward(
        self, scalars: Float[Tensor, "atoms features"], vectors: Float[Tensor, "atoms channels 3"]
    ) -> Float[Tensor, "atoms 3"]:
        """Return the dipoles."""
        return self.scale * torch.einsum("ac,acx->ax", self.gate(scalars), vectors)

    def rescale(self, scale: float) -> None:
        """Set the scale and leave the dipoles what they are."""
        _rescale(self, scale, self.gate[-1])


class TensorHead(nn.Module):
    """Latent traceless quadrupole of each atom (e·Å²): tensor features mixed with weights that its scalars give."""

    def __init__(self, scalars: int, tensors: int, *, scale: float = 0.1) -> None:
        super().__init__()
        self.gate = nn.Sequential(ScaledLinear(scalars, tensors), nn.SiLU(), ScaledLinear(tensors, tensors))
        self.scale = scale

    def forward(
        self, scalars: Float[Tensor, "atoms features"], tensors: Float[Tensor, "atoms channels 3 3"]
    ) -> Float[Tensor, "atoms 3 3"]:
        """Return the quadrupoles, projected to be symmetric and traceless."""
        mixed = self.scale * torch.einsum("ac,acxy->axy", self.gate(scalars), tensors)
        symmetric = 0.5 * (mixed + mixed.transpose(-1, -2))
        trace = symmetric.diagonal(dim1=-2, dim2=-1).mean(-1)
        return symmetric - trace[:, None, None] * torch.eye(3, dtype=mixed.dtype, device=mixed.device)

    def rescale(self, scale: float) -> None:
        """Set the scale and leave the quadrupoles what they are."""
        _rescale(self, scale, self.gate[-1])
